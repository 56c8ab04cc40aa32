"""Did the model look at the object? Grad-CAM of the true class against the ground-truth box, for
every validation image, in closed form.

Where the logits are a linear layer of the mean of the last map A, the gradient of class c's logit
with respect to every place of A_k is W[c, k] / places, and Grad-CAM at that map is
relu(sum_k W[c, k] A_k) up to a factor: no backward pass, a few milliseconds a batch.

energy    share of the map's sum, upsampled to the image, that lies inside the box
pointing  whether the peak of that map lies inside the box; of a plateau, its middle
lift      a score minus the same image's trivial baseline: for the energy the box's share of the
          image, as a uniform map has it; for the pointing whether the image's centre is inside

So a uniform map, and one of zeros, has both lifts 0. Who looks at random places has about 0 for the
energy and, as objects are mostly central, less than 0 for the pointing. Images whose box is
degenerate or covers 95% of the image or more are left out: nothing can be told from them.
"""

from functools import lru_cache

import numpy as np
import torch

from layout import NO_BOX, degenerate
from ranks import Ranks

NEARLY_FULL = 0.95  # share of the image


def class_maps(maps: torch.Tensor, weight: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Grad-CAM, not yet upsampled: (n, k, h, w), (all classes, k), (n,) -> float32 (n, h, w)."""
    return torch.einsum("nk,nkhw->nhw", weight.float()[classes], maps.float()).relu()


def scores(maps: torch.Tensor, boxes: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Energy and pointing of each map (n, h, w), on the device; boxes in an image of `size`."""
    down, across = (upsampling(length, size, maps.device) for length in maps.shape[1:])
    columns, rows = _inside(boxes, size)
    # The sum over a box of an upsampling by rows and columns is a product, too.
    energy = torch.einsum("nh,nhw,nw->n", rows @ down, maps, columns @ across)
    total = torch.einsum("h,nhw,w->n", down.sum(0), maps, across.sum(0))
    share, _ = (part.to(maps) for part in _baselines(boxes, size))
    energy = torch.where(total == 0, share, energy / total)
    x, y = _peaks(down @ maps @ across.T)
    x0, y0, x1, y1 = boxes.to(maps).unbind(1)
    pointing = (x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1)
    return energy, pointing.float()


def _peaks(full: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y of the highest place of each map; of a plateau (the borders have them) its middle."""
    highest = (full == full.amax((1, 2), keepdim=True)).to(full)
    places = torch.arange(full.shape[1], dtype=full.dtype, device=full.device)
    count = highest.sum((1, 2))
    return highest.sum(1) @ places / count, highest.sum(2) @ places / count


def baselines(boxes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """What energy and pointing are for a map that is uniform, with its peak in the centre."""
    share, centre = _baselines(torch.from_numpy(boxes.astype(np.int64)), size)
    return share.numpy(), centre.numpy()


def usable(boxes: np.ndarray, size: int) -> np.ndarray:
    """Which boxes say something about where a model looked."""
    there = (boxes != NO_BOX).all(1) & ~degenerate(boxes)
    return there & (baselines(boxes, size)[0] < NEARLY_FULL)


class Looks:
    """Where a model looked, image by image, in the order of `boxes`; NaN where it was not seen.

    What is added stays on its device until `gather`: a GPU is not waited for with each batch.
    """

    def __init__(self, boxes: np.ndarray, size: int):
        self.boxes, self.size = boxes, size
        self.energy, self.pointing = (np.full(len(boxes), np.nan, np.float32) for _ in "ep")
        self.usable = usable(boxes, size)
        self._on_device: torch.Tensor | None = None  # the boxes, from the first batch on
        self._found: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def add(
        self, start: int, maps: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
    ) -> None:
        """The images from `start` on: last maps (n, k, h, w), the head's weight, true classes."""
        part = slice(start, start + len(labels))
        if not self.usable[part].any():
            return
        if self._on_device is None:
            self._on_device = torch.from_numpy(self.boxes.astype(np.int64)).to(maps.device)
        found = scores(class_maps(maps, weight, labels), self._on_device[part], self.size)
        self._found.append((start, *found))

    def gather(self, ranks: Ranks) -> None:
        """Take over what was found, here and by other processes; none sees what another does."""
        for start, *found in self._found:
            part = slice(start, start + len(found[0]))
            keep = self.usable[part]
            for values, kept in zip(found, (self.energy, self.pointing), strict=True):
                kept[part][keep] = values.cpu().numpy()[keep]
        self._found.clear()
        for energy, pointing in ranks.gather((self.energy, self.pointing)):
            seen = ~np.isnan(energy)
            self.energy[seen], self.pointing[seen] = energy[seen], pointing[seen]

    def metrics(self) -> dict[str, float]:
        """The keys of a run's history; none where no image could be judged."""
        counted = ~np.isnan(self.energy)
        if not counted.any():
            return {}
        told = {}
        for name, values, baseline in zip(
            ("energy", "pointing"),
            (self.energy, self.pointing),
            baselines(self.boxes, self.size),
            strict=True,
        ):
            values = values[counted].astype(np.float64)
            told[f"val/cam_{name}"] = float(values.mean())
            told[f"val/cam_{name}_lift"] = float((values - baseline[counted]).mean())
        return {**told, "val/cam_images": int(counted.sum())}


@lru_cache
def upsampling(length: int, size: int, device: torch.device | None = None) -> torch.Tensor:
    """(size, length): bilinear along one axis, pixel centres aligned, edges held, as OpenCV does
    it and so pytorch-grad-cam. Kept, as a GPU would be waited for with each copy.
    """
    place = ((torch.arange(size) + 0.5) * length / size - 0.5).clamp(0, length - 1)
    low = place.floor().long()
    high = (low + 1).clamp(max=length - 1)
    part = (place - low)[:, None]
    one = torch.eye(length)
    return ((1 - part) * one[low] + part * one[high]).to(device)


def _inside(boxes: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, size) each: 1 for the columns and for the rows of the box, 0 elsewhere."""
    places = torch.arange(size, device=boxes.device)
    x0, y0, x1, y1 = boxes[:, :, None].unbind(1)
    return (
        ((x0 <= places) & (places <= x1)).float(),
        ((y0 <= places) & (places <= y1)).float(),
    )


def _baselines(boxes: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    x0, y0, x1, y1 = boxes.unbind(1)
    share = (x1 - x0 + 1) * (y1 - y0 + 1) / size**2
    middle = (size - 1) / 2
    centre = (x0 <= middle) & (middle <= x1) & (y0 <= middle) & (middle <= y1)
    return share.float(), centre.float()

import copy

import numpy as np
import pytest
import torch

import model as models
from localisation import Looks, baselines, class_maps, scores, upsampling, usable
from ranks import ALONE

SIZE = 64


def boxes(*rows) -> np.ndarray:
    return np.array(rows, np.int16)


def score(values, box) -> tuple[float, float]:
    maps = torch.tensor(values, dtype=torch.float32)[None]
    energy, pointing = scores(maps, torch.tensor([box]), SIZE)
    return energy.item(), pointing.item()


def stretched(maps: torch.Tensor) -> torch.Tensor:
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (maps.amax((1, 2), keepdim=True) + 1e-7)


def test_closed_form_is_that_of_pytorch_grad_cam():
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    torch.manual_seed(0)
    net = models.create_model("resnet18", 7).eval()
    for block in net.layer4:  # timm starts these at zero: let the block be more than the identity
        torch.nn.init.ones_(block.bn2.weight)
    images, classes = torch.randn(6, 3, SIZE, SIZE), torch.tensor([0, 1, 2, 3, 4, 6])
    explained = copy.deepcopy(net)
    with GradCAM(explained, [explained.layer4[-1]]) as cam:
        theirs = cam(images, [ClassifierOutputTarget(int(c)) for c in classes])
    with torch.no_grad():
        maps = class_maps(net.forward_features(images), net.fc.weight, classes)
    # The library stretches each map to 0..1, enlarges it, and stretches it again.
    up = upsampling(8, SIZE)
    ours = stretched(up @ stretched(maps) @ up.T)
    assert (ours.std((1, 2)) > 0.1).sum() >= 3  # the others are zero
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-4)


HALF = [[1.0, 0.0], [1.0, 0.0]]  # all on the left, fading in the middle
CASES = {  # map, box -> energy, pointing
    "uniform: centred": ([[1.0, 1.0], [1.0, 1.0]], (0, 0, 31, 63), 0.5, 0.0),
    "uniform, centre inside": ([[1.0, 1.0], [1.0, 1.0]], (16, 0, 47, 63), 0.5, 1.0),
    "one place": ([[3.0]], (16, 16, 47, 47), 0.25, 1.0),
    "left, box left": (HALF, (0, 0, 31, 63), 0.875, 1.0),
    "left, box right": (HALF, (32, 0, 63, 63), 0.125, 0.0),
    "left, box the whole": (HALF, (0, 0, 63, 63), 1.0, 1.0),
    "left, one column of 64": (HALF, (0, 0, 0, 63), 1 / 32, 0.0),
    "peak in the corner": ([[1.0, 0.0], [0.0, 0.0]], (0, 0, 10, 10), None, 1.0),
    "its mirror image": ([[0.0, 0.0], [0.0, 1.0]], (53, 53, 63, 63), None, 1.0),
    "the middle of the border's plateau": ([[1.0, 0.0], [0.0, 0.0]], (8, 8, 20, 20), None, 0.0),
    "and of its mirror image": ([[0.0, 0.0], [0.0, 1.0]], (43, 43, 55, 55), None, 0.0),
    "zero: uniform and centred": ([[0.0, 0.0], [0.0, 0.0]], (0, 0, 31, 31), 0.25, 0.0),
    "zero, centre inside": ([[0.0, 0.0], [0.0, 0.0]], (16, 16, 47, 47), 0.25, 1.0),
}


@pytest.mark.parametrize("case", CASES)
def test_energy_and_pointing(case):
    values, box, energy, pointing = CASES[case]
    found = score(values, box)
    assert found[1] == pointing
    if energy is not None:
        assert found[0] == pytest.approx(energy, abs=1e-6)


def test_scores_are_those_of_the_enlarged_map():
    maps = torch.rand(20, 5, 7, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, SIZE, (20, 2, 2)), axis=1)
    rows = corners.transpose(0, 1, 2).reshape(20, 4)  # x0 y0 x1 y1
    energy, pointing = scores(maps, torch.from_numpy(rows.astype(np.int64)), SIZE)
    full = torch.nn.functional.interpolate(maps[:, None], (SIZE, SIZE), mode="bilinear")[:, 0]
    for i, (x0, y0, x1, y1) in enumerate(rows):
        inside = full[i, y0 : y1 + 1, x0 : x1 + 1]
        assert energy[i] == pytest.approx((inside.sum() / full[i].sum()).item(), rel=1e-4)
        y, x = (full[i] == full[i].max()).nonzero().float().mean(0).tolist()
        assert pointing[i] == (x0 <= x <= x1 and y0 <= y <= y1)


def test_baselines():
    share, centre = baselines(boxes((0, 0, 63, 63), (0, 0, 31, 63), (31, 31, 32, 32)), SIZE)
    assert share.tolist() == pytest.approx([1.0, 0.5, 4 / SIZE**2])
    assert centre.tolist() == [1.0, 0.0, 1.0]


def test_which_boxes_count():
    told = usable(
        boxes(
            (-1, -1, -1, -1),
            (5, 5, 5, 9),
            (9, 5, 5, 9),
            (0, 0, 63, 63),
            (0, 0, 63, 60),
            (0, 0, 63, 59),
        ),
        SIZE,
    )
    assert told.tolist() == [False, False, False, False, False, True]  # 61 of 64 rows are 95.3%


def test_looks_are_averaged_over_what_counts_and_absent_where_nothing_does():
    rows = boxes((0, 0, 31, 63), (0, 0, 63, 63), (32, 0, 63, 63))
    looks = Looks(rows, SIZE)
    weight = torch.tensor([[1.0], [2.0]])
    maps = torch.tensor([HALF, HALF, HALF])[:, None]
    looks.add(0, maps[:2], weight, torch.tensor([0, 1]))
    looks.add(2, maps[2:], weight, torch.tensor([1]))
    looks.gather(ALONE)
    assert np.isnan(looks.energy).tolist() == [False, True, False]
    assert looks.metrics() == pytest.approx(
        {
            "val/cam_energy": 0.5,
            "val/cam_energy_lift": 0.0,
            "val/cam_pointing": 0.5,
            "val/cam_pointing_lift": 0.5,
            "val/cam_images": 2,
        }
    )
    assert Looks(boxes((-1, -1, -1, -1)), SIZE).metrics() == {}

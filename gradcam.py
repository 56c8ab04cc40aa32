"""Grad-CAM maps by pytorch-grad-cam, for pictures: where a model sees a class in an image.

The library leaves its model in another mode, overwrites gradients, and fails under `no_grad`,
autocast or with frozen parameters. So it gets a copy of the model, and explaining changes nothing
of a training.
"""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from loader import to_input

if TYPE_CHECKING:
    from learner import Learner

AT_ONCE = 8  # images


class _Maps(nn.Module):
    """The first half of a model as a layer that can be watched."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.forward_features(images)


class _Halves(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.maps = _Maps(model)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.maps.model.forward_head(self.maps(images))


class Explainer:
    """Maps of the learner's evaluated model as it is now, in float32."""

    def __init__(self, learner: "Learner", check: Callable[[], None] = lambda: None):
        self.check = check  # between the parts of a long work; may end it
        model = copy.deepcopy(learner.evaluated).float().eval().requires_grad_(True)
        self.halves = _Halves(model)
        self.learner = learner

    def __call__(
        self, images: np.ndarray, classes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """uint8 (n, H, W, 3) -> logits (n, all classes) and maps (n, H, W), each in 0..1; no maps
        where the model has none in rows and columns before its head.
        """
        parts = [
            self._some(images[i : i + AT_ONCE], classes[i : i + AT_ONCE])
            for i in range(0, len(images), AT_ONCE)
        ]
        logits, maps = zip(*parts, strict=True)
        return np.concatenate(logits), None if maps[0] is None else np.concatenate(maps)

    def _some(
        self, images: np.ndarray, classes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        import cv2
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        self.check()
        learner = self.learner
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(learner.device)
        x = to_input(pixels, *learner.normalizer, learner.pixels)
        with torch.enable_grad(), torch.autocast(learner.device.type, enabled=False):
            if not has_maps(self.halves.maps.model, x[:1]):
                return self.halves(x).detach().float().cpu().numpy(), None
            # Not as a context manager: that would swallow an IndexError.
            cam = GradCAM(self.halves, [self.halves.maps])
            try:
                maps = cam(x, [ClassifierOutputTarget(int(c)) for c in classes])
                logits = cam.outputs.detach().float().cpu().numpy()
            finally:
                cam.activations_and_grads.release()
        width = images.shape[1]
        if maps.shape[1] != width:
            maps = np.stack([cv2.resize(one, (width, width)) for one in maps])
        return logits, maps.clip(0, 1)


def has_maps(model: nn.Module, x: torch.Tensor) -> bool:
    """Whether the model has a map (n, channels, h, w) before its head: a ViT has tokens."""
    with torch.no_grad():
        maps = model.forward_features(x)
    channels = getattr(model, "num_features", None) or model.get_classifier().in_features
    return isinstance(maps, torch.Tensor) and maps.ndim == 4 and maps.shape[1] == channels

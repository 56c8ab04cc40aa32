"""What is done to training images, how strongly, and on which throw of the dice.

`Augmentation.at_strength` is the law of the strength. `Augmenter` draws for each image from (seed,
epoch, position in the epoch's order) and lets albumentations' functions do the pixels. Its own
pipeline (`A.Compose`) is not used: forked workers repeat its random stream, `set_random_seed` gives
every transform the *same* stream (flip and rotation then go together), and it costs 0.5 ms an image
where the functions cost 0.1 ms.
"""

import math
import os
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import numpy as np

import dice

LARGEST_HOLE = 0.75  # of the image's side
MIXUP_ALPHA = 0.2  # of mixup's Beta distribution; CutMix's area is uniform
AUGMENT, MIX = 1, 2  # purposes of the dice


@dataclass(frozen=True)
class Augmentation:
    """What is in force. As written by a recipe it is strength 1; all zero leaves every image as it
    is.
    """

    crop_padding: int = 0  # pixels on each side, mirrored, before a random crop to the old size
    flip: float = 0.0  # probability of a left-right flip
    rotate_degrees: float = 0.0  # uniform in plus or minus this
    cutout_size: int = 0  # side of each square hole, pixels
    cutout_holes: int = 1  # from 1 to so many holes
    cutmix: float = 0.0  # probability a batch
    mixup: float = 0.0  # probability a batch
    mix_epochs: float = math.inf  # cutmix and mixup in so many epochs, the first ones

    @property
    def mixes(self) -> bool:
        return self.cutmix > 0 or self.mixup > 0

    def at_strength(self, s: float, image_size: int) -> "Augmentation":
        """The law: 0 is the identity, 1 the recipe as written; every number grows with s, up to its
        cap.
        """
        return Augmentation(
            crop_padding=min(round(self.crop_padding * s), image_size - 1),
            flip=self.flip * min(s, 1.0),
            rotate_degrees=self.rotate_degrees * s,
            cutout_size=min(round(self.cutout_size * math.sqrt(s)), int(LARGEST_HOLE * image_size)),
            cutout_holes=self.cutout_holes,
            cutmix=min(self.cutmix * s, 1.0),
            mixup=min(self.mixup * s, 1.0),
            mix_epochs=self.mix_epochs,
        )


@dataclass(frozen=True)
class Draw:
    """What happens to each of n images."""

    y: np.ndarray  # int (n,): where the crop begins in the padded image
    x: np.ndarray
    flip: np.ndarray  # bool (n,)
    degrees: np.ndarray  # float (n,), counter-clockwise
    # int (n, cutout_holes, 4): x0 y0 x1 y1, exclusive; no area where there is none
    holes: np.ndarray


def draw(
    augmentation: Augmentation, size: int, seed: int, epoch: int, positions: np.ndarray
) -> Draw:
    """The dice for the images at these positions of the epoch's order: a pure function of its
    arguments.
    """
    a = augmentation
    throws = 5 + 2 * a.cutout_holes
    u = dice.uniform(seed, AUGMENT, epoch, positions[:, None], np.arange(throws)).T
    count = 1 + dice.integer(u[4], a.cutout_holes)
    corner = dice.integer(u[5:].T.reshape(-1, a.cutout_holes, 2), size - a.cutout_size + 1)
    side = np.where(np.arange(a.cutout_holes) < count[:, None], a.cutout_size, 0)[..., None]
    return Draw(
        y=dice.integer(u[0], 2 * a.crop_padding + 1),
        x=dice.integer(u[1], 2 * a.crop_padding + 1),
        flip=u[2] < a.flip,
        degrees=(2 * u[3] - 1) * a.rotate_degrees,
        holes=np.concatenate([corner, corner + side], axis=2),
    )


@dataclass(frozen=True)
class Augmenter:
    augmentation: Augmentation
    fill: tuple[int, int, int]  # colour of the holes: the data set's mean
    seed: int

    def __call__(self, images: np.ndarray, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Augmented copies of `images` (n, H, H, 3), which stand at `positions` of the epoch's
        order.
        """
        size = images.shape[1]
        drawn = draw(self.augmentation, size, self.seed, epoch, positions)
        out = np.empty(images.shape, np.uint8)
        for i, image in enumerate(images):
            out[i] = self._one(image, drawn, i)
        return out

    def _one(self, image: np.ndarray, drawn: Draw, i: int) -> np.ndarray:
        do = albumentations_functions()
        size, padding = image.shape[0], self.augmentation.crop_padding
        if padding:
            image = do.pad(image, padding, padding, padding, padding, do.mirror, None)
            image = image[drawn.y[i] : drawn.y[i] + size, drawn.x[i] : drawn.x[i] + size]
        if drawn.flip[i]:
            image = do.hflip(image)
        if self.augmentation.rotate_degrees:
            image = do.warp(
                image, rotation(drawn.degrees[i], size), (size, size), do.linear, do.mirror, 0
            )
        if self.augmentation.cutout_size:
            holes = drawn.holes[i][drawn.holes[i, :, 2] > drawn.holes[i, :, 0]]
            image = do.cutout(image, holes, self.fill, None)
        return image


def rotation(degrees: float, size: int) -> np.ndarray:
    """The 2x3 matrix that turns an image about the middle of its pixels."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    c = (size - 1) / 2
    return np.array([[cos, sin, c - c * cos - c * sin], [-sin, cos, c + c * sin - c * cos]])


def mix_batch(
    images: np.ndarray,
    labels: np.ndarray,
    augmentation: Augmentation,
    seed: int,
    epoch: int,
    start: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CutMix, mixup or neither for the batch that begins at position `start`.

    Returns the images, the class of what was mixed into each (`labels` where nothing was) and the
    share that each keeps. The partner of an image is its neighbour in the batch. CutMix goes before
    mixup where the two probabilities add up to more than 1.
    """
    stream = np.random.Generator(np.random.Philox(int(dice.bits(seed, MIX, epoch, start))))
    # In the last epochs the model sees whole images, as it will be measured on.
    choice = stream.random() if epoch <= augmentation.mix_epochs else math.inf
    if choice < augmentation.cutmix:
        images, share = cutmix(images, stream)
    elif choice < augmentation.cutmix + augmentation.mixup:
        images, share = mixup(images, float(stream.beta(MIXUP_ALPHA, MIXUP_ALPHA)))
    else:
        return images, labels, np.ones(len(labels), np.float32)
    return images, np.roll(labels, 1), np.full(len(labels), share, np.float32)


def cutmix(images: np.ndarray, stream: np.random.Generator) -> tuple[np.ndarray, float]:
    """Paste one rectangle of each image's partner; the share kept is counted after clipping."""
    height, width = images.shape[1:3]
    side = math.sqrt(stream.random())
    y, x = stream.integers(height), stream.integers(width)
    y0, y1 = (int(np.clip(y + sign * height * side / 2, 0, height)) for sign in (-1, 1))
    x0, x1 = (int(np.clip(x + sign * width * side / 2, 0, width)) for sign in (-1, 1))
    mixed = images.copy()
    mixed[:, y0:y1, x0:x1] = np.roll(images[:, y0:y1, x0:x1], 1, axis=0)
    return mixed, 1 - (y1 - y0) * (x1 - x0) / (height * width)


def mixup(images: np.ndarray, share: float) -> tuple[np.ndarray, float]:
    """The weighted mean of each image and its partner."""
    mixed = np.float32(share) * images + np.float32(1 - share) * np.roll(images, 1, axis=0)
    return np.rint(mixed).astype(np.uint8), share


@cache
def albumentations_functions() -> SimpleNamespace:
    """What we use of it, imported on first use (1 s), with OpenCV kept to the calling thread."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else the import asks the package index for news
    import albumentations.augmentations.dropout.functional as dropout
    import albumentations.augmentations.geometric.functional as geometric
    import cv2
    from albucore import hflip

    cv2.setNumThreads(0)
    return SimpleNamespace(
        pad=geometric.pad_with_params,
        hflip=hflip,
        warp=geometric.warp_affine_with_value_extension,
        cutout=dropout.cutout,
        mirror=cv2.BORDER_REFLECT_101,
        linear=cv2.INTER_LINEAR,
    )

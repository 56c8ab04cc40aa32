"""The plain way to load images, against which bench/ measures: what one would write first."""

import dataclasses
import os

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import data
from augment import Augmentation

BATCH = 128
RECIPE = Augmentation(crop_padding=4, flip=0.5, rotate_degrees=5, cutout_size=32, cutout_holes=2)


class PlainImages(Dataset):
    """Open, augment, normalise, one sample at a time."""

    def __init__(self, source: data.Data, indices: np.ndarray):
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
        import albumentations as A
        import cv2
        from albumentations.pytorch import ToTensorV2

        cv2.setNumThreads(0)
        size = source.images.shape[1]
        mean, std = data.NORMALIZATIONS[source.name]
        self.files = [str(source.root / source.file(i)) for i in indices]
        self.labels = source.labels[indices]
        self.transform = A.Compose(
            [
                A.PadIfNeeded(size + 8, size + 8, border_mode=cv2.BORDER_REFLECT_101),
                A.RandomCrop(size, size),
                A.HorizontalFlip(p=0.5),
                A.Rotate(limit=5, p=1.0, border_mode=cv2.BORDER_REFLECT_101),
                A.CoarseDropout(
                    num_holes_range=(1, 2),
                    hole_height_range=(32, 32),
                    hole_width_range=(32, 32),
                    fill=source.fill,
                    p=1.0,
                ),
                A.Normalize(mean, std),
                ToTensorV2(),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int):
        image = np.array(Image.open(self.files[index]).convert("RGB"))
        return self.transform(image=image)["image"], self.labels[index]


def plain_loader(source: data.Data, workers: int) -> DataLoader:
    return DataLoader(
        PlainImages(source, source.train),
        BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def some_of(source: data.Data, images: int) -> data.Data:
    """The same data set with so many of its training images, evenly chosen."""
    chosen = source.train[np.linspace(0, len(source.train) - 1, images).astype(int)]
    return dataclasses.replace(source, train=chosen)

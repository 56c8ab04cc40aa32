"""timm's way to train, against which bench/ measures: its loader and transforms, and the step of
its train.py without what that logs; channels_last, and bf16 where train.py would use it, too.
"""

import torch
from PIL import Image
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from torch.utils.data import Dataset

import data
import model as models
from learner import wants_amp

MEAN, STD = (0.482, 0.450, 0.401), (0.277, 0.269, 0.282)  # of Tiny ImageNet


class Files(Dataset):
    """The training images as files."""

    transform = None  # create_loader sets it

    def __init__(self, source: data.Data):
        self.source = source

    def __len__(self) -> int:
        return len(self.source.train)

    def __getitem__(self, index: int):
        place = self.source.train[index]
        image = Image.open(self.source.root / self.source.file(place)).convert("RGB")
        return self.transform(image), int(self.source.labels[place])


class TimmWay:
    """`dataset` gets its transform from timm; `loading` changes arguments of its create_loader."""

    def __init__(
        self,
        dataset: Dataset,
        classes: int,
        batch_size: int,
        workers: int,
        rate: float,
        label_smoothing: float = 0.0,
        **loading,
    ):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.amp = wants_amp("auto", self.device)
        defaults = {
            "input_size": (3, 64, 64),
            "batch_size": batch_size,
            "is_training": True,
            "use_prefetcher": self.device.type == "cuda",
            "color_jitter": 0.0,
            "mean": MEAN,
            "std": STD,
            "num_workers": workers,
            "device": self.device,
        }
        self.loader = create_loader(dataset, **{**defaults, **loading})
        self.model = models.create_model("resnet18", classes, 64)
        self.model.to(self.device, memory_format=torch.channels_last)
        self.optimizer = create_optimizer_v2(
            self.model, "sgd", lr=rate, momentum=0.9, weight_decay=5e-4
        )
        self.loss_of = torch.nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            return self.model(images)

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            loss = self.loss_of(self.forward(images), labels.to(self.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

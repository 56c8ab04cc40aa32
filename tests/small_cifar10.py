"""A small CIFAR-10: an archive in the published format."""

import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10


def write_cifar10(data_dir: Path, per_batch: int) -> dict:
    """Write `cifar-10-python.tar.gz`, six batches of `per_batch` images of ten classes in turn.

    Returns what torchvision's class must have as attributes to accept it: the md5s.
    """
    pixels = np.random.default_rng(0)
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    labels = [i % 10 for i in range(per_batch)]
    files = {"batches.meta": {"label_names": [f"class {i}" for i in range(10)]}}
    for name in names:
        rows = pixels.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        files[name] = {"data": rows, "labels": labels}
    md5 = {}
    path = data_dir / CIFAR10.filename
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            packed = pickle.dumps(content)
            md5[name] = hashlib.md5(packed).hexdigest()
            member = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
            member.size = len(packed)
            archive.addfile(member, io.BytesIO(packed))
    return {
        "tgz_md5": hashlib.md5(path.read_bytes()).hexdigest(),
        "train_list": [[name, md5[name]] for name, _ in CIFAR10.train_list],
        "test_list": [[name, md5[name]] for name, _ in CIFAR10.test_list],
        "meta": {**CIFAR10.meta, "md5": md5["batches.meta"]},
    }

"""What the localisation of every validation image costs: the evaluation with it against without.

    python bench/explain.py [--data_dir=data]      about 3 minutes on 2 cores with Tiny ImageNet

ResNet18 at 64 px, batches of 128 from the cache. In a round the two take turns; the share is that
of the median round.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch

import cli
import data
from bench.plain import BATCH
from config import Config
from learner import Learner
from loader import val_loader
from train import evaluate, looks_of


def seconds(learner: Learner, source: data.Data, explains: bool) -> float:
    learner.explains = explains
    batches, looks = val_loader(source, BATCH), looks_of(source)
    start = time.perf_counter()
    evaluate(learner, batches, looks, lambda: None)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--dataset", default="tiny-imagenet", choices=("tiny-imagenet", "shapes"))
    parser.add_argument("--images", type=int, default=1280, help="of each, a round (default: 1280)")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    whole = data.load(options.dataset, options.data_dir)
    chosen = whole.val[np.linspace(0, len(whole.val) - 1, options.images).astype(int)]
    source = dataclasses.replace(whole, val=chosen)
    learner = Learner(Config(dataset=options.dataset), source, steps_per_epoch=1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {len(chosen):,} images")
    print("round   without (s)   with (s)   more")
    for explains in (True, False):
        seconds(learner, dataclasses.replace(source, val=chosen[: 2 * BATCH]), explains)
    shares = []
    for number in range(1, options.rounds + 1):
        without, wanted = (seconds(learner, source, explains) for explains in (False, True))
        shares.append(wanted / without - 1)
        print(f"{number:5} {without:13.2f} {wanted:10.2f} {shares[-1]:6.1%}", flush=True)
    print(f"median {statistics.median(shares):30.1%}")


if __name__ == "__main__":
    cli.run(lambda _: main())

"""The range test, `train.py --find_lr`: what it suggests, and that nothing else moves meanwhile."""

import csv
import json
import re

import numpy as np
import pytest

from conftest import all_files
from lr_finder import STEPS, rates, smooth, suggest
from runs import Run, offline_record


def test_smoothing_has_no_bias_and_the_steepest_fall_is_suggested():
    assert smooth([3.0] * 5) == pytest.approx([3.0] * 5)
    tried = rates()
    place = np.log10(tried)
    losses = 2.3 - 1.5 / (1 + np.exp(-4 * (place + 2))) + 10 ** (2 * place - 1)
    assert suggest(tried, losses) == pytest.approx(0.01, rel=0.2)
    assert suggest(tried, np.linspace(1, 2, STEPS)) is None
    assert suggest(tried[:3], np.array([3.0, 2.0, 1.0])) is None


WATCH = """
import atexit, learner
real, rates, momenta, mixed = learner.Learner.train_step, [], set(), set()
def watch(self, batch):
    rates.append(self.optimizer.param_groups[0]["lr"])
    momenta.add(self.optimizer.param_groups[0]["momentum"])
    mixed.add(batch.partners is not batch.labels and not batch.partners.equal(batch.labels))
    return real(self, batch)
learner.Learner.train_step = watch
atexit.register(lambda: print("rates", *rates))
atexit.register(lambda: print(f"momenta {sorted(momenta)}, mixed {sorted(mixed)}"))
"""


def test_find_lr_suggests_and_leaves_no_run(zygote, shapes_dir, tmp_path):
    base = {"dataset": "shapes", "data_dir": shapes_dir, "model": "small", "image_size": 16}
    base |= {"workers": 0, "batch_size": 32, "output_dir": tmp_path / "runs"}
    base |= {"mixup": 1.0, "mix_until": 0.1, "cycle_momentum": True}  # none of which may show
    arguments = [f"--{key}={value}" for key, value in base.items()]
    test = Run(zygote, tmp_path, "--find_lr", *arguments, run_id="", patch=WATCH)
    test.timeout_s = 120
    assert test.wait() == 0, test.text
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("find_lr-")
    files = {file for file in all_files(folder) if not file.startswith("wandb")}
    assert files == {"lr_range.csv", "lr_range.png"}
    rows = list(csv.DictReader((folder / "lr_range.csv").read_text().splitlines()))
    tried = [float(row["lr"]) for row in rows]
    assert tried == sorted(tried)
    assert tried[-1] > 0.1
    (set_to,) = re.findall(r"^rates (.+)", test.text, re.M)
    assert [float(rate) for rate in set_to.split()] == tried
    # Of 100 images it may be any rate, or none.
    losses, accs = (smooth([float(row[key]) for row in rows]) for key in ("loss", "acc"))
    suggested, by_accuracy = suggest(tried, losses), suggest(tried, -accs)
    told = f"suggested: --max_lr={suggested:.3g}" if suggested else "no suggestion: "
    told += f"; by the accuracy: {by_accuracy:.3g}\n" if suggested and by_accuracy else ""
    assert told in test.text
    assert "momenta [0.9], mixed [True]" in test.text
    record = offline_record(folder)
    (began,) = (r["run"] for r in record if r["type"] == "run")
    assert began["job_type"] == "find_lr"
    assert "lr_range" in json.dumps([r for r in record if r["type"] == "history"])

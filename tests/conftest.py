"""What the tests share: a small data set in the layout of Tiny ImageNet, and the commands as users
call them.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest_plugins = ["ledger"]
pytest.register_assert_rewrite("runs", "sweeps", "studies", "archives", "browser")

# The tests take all cores by themselves; threads of each would only fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test heeds whose W&B this is.
for name in [name for name in os.environ if name.startswith("WANDB_")]:
    del os.environ[name]
# Bits are compared, which a GPU does not repeat. Where it is there, a few tests are for it.
if "TINYSWEEP_TEST_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

REPO = Path(__file__).parent.parent
WNIDS = ("n00000003", "n00000001", "n00000002")  # not sorted, like the real one


def write_jpeg(path: Path, seed: int, grey: bool = False, size: tuple[int, int] = (64, 64)) -> None:
    """Smooth noise that differs with the seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert("L" if grey else "RGB").save(path, "JPEG", quality=75)


def write_tree(root: Path, train: int = 10, val: int = 4) -> Path:
    """3 classes with `train` and `val` images each, with boxes; one is grey, none are identical."""
    seed = 0
    annotations = []
    for label, wnid in enumerate(WNIDS):
        rows = []
        for i in range(train):
            write_jpeg(
                root / f"train/{wnid}/images/{wnid}_{i}.JPEG", seed := seed + 1, i == label == 0
            )
            rows.append(f"{wnid}_{i}.JPEG\t{i}\t{label}\t60\t50")
        (root / f"train/{wnid}/{wnid}_boxes.txt").write_text("\n".join(rows) + "\n")
        for i in range(val):
            name = f"val_{label * val + i}.JPEG"
            write_jpeg(root / "val/images" / name, seed := seed + 1)
            annotations.append(f"{name}\t{wnid}\t{i}\t7\t40\t63")
    (root / "val/val_annotations.txt").write_text("\n".join(annotations) + "\n")
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    words = [
        "n00000001\tgoldfish, Carassius auratus",
        "n00000003\tEgyptian cat",
        "n09999999\tunused",
    ]
    (root / "words.txt").write_text("\n".join(words) + "\n")
    return root


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A folder for --data_dir, with a small Tiny ImageNet in it."""
    write_tree(tmp_path / "data" / "tiny-imagenet-200")
    return tmp_path / "data"


@pytest.fixture
def tree(data_dir: Path) -> Path:
    return data_dir / "tiny-imagenet-200"


def run(*command: str | Path, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess:
    """`run("data.py", "check", …)` as a user would, from anywhere."""
    script, *arguments = command
    return subprocess.run(
        [sys.executable, REPO / script, *arguments],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_mistake(done: subprocess.CompletedProcess, *words: str) -> None:
    """Exit status 2, one or two lines on stderr with all these words, no traceback."""
    assert done.returncode == 2, done.stderr + done.stdout
    assert 1 <= len(done.stderr.strip().splitlines()) <= 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def all_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


EPOCHS = 5  # of a run by `start`


@pytest.fixture(scope="session")
def zygote():
    from runs import Zygote

    process = Zygote()
    yield process
    process.close()


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory) -> Path:
    """A folder for --data_dir, with 140 images of the built-in data set."""
    from shapes import write_shapes

    folder = tmp_path_factory.mktemp("data")
    write_shapes(folder / "shapes", train_per_class=10, val_per_class=4)
    return folder


@pytest.fixture(scope="session")
def start(zygote, shapes_dir):
    """Start a run of 5 epochs of 7 steps, about half a second each."""
    from runs import Run

    base = {
        "dataset": "shapes",
        "data_dir": shapes_dir,
        "image_size": 16,
        "model": "small",
        "epochs": EPOCHS,
        "batch_size": 16,
        "max_lr": 0.05,
        "workers": 0,
    }

    def run(folder: Path, run_id: str = "run", patch: str = "", env: dict | None = None, **changed):
        arguments = [f"--{key}={value}" for key, value in {**base, **changed}.items()]
        return Run(zygote, folder, *arguments, run_id=run_id, patch=patch, **(env or {}))

    return run


@pytest.fixture(scope="session")
def undisturbed(start, tmp_path_factory) -> Path:
    """The folder of a run that was left alone."""
    run = start(tmp_path_factory.mktemp("undisturbed"), workers=2)
    assert run.wait() == 0, run.text
    return run.folder


@pytest.fixture
def server():
    """W&B's, as far as the client needs it."""
    from wandb_server import WandbServer

    with WandbServer() as started:
        yield started
        assert started.unknown == []


@pytest.fixture
def sweep(tmp_path, server, shapes_dir):
    """Make sweeps on the server."""
    from sweeps import Sweep

    made = []

    def make(**changed) -> Sweep:
        made.append(Sweep(tmp_path, server, changed.pop("data_dir", shapes_dir), **changed))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture
def slowly(tmp_path, monkeypatch):
    """Every train.py that starts from here on rests in each step, and leaves a file `slow/<run id>`
    with the time at which the first request reached it (`sitecustomize` is Python's).
    """
    from sweeps import SLOW_STEPS, SLOWLY

    (tmp_path / "slow").mkdir()
    code = SLOWLY.replace("SECONDS", SLOW_STEPS)
    (tmp_path / "slow" / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "slow"))


@pytest.fixture
def offline(tmp_path):
    """Make sweeps without a server."""
    from procs import kill_all
    from studies import Offline

    made = []

    def make(**changed) -> Offline:
        made.append(Offline(tmp_path, **changed))
        return made[-1]

    yield make
    for one in made:
        for driver in one.drivers:
            driver.kill()
            driver.wait()
        kill_all(one.processes())

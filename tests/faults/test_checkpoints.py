"""A run whose last.pt was damaged, swapped or made by an enemy: it is refused in one line, and no
code in it runs.
"""

import contextlib
import errno
import io
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

import checkpoint
from cli import Mistake
from config import from_mapping
from ranks import ALONE
from record import Record
from run_folder import RunFolder
from runs import history_lines, summary


class Evil:
    """Calls a function as soon as it is unpickled."""

    def __init__(self, function: Callable, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def cut(part: int, whole: bytes, mark: Path) -> bytes:
    return whole[: min(len(whole) * part // 20, len(whole) - 1)]


def flip(at: int, whole: bytes) -> bytes:
    """The `at`th bit is the other one."""
    damaged = bytearray(whole)
    damaged[at // 8] ^= 1 << at % 8
    return bytes(damaged)


def flip_any(seed: int, whole: bytes, mark: Path) -> bytes:
    return flip(random.Random(seed).randrange(8 * len(whole)), whole)


def flip_in_directory(seed: int, whole: bytes, mark: Path) -> bytes:
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        start = archive.start_dir
    return flip(random.Random(seed).randrange(8 * start, 8 * len(whole)), whole)


def flip_to_folder(whole: bytes, mark: Path) -> bytes:
    """The attributes of the first weights, 8 bytes before their name, make a folder of them."""
    return flip(8 * (whole.rindex(b"archive/data/0") - 8) + 4, whole)


def rewritten(whole: bytes, changed: dict[str, bytes | None]) -> bytes:
    """The archive with members changed, added or, by None, left out; its checksums are right."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(file, "w") as new:
        root = old.namelist()[0].split("/")[0]
        members = {name.removeprefix(f"{root}/"): old.read(name) for name in old.namelist()}
        for name, content in {**members, **changed}.items():
            if content is not None:
                new.writestr(f"{root}/{name}", content)
    return file.getvalue()


def torch_saved(state: object, **how) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, **how)
    return file.getvalue()


def loaded(whole: bytes) -> dict:
    return torch.load(io.BytesIO(whole), weights_only=True)


def other_config(key: str, value: object, whole: bytes, mark: Path) -> bytes:
    state = loaded(whole)
    return torch_saved({**state, "config": {**state["config"], key: value}})


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def arrays(**members: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **members)
    return file.getvalue()


WRONG_CALL = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R."  # without arguments
HOSTILE = {
    "a pickle": lambda whole, mark: pickle.dumps({"model": Evil(Path.touch, mark)}),
    "a pickle of protocol 0": lambda whole, mark: pickle.dumps(Evil(Path.touch, mark), 0),
    "saved by torch": lambda whole, mark: torch_saved(
        {**loaded(whole), "model": Evil(Path.touch, mark)}
    ),
    "saved by torch, in its old format": lambda whole, mark: torch_saved(
        {**loaded(whole), "model": Evil(Path.touch, mark)}, _use_new_zipfile_serialization=False
    ),
    "a key of it": lambda whole, mark: torch_saved({Evil(exec, f"open({str(mark)!r}, 'w')"): 1}),
    "another data.pkl": lambda whole, mark: rewritten(
        whole, {"data.pkl": pickle.dumps(Evil(Path.touch, mark), 2)}
    ),
    "another data.pkl that asks the shell": lambda whole, mark: rewritten(
        whole, {"data.pkl": pickle.dumps(Evil(os.system, f"touch '{mark}'"), 2)}
    ),
    "another data.pkl that evaluates": lambda whole, mark: rewritten(
        whole, {"data.pkl": pickle.dumps([Evil(eval, f"open({str(mark)!r}, 'w')")], 2)}
    ),
}
OTHERS = {
    "nothing": lambda whole, mark: b"",
    "zeros": lambda whole, mark: bytes(len(whole)),
    "text": lambda whole, mark: b"no checkpoint",
    "text behind": lambda whole, mark: whole + b"\n" * 100_000,
    "an empty zip": lambda whole, mark: zipped(),
    "a zip": lambda whole, mark: zipped(a=b"1", b=b"2"),
    "arrays of numpy": lambda whole, mark: arrays(model=np.zeros(9), epoch=np.ones(1)),
    "a tensor": lambda whole, mark: torch_saved(torch.zeros(9)),
    "a checkpoint of something else": lambda whole, mark: torch_saved({"state_dict": {}}),
    "no optimizer": lambda whole, mark: torch_saved(
        {key: value for key, value in loaded(whole).items() if key != "optimizer"}
    ),
    "a member is missing": lambda whole, mark: rewritten(whole, {"data/0": None}),
    "a member is short": lambda whole, mark: rewritten(whole, {"data/0": b"1234"}),
    "no data.pkl": lambda whole, mark: rewritten(whole, {"data.pkl": None}),
    "a data.pkl that calls torch wrongly": lambda whole, mark: rewritten(
        whole, {"data.pkl": WRONG_CALL}
    ),
    "like a script of torch": lambda whole, mark: rewritten(
        whole, {"constants.pkl": b"\x80\x02)."}
    ),
}
CONFIGS = {"seed": 7, "max_lr": 0.06, "epochs": 4, "model": "resnet18", "dataset": "cifar10"}
CUT, BIT, CONFIG = "truncated", "a flipped bit", "of another config"
CASES = {  # kind of fault, and what it makes of a whole file
    **{f"cut at {part}/20": (CUT, partial(cut, part)) for part in range(1, 21)},
    **{f"bit {seed}": (BIT, partial(flip_any, seed)) for seed in range(40)},
    **{f"bit {seed} in directory": (BIT, partial(flip_in_directory, seed)) for seed in range(20)},
    "bit of a folder": (BIT, flip_to_folder),
    **{f"other {key}": (CONFIG, partial(other_config, key, CONFIGS[key])) for key in CONFIGS},
    **{f"hostile: {name}": ("hostile", make) for name, make in HOSTILE.items()},
    **{f"else: {name}": ("something else", make) for name, make in OTHERS.items()},
}


@pytest.fixture(scope="module")
def begun(start, tmp_path_factory) -> Path:
    """The folder of a run that was killed after its first epoch."""
    run = start(tmp_path_factory.mktemp("begun"), epochs=3)
    run.until_epoch(1)
    run.kill()
    return run.folder


@pytest.fixture(scope="module")
def whole(begun) -> bytes:
    return (begun / "last.pt").read_bytes()


class Taker:
    """In a learner's place: keeps what a run would go on with."""

    ranks = ALONE
    state = None

    def load_state_dict(self, state: dict) -> None:
        self.state = state


def resumed(begun: Path, folder: Path) -> dict | None:
    """The state that a run in `folder` goes on with; None where it is refused in a line."""
    config = from_mapping(yaml.safe_load((begun / "config.yaml").read_text()))
    before = loaded((begun / "last.pt").read_bytes())
    data = SimpleNamespace(fingerprint=before["split"], order=before["order"])
    run, taker = RunFolder(folder.parent, folder.name), Taker()
    try:
        Record(config, data, run).resume(taker)
    except Mistake as mistake:
        (line,) = str(mistake).splitlines()
        assert str(folder / "last.pt") in line
        return None
    finally:
        run.close()
    assert taker.state
    return taker.state


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_is_whole_or_refused(fault, begun, whole, tmp_path, case):
    kind, make = CASES[case]
    path, mark = tmp_path / "run" / "last.pt", tmp_path / "mark"
    path.parent.mkdir()
    path.write_bytes(make(whole, mark))
    with fault(f"checkpoint: {kind}"):
        state = resumed(begun, path.parent)
        if kind == BIT and state:  # in a date, or between two members
            assert torch_saved(state) == torch_saved(loaded(whole))
        else:
            assert state is None
        assert not mark.exists()


def test_the_cases_are_what_they_seem(begun, whole, tmp_path):
    """What is whole is taken, and the hostile files do harm where a pickle is trusted."""
    path = tmp_path / "run" / "last.pt"
    path.parent.mkdir()
    for content in (whole, rewritten(whole, {})):
        path.write_bytes(content)
        assert torch_saved(resumed(begun, path.parent)) == torch_saved(loaded(whole))
    for number, make in enumerate(HOSTILE.values()):
        mark = tmp_path / str(number)
        path.write_bytes(make(whole, mark))
        with contextlib.suppress(Exception):
            torch.load(path, weights_only=False)
        assert mark.exists(), list(HOSTILE)[number]


def test_a_folder_is_no_checkpoint(fault, tmp_path):
    with fault("checkpoint: something else"), pytest.raises(Mistake) as mistake:
        checkpoint.load(tmp_path, checkpoint.KEYS)
    (line,) = str(mistake.value).splitlines()
    assert str(tmp_path) in line


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), PermissionError(13, "no"), MemoryError()]
)
def test_what_is_not_the_files_fault(monkeypatch, begun, error):
    """A checkpoint is not called damaged where the disk or the memory failed."""

    def fail(*_arguments, **_named):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(type(error)):
        checkpoint.load(begun / "last.pt", checkpoint.KEYS)


SHOWN = ("cut at 10/20", "bit 0", "hostile: another data.pkl")


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=() if name in SHOWN else pytest.mark.slow) for name in CASES]
)
def test_a_run_refuses_it(fault, start, begun, whole, tmp_path, case):
    kind, make = CASES[case]
    folder, mark = tmp_path / "runs" / begun.name, tmp_path / "mark"
    shutil.copytree(begun, folder)
    (folder / "last.pt").write_bytes(make(whole, mark))
    unharmed = kind == BIT and resumed(begun, folder)
    with fault(f"checkpoint: {kind}, by the command"):
        run = start(tmp_path, epochs=3)
        status, lines = run.wait(), history_lines(folder)
        if unharmed:
            assert status == 0, run.text
            assert summary(folder)["state"] == "finished"
            assert lines[: len(history_lines(begun))] == history_lines(begun)
        else:
            assert status == 2, run.text
            assert 1 <= len(run.text.splitlines()) <= 2, run.text
            assert "last.pt" in run.text
            assert lines == history_lines(begun)
        assert not mark.exists()

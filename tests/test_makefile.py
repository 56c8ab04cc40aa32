"""The targets that need no installation; the others are what a fresh clone runs."""

import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import REPO, all_files

REQUIREMENTS = ("requirements.txt", "requirements-dev.txt", "requirements-bench.txt")


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True)


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "a clone"
    folder.mkdir()
    for name in ("Makefile", *REQUIREMENTS):
        shutil.copy(REPO / name, folder)
    return folder


def test_help_is_the_default_and_lists_every_target(checkout):
    done = make(checkout)
    assert done.returncode == 0
    for target in ("setup", "demo", "test", "test-all", "lint", "bench"):
        assert f"make {target} " in done.stdout


@pytest.mark.parametrize("target", ["setup", "demo", "test", "lint", "bench"])
def test_an_old_python_is_named_and_nothing_is_made(checkout, target):
    old = checkout / "python2.7"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    before = all_files(checkout)
    done = make(checkout, target, "PYTHON=./python2.7")
    assert done.returncode == 2
    assert "needs Python 3.11 or newer, and ./python2.7 is not" in done.stderr
    assert all_files(checkout) == before


def test_no_dependency_of_a_copyleft_licence_or_unpinned():
    for name in REQUIREMENTS:
        for line in (REPO / name).read_text().splitlines():
            if line and not line.startswith(("#", "-r")):
                package, version = line.split("==")
                assert version[0].isdigit()
                assert package.lower() != "albumentationsx"  # AGPL

"""Checkpoints: written whole, read without running anything that is in them."""

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import torch

from cli import Mistake

KEYS = ("model", "config", "epoch")  # of best.pt; last.pt has more


def save(state: dict[str, Any], file: BinaryIO) -> None:
    torch.save(state, file)


def load(path: Path, keys: tuple[str, ...], device: torch.device | str = "cpu") -> dict[str, Any]:
    """A checkpoint with these keys; a Mistake where the file is damaged or something else."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise Mistake(f"{path} is missing") from None
    # torch, zipfile and the unpickler each have their own words for a file that is not whole.
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        raise Mistake(f"{path} is damaged or no checkpoint; remove it to begin anew") from error
    if not isinstance(state, dict) or not set(keys) <= set(state):
        raise Mistake(f"{path} is no checkpoint of this program; remove it to begin anew")
    return state

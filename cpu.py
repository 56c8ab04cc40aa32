"""What a CPU needs to train fast: the number format that it multiplies quickly, and an allocator
that does not give large blocks back.
"""

import ctypes
import os
import platform
from functools import cache
from pathlib import Path

from pool import cores

M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1  # glibc's malloc.h


def multiplies_bf16() -> bool:
    return bool({"amx_bf16", "avx512_bf16"} & _flags())


def has_amx() -> bool:
    return "amx_bf16" in _flags()


def gains_by_fewer_products(bf16: bool) -> bool:
    """Those on which it was seen: with vectors of 256 bits, and in bf16 with AVX-512 alone."""
    flags = _flags()
    if bf16:
        return "avx512_bf16" in flags and not has_amx()
    return "avx2" in flags and "avx512f" not in flags


def _flags() -> set[str]:
    """What the processor has, as Linux names it for x86-64."""
    path = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not path.is_file():
        return set()
    line = next((line for line in path.read_text().splitlines() if line.startswith("flags")), "")
    return set(line.split())


def keep_to_allowed_cores() -> None:
    """torch takes a thread for each core that it sees; in a container that may use a part of their
    time they would wait for each other.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores():
        torch.set_num_threads(cores())


@cache
def keep_memory() -> None:
    """Tell glibc's malloc to keep what is freed, for the next step, which needs just as much.

    As it comes, it maps each of a step's large blocks anew and unmaps it when it is freed, and the
    kernel writes zeros into every page of it: 12,000 page faults an image. Only a fork gives it
    back, as loader workers would otherwise keep a copy of it for good. Where malloc is not glibc's
    (macOS, musl, a preloaded jemalloc) nothing happens.
    """
    libc = ctypes.CDLL(None)
    if platform.libc_ver()[0] == "glibc" and hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never
        os.register_at_fork(before=lambda: libc.malloc_trim(0))

"""The processes of one run, as torchrun starts them: which one this is, and what they do together.

Every process has the same config and the same data and takes its part of each batch. The first one
alone has the run's folder, W&B's run and the user's ear. Gradients are averaged by torch's DDP (by
NCCL on GPUs); everything else goes through gloo, so that no GPU is waited for.

Without torchrun there is one process, and every method here does nothing at all.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from cli import Failure, Mistake
from pool import cores

PROCESSES = "TINYSWEEP_PROCESSES"  # how many sweep.py wants a run to have
REQUESTS = (None, "stop", "interrupt", "preempt")  # where processes differ, the last one counts
# torchrun itself would die of SIGUSR1 (an older one does, then its processes see it gone).
FORWARDED = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


class Lost(Failure):
    """Another process of this run has ended. Why, it has said itself."""

    said_by_all = True


@dataclass(frozen=True)
class Ranks:
    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> "Ranks":
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        return cls(*(int(os.environ[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.world > 1

    def part(self, count: int) -> slice:
        """This process's part of a batch of `count` images; the first one's is never empty."""
        begin, end = (-(-count * rank // self.world) for rank in (self.rank, self.rank + 1))
        return slice(begin, end)

    def join(self) -> None:
        """Wait for the others."""
        if not self.several:
            return
        import torch
        import torch.distributed as dist

        cuda = torch.cuda.is_available()
        with _together():
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")

    def leave(self) -> None:
        if self.several:
            import torch.distributed as dist

            dist.destroy_process_group()

    def share(self, value: Any) -> Any:
        """What the first process has."""
        if not self.several:
            return value
        import torch.distributed as dist

        box = [value if self.first else None]
        with _together():
            dist.broadcast_object_list(box)
        return box[0]

    def share_tensors(self, tensors: Any) -> None:
        """Each gets the first process's values."""
        if self.several:
            import torch.distributed as dist

            with _together():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def gather(self, value: Any) -> list[Any]:
        """What each process has, at every one."""
        if not self.several:
            return [value]
        import torch.distributed as dist

        box = [None] * self.world
        with _together():
            dist.all_gather_object(box, value)
        return box

    def in_turn(self, values: list[Any]) -> list[Any]:
        """All processes' values: the first of each, the second of each, ..."""
        if not self.several:
            return values
        missing = object()
        rows = zip_longest(*self.gather(values), fillvalue=missing)
        return [value for value in chain(*rows) if value is not missing]

    def sums(self, rows: list[list[float]]) -> list[list[float]]:
        """Each number added up over all processes."""
        if not self.several or not rows:
            return rows
        return self._reduced(rows, "SUM")

    def agree(self, request: str | None) -> str | None:
        """One request for all, so that all leave their work at the same place."""
        if not self.several:
            return request
        ((agreed,),) = self._reduced([[float(REQUESTS.index(request))]], "MAX")
        return REQUESTS[int(agreed)]

    def _reduced(self, rows: list[list[float]], how: str) -> list[list[float]]:
        import torch
        import torch.distributed as dist

        numbers = torch.tensor(rows, dtype=torch.float64)
        with _together():
            dist.all_reduce(numbers, getattr(dist.ReduceOp, how))
        return numbers.tolist()

    @contextmanager
    def first_of_machine(self) -> Iterator[None]:
        """For what finds its work done where another process did it: one goes ahead."""
        if self.several and self.local_rank > 0:
            self.gather(None)
        yield
        if self.several and self.local_rank == 0:
            self.gather(None)


ALONE = Ranks()


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise lost(error) or error from error


def lost(error: Exception) -> Lost | None:
    """What gloo and NCCL raise where another process has gone."""
    text = str(error)
    if type(error).__name__.startswith("Dist") or "gloo" in text or "NCCL" in text:
        return Lost(f"another process of this run has ended ({text.strip().splitlines()[-1]})")
    return None


def start_processes(script: str, arguments: list[str]) -> None:
    """Become torchrun, with this command in so many processes as sweep.py wants a run to have.

    The number of this process, and so its parent and its signals, stay what they are.
    """
    count = os.environ.get(PROCESSES, "1")
    if not count.isdecimal() or int(count) < 1:
        raise Mistake(f"{PROCESSES}={count} must be a whole number of 1 or more")
    if count == "1" or "TORCHELASTIC_RUN_ID" in os.environ:
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores() // int(count), 1)))
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", FORWARDED)
    flags = ["--standalone", f"--nproc_per_node={count}"]
    command = [sys.executable, "-m", "torch.distributed.run", *flags, script, *arguments]
    sys.stdout.flush()
    os.execv(sys.executable, command)

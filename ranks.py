"""The processes of one run, as torchrun starts them: which one this is, and what they do together.

Every process has the same config and the same data and takes its part of each batch. The first one
alone has the run's folder, W&B's run and the user's ear. Gradients are averaged by torch's DDP (by
NCCL on GPUs); what is here goes through gloo on the CPU, where the end of another process is seen
at once, whatever a GPU is waiting for.

Where there is one process, nothing here does anything.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain, zip_longest
from typing import Any

from cli import Failure, Mistake
from pool import cores

PROCESSES = "TINYSWEEP_PROCESSES"  # how many sweep.py wants a run to have
REQUESTS = (None, "stop", "interrupt", "preempt")  # where processes differ, the last one counts
# torchrun itself would die of SIGUSR1 (an older one does, then its processes see it gone).
FORWARDED = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
PATIENCE = timedelta(hours=12)  # while one decodes the images
GONE = "another process of this run has ended"


class Lost(Failure):
    """Why it has ended, the other process has said itself."""

    said_by_all = True


@dataclass(frozen=True)
class Ranks:
    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    launched: bool = False  # by torchrun

    @classmethod
    def of_environment(cls) -> "Ranks":
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        keys = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        return cls(*(int(os.environ[key]) for key in keys), launched=True)

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

        cuda = torch.cuda.device_count() >= self.local_world  # nccl takes none of them twice
        os.environ.setdefault("RDMAV_FORK_SAFE", "1")  # loader workers are forked after it begins
        with together():
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
        with together():
            dist.broadcast_object_list(box)
        return box[0]

    def share_tensors(self, tensors: Any) -> None:
        """Each gets the first process's values."""
        if self.several:
            import torch.distributed as dist

            with together():
                for tensor in tensors:
                    values = tensor.cpu()
                    dist.broadcast(values, 0)
                    tensor.copy_(values)

    def outlast_first(self) -> None:
        """Wait until the first process has ended: torchrun ends all with the first one that ends by
        an error, and that one has the run to end.
        """
        with suppress(Lost):
            self.share(None)

    def gather(self, value: Any) -> list[Any]:
        """What each process has, at every one."""
        if not self.several:
            return [value]
        import torch.distributed as dist

        box = [None] * self.world
        with together():
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
        with together():
            dist.all_reduce(numbers, getattr(dist.ReduceOp, how))
        return numbers.tolist()

    @contextmanager
    def first_of_machine(self) -> Iterator[None]:
        """For what finds its work done where another process did it: one goes ahead."""
        if not self.several:
            yield
            return
        import torch.distributed as dist

        with together():
            # gloo's own patience, half an hour, is for what all do in step.
            group = dist.new_group(backend="gloo", timeout=PATIENCE)
        if self.local_rank > 0:
            self._meet(group)
        yield
        if self.local_rank == 0:
            self._meet(group)

    def _meet(self, group: Any) -> None:
        import torch.distributed as dist

        with together():
            dist.barrier(group)


ALONE = Ranks()


@contextmanager
def together() -> Iterator[None]:
    """For what all processes do: where one of them has gone, it fails in one line."""
    try:
        yield
    except RuntimeError as error:
        failure = of_group(error)
        if failure is None:
            raise
        raise failure from error


def of_group(error: Exception) -> Failure | None:
    """What gloo, NCCL and the rendezvous raise, in our words."""
    text = str(error)
    if not (type(error).__name__.startswith("Dist") or "gloo" in text or "NCCL" in text):
        return None
    if re.search(r"(closed|reset) by (remote )?peer|broken pipe|remote process", text, re.I):
        return Lost(GONE)
    return Failure(f"the processes of this run do not reach each other: {text.splitlines()[0]}")


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

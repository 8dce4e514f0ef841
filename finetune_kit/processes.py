"""The processes that train together, as lightning-fabric set them up by torch.distributed; one, where nothing did.

Nothing here imports torch before there are several, so that ``ftkit --help`` answers at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")

TIMEOUT = timedelta(seconds=60)
"""How long a step waits for the other processes before it gives them up. One that died is noticed at once."""
PATIENCE = timedelta(days=7)
"""How long they wait for what one does alone, such as reading events or writing a large state."""


class Job(NamedTuple):
    """What a launcher started: processes in all, on each machine, and machines."""

    size: int
    per_machine: int
    machines: int


def started_job(environment: Mapping[str, str] | None = None) -> Job | None:
    """Return the job of several processes that this one was started in, by torchrun, `ftkit` or srun; else None."""
    env = os.environ if environment is None else environment
    if "TORCHELASTIC_RUN_ID" in env:
        job = Job(*(int(env[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")))
    elif "SLURM_STEP_NUM_TASKS" in env:  # srun sets it, and a batch script without srun does not have it
        size, machines = int(env["SLURM_STEP_NUM_TASKS"]), int(env.get("SLURM_STEP_NUM_NODES", "1"))
        job = Job(size, size // machines, machines)
    else:
        return None
    return job if job.size > 1 else None


@dataclass(frozen=True)
class Processes:
    """Those that train together, seen from one of them; all do the same in the same order.

    Args:
        rank: Which one this is, from 0.
        size: How many there are.
        group: What they wait for one another with, for as long as it takes; None for one process.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and tells what happens."""
        return self.rank == 0

    def alone(self, work: Callable[[], T]) -> T:
        """Return what some work returns that only the first process does; the others wait for it.

        Args:
            work: Reads or writes what is there once for all; what it returns can be sent.
        """
        if self.size == 1:
            return work()
        import torch.distributed as dist

        sent: list[Any] = [work() if self.is_first else None]
        dist.broadcast_object_list(sent, src=0, group=self.group)
        return sent[0]

    def dealt(self, parts: Iterable[T]) -> Iterable[T]:
        """Return this process's of some parts, dealt in turns; `collected` puts what came of them in order."""
        return parts if self.size == 1 else islice(parts, self.rank, None, self.size)

    def collected(self, results: Sequence[T]) -> list[T]:
        """Return what came of all parts, in their order, given what came of this process's (see `dealt`)."""
        if self.size == 1:
            return list(results)
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, list(results), group=self.group)
        return [found[n % self.size][n // self.size] for n in range(sum(map(len, found)))]

    def largest(self, *numbers: int) -> list[int]:
        """Return the largest that any process gives, of each number."""
        if self.size == 1:
            return list(numbers)
        import torch
        import torch.distributed as dist

        values = torch.tensor(numbers)
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return values.tolist()

    def shares(self, total: int) -> list[slice]:
        """Return which of ``total`` things each process takes: as many each, one after the other, all disjoint."""
        return slices(total, self.size)


def slices(total: int, number: int) -> list[slice]:
    """Return ``number`` slices that together are ``range(total)``, as long as one another or by one longer."""
    return [slice(total * n // number, total * (n + 1) // number) for n in range(number)]


_HERE = Processes()


def here() -> Processes:
    """Return the processes that this one trains together with."""
    return _HERE


def join(fabric: Fabric) -> Processes:
    """Join the processes of a fabric that has been launched; from then on `here` returns them."""
    global _HERE  # a process belongs to one job for as long as it lives
    if fabric.world_size > 1 and _HERE.size == 1:
        import torch.distributed as dist

        group = dist.new_group(backend="gloo", timeout=PATIENCE)
        _HERE = Processes(fabric.global_rank, fabric.world_size, group)
    return _HERE


def leave() -> None:
    """Leave the job when its work is done, all together: none may still need another."""
    global _HERE
    if _HERE.size > 1:
        import torch.distributed as dist

        dist.barrier(group=_HERE.group)
        dist.destroy_process_group()
        _HERE = Processes()


def is_lost(error: BaseException) -> bool:
    """Return whether an error says that another process is gone, or does not answer."""
    if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
        return True
    return here().size > 1 and isinstance(error, RuntimeError) and "gloo" in str(error).lower()

"""How far a job over many partitions is, on stderr: one moving line on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING

from finetune_kit.cli.output import stderr, warn
from finetune_kit.recommendation.job import TELL_EVERY

if TYPE_CHECKING:
    from typing_extensions import Self

    from finetune_kit.recommendation.job import Task
    from finetune_kit.recommendation.receipts import Receipt

SAY_EVERY = 10.0
"""Seconds between two lines where there is no terminal."""


class PartitionView(AbstractContextManager["PartitionView"]):
    """Shows partitions done and to go, users per second, and about how long it will take.

    Args:
        tasks: What is to be done.
        num_before: Partitions that were done before.
    """

    def __init__(self, tasks: Sequence[Task], num_before: int) -> None:
        self._console = stderr()
        self._status = self._console.status("")
        self._total = num_before + len(tasks)
        self._num_done = num_before
        self._bytes_left = sum(task.partition.num_bytes for task in tasks)
        self._bytes_done = 0
        self._users: dict[str, int] = defaultdict(int)
        """By partition, how many have been scored since this began."""
        self._began: float | None = None
        """When the first partition was begun, as far as is known: not when workers were started."""
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        """Begin."""
        if self._console.is_terminal and self._num_done < self._total:
            self._status.update(f"{self._num_done:,} of {self._total:,} partitions; starting workers")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End; say what an interruption leaves."""
        self._status.stop()
        if isinstance(error, KeyboardInterrupt):
            warn(f"{self._num_done:,} of {self._total:,} partitions are done; the same command goes on")

    @property
    def seconds(self) -> float:
        """How long partitions have been scored."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    def scored(self, task: Task, num_users: int) -> None:
        """Count users of a partition that is being scored."""
        self._has_lasted(TELL_EVERY)
        self._users[task.partition.name] += num_users
        self._show()

    def finished(self, task: Task, receipt: Receipt) -> None:
        """Count a partition."""
        self._has_lasted(receipt.totals.seconds)
        self._users[task.partition.name] = receipt.totals.users
        self._num_done += 1
        self._pass(task)

    def failed(self, task: Task, fault: str) -> None:
        """Warn of a partition that can't be done."""
        warn(f"partition {task.partition.name}: {fault}")
        self._pass(task)

    def lost(self, task: Task, how: str) -> None:
        """Warn of a lost worker."""
        self._users.pop(task.partition.name, None)
        warn(f"partition {task.partition.name}: {how.rstrip('.')}; it is tried again at the end")

    def text(self, seconds: float) -> str:
        """Return how far it is after so many seconds."""
        users = sum(self._users.values())
        said = f"{self._num_done:,} of {self._total:,} partitions, {users:,} users, {users / seconds:,.0f} users/s"
        if self._bytes_done and self._bytes_left:
            said += f", about {_duration(seconds * self._bytes_left / self._bytes_done)} left"
        return said

    def _has_lasted(self, seconds: float) -> None:
        began = time.monotonic() - seconds
        self._began = began if self._began is None else min(began, self._began)

    def _pass(self, task: Task) -> None:
        self._bytes_left -= task.partition.num_bytes
        self._bytes_done += task.partition.num_bytes
        self._show()

    def _show(self) -> None:
        text = self.text(max(self.seconds, 1e-9))
        if self._console.is_terminal:
            self._status.update(text)
        elif time.monotonic() - self._said > SAY_EVERY:
            self._said = time.monotonic()
            self._console.print(text)


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), seconds / 3600
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{hours:.1f} h"

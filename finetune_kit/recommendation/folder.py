"""From a folder of histories to a folder of recommendations: partition by partition, in several workers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import Protocol

from finetune_kit.errors import FinetuneKitError, StorageError
from finetune_kit.recommendation.job import Job, Task, prepare
from finetune_kit.recommendation.receipts import Receipt
from finetune_kit.recommendation.sample import Owners
from finetune_kit.workers import Outcome, Workers
from finetune_kit.workers.telling import NoRoom

TRIES = 3
"""How often a partition is begun whose worker is lost; the last time it has the machine to itself."""


class Watcher(Protocol):
    """Is told how far the job is."""

    def scored(self, task: Task, num_users: int) -> None:
        """Hear that a worker has scored so many more users of a partition."""

    def finished(self, task: Task, receipt: Receipt) -> None:
        """Hear that a partition is done."""

    def failed(self, task: Task, fault: str) -> None:
        """Hear that a partition can't be done."""

    def lost(self, task: Task, how: str) -> None:
        """Hear that a partition's worker was lost, and that it will be tried again."""


def recommend_partitions(
    job: Job, tasks: Sequence[Task], workers: Workers, alone: Workers, owners: Owners, watcher: Watcher
) -> list[Receipt]:
    """Score partitions; return the receipts of those that are done then.

    Args:
        job: How.
        tasks: Which.
        workers: Who.
        alone: One worker, for what others were lost with.
        owners: Knows users of the partitions that were done before.
        watcher: Is told how far it is.

    Raises:
        FinetuneKitError: When workers can't be prepared, or partitions failed: after all others are done.
        DataError: When a user has events in two partitions.
        StorageError: When the disk is full.
    """
    receipts: list[Receipt] = []
    faults: list[Outcome] = []
    left = list(tasks)
    for number in range(TRIES):
        is_last = number == TRIES - 1
        lost: list[Task] = []
        outcomes = (alone if is_last else workers).carry_out(partial(prepare, job), left, watcher.scored)
        with closing(outcomes):  # workers end, however this does
            for outcome in outcomes:
                if outcome.is_lost and not is_last:
                    watcher.lost(outcome.task, outcome.fault)
                    lost.append(outcome.task)
                elif outcome.fault:
                    watcher.failed(outcome.task, outcome.fault)
                    faults.append(outcome)
                else:
                    receipts.append(_receipt(outcome, owners))
                    watcher.finished(outcome.task, outcome.result)
        left = lost
    if faults:
        where = next((fault.where for fault in faults if fault.where), "")
        raise FinetuneKitError(
            f"{len(faults):,} of {len(tasks):,} partitions failed, see above; the same command tries them again"
        ) from (RuntimeError(where) if where else None)
    return receipts


def _receipt(outcome: Outcome, owners: Owners) -> Receipt:
    if isinstance(outcome.result, NoRoom):
        raise StorageError(f"{outcome.result.reason}, then go on with the same command")
    owners.add(outcome.result.partition, outcome.result.users)
    return outcome.result

"""What a worker does: it loads a run once, then scores partition after partition."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from finetune_kit.data.database import MAX_THREADS
from finetune_kit.data.dataset import Dataset
from finetune_kit.errors import DataError, FinetuneKitError, StorageError
from finetune_kit.recommendation.file import recommend_file
from finetune_kit.recommendation.layout import Layout
from finetune_kit.recommendation.partitions import Partition
from finetune_kit.recommendation.receipts import JOB, RECEIPTS, Content, Receipt, Receipts, digest, remove_leftovers
from finetune_kit.recommendation.recommender import Recommendation, Recommender
from finetune_kit.recommendation.sample import Sample
from finetune_kit.recommendation.workshop import workshop
from finetune_kit.training.assemble import load_run
from finetune_kit.training.device import make_fabric
from finetune_kit.workers import Ask
from finetune_kit.workers import Job as Work

TELL_EVERY = 1.0
"""Seconds between two words of a worker on how many users it has scored."""


@dataclass(frozen=True)
class Job:
    """How partitions are scored; all paths are whole, as a worker may be elsewhere.

    Args:
        run: The run's folder.
        dataset: Its dataset's folder.
        base: Its base's folder, where that was moved.
        source: The root of the input.
        output: The folder to write.
        identity: What decides the numbers.
        device: As of `make_fabric`.
        precision: Likewise.
        top: As of `Recommender`.
        remove_seen: Likewise.
        separate_ids: Likewise.
        batch_size: Users scored at once.
        memory_limit: Of DuckDB in each worker.
    """

    run: Path
    dataset: Path
    base: Path | None
    source: Path
    output: Path
    identity: dict[str, Any]
    device: str
    precision: str
    top: int
    remove_seen: bool
    separate_ids: bool
    batch_size: int
    memory_limit: str


@dataclass(frozen=True)
class Task:
    """One partition and its columns."""

    partition: Partition
    layout: Layout


@dataclass(frozen=True)
class NoRoom:
    """The result of a partition for which the disk had no room: others need not try."""

    told: str


def prepare(job: Job) -> Work:
    """Load the run; return what scores one partition and returns its `Receipt` or `NoRoom`.

    Raises:
        FinetuneKitError: When the run can't be loaded, or a path is not there on this machine.
    """
    _refuse_unseen(job)
    run = load_run(job.run, Dataset.open(job.dataset), job.base)
    fabric = make_fabric(job.device, job.precision)
    recommender = Recommender(run, fabric, top=job.top, remove_seen=job.remove_seen, separate_ids=job.separate_ids)
    return partial(_score, job, recommender)


def _refuse_unseen(job: Job) -> None:
    for what, path in (
        ("the run", job.run / "model.json"),
        ("its dataset", job.dataset),
        ("--input", job.source),
        ("--output", job.output / RECEIPTS / JOB),
    ):
        if not path.exists():
            raise FinetuneKitError(
                f"{what} is not there for a worker on {platform.node()}: no {path}; with --ray, all paths must lie on "
                "storage that all machines of the cluster see under the same name"
            )


def _score(job: Job, recommender: Recommender, task: Task, ask: Ask) -> Receipt | NoRoom:
    output, source = job.output / task.partition.name, task.partition.file
    watch = _Watch(ask, is_sampled=not task.layout.is_per_user)
    remove_leftovers(output)  # of a worker that was lost with this partition in hand
    before = source.stat()
    try:
        with workshop(output, job.memory_limit) as shop:
            shop.connection.execute(f"SET threads = {min(MAX_THREADS, torch.get_num_threads())}")
            totals = recommend_file(recommender, task.layout, output, shop, job.batch_size, watch)
        held = Content.of(source)
        if (held.num_bytes, held.modified) != (before.st_size, before.st_mtime_ns):
            output.unlink()
            raise DataError(f"{source} was changed while it was read; the same command reads it again")
        receipt = Receipt(
            task.partition.name, digest(job.identity), held, Content.of(output), totals, watch.sample.users()
        )
        Receipts(job.output, job.identity).write(receipt)
    except StorageError as error:
        return NoRoom(str(error))
    return receipt


class _Watch:
    """Counts the users of a partition, tells now and then how many came, and keeps a few of them."""

    def __init__(self, ask: Ask, is_sampled: bool) -> None:
        self.sample = Sample()
        self._ask, self._is_sampled = ask, is_sampled
        self._untold = 0
        self._told = time.monotonic()

    def __call__(self, one: Recommendation) -> None:
        self._untold += 1
        if self._is_sampled:
            self.sample.add(one.user)
        if self._untold % 64 == 0 and (now := time.monotonic()) - self._told > TELL_EVERY:
            self._ask(self._untold)
            self._untold, self._told = 0, now

"""What a worker does: it loads a run once, then scores partition after partition."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from finetune_kit.data.database import MAX_THREADS
from finetune_kit.data.dataset import Dataset
from finetune_kit.data.remote import File, RemoteFile, complaint, num_bytes
from finetune_kit.errors import DataError, FinetuneKitError, StorageError
from finetune_kit.files import storing
from finetune_kit.foreign import confined
from finetune_kit.recommendation.file import recommend_file
from finetune_kit.recommendation.layout import Layout
from finetune_kit.recommendation.partitions import Partition
from finetune_kit.recommendation.receipts import (
    Content,
    Receipt,
    Receipts,
    digest,
    remove_leftovers,
    run_hash,
    version_of,
)
from finetune_kit.recommendation.recommender import Recommendation, Recommender
from finetune_kit.recommendation.sample import Sample
from finetune_kit.recommendation.workshop import workshop
from finetune_kit.training.assemble import load_run
from finetune_kit.training.device import make_fabric
from finetune_kit.workers import Ask
from finetune_kit.workers import Job as Work
from finetune_kit.workers.telling import NoRoom

TELL_EVERY = 1.0
"""Seconds between two words of a worker on how many users it has scored."""


@dataclass(frozen=True)
class Job:
    """How partitions are scored; all paths are whole, as a worker may be elsewhere.

    Args:
        run: The run's folder.
        dataset: Its dataset's folder.
        base: Its base's folder, where that was moved.
        source: The root of the input, where it is a folder.
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
    source: Path | None
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
    """Raise where this machine has not what the one has that hands out the partitions."""
    seen = {
        f"the run {str(job.run)!r}": (job.run / "model.json").is_file() and run_hash(job.run) == job.identity["run"],
        f"the dataset {str(job.dataset)!r}": job.dataset.is_dir(),
        f"--input {str(job.source)!r}": job.source is None or job.source.is_dir(),
        f"--output {str(job.output)!r}": Receipts(job.output, job.identity).is_begun(),
    }
    for what, is_here in seen.items():
        if not is_here:
            raise FinetuneKitError(
                f"a worker on {platform.node()} does not see {what}, or another one: put it on a file system that all "
                "machines share, at the same path"
            )


def _score(job: Job, recommender: Recommender, task: Task, ask: Ask) -> Receipt | NoRoom:
    name, output = task.partition.name, confined(job.output, task.partition.name)
    watch = _Watch(ask, is_sampled=not task.layout.is_per_user)
    remove_leftovers(output)  # of a worker that was lost with this partition in hand
    try:
        with workshop(output, job.memory_limit) as shop:
            shop.connection.execute(f"SET threads = {min(MAX_THREADS, torch.get_num_threads())}")
            with _at_hand(task.partition.file, shop.scratch) as (path, hold):
                layout = replace(task.layout, path=path)
                totals = recommend_file(recommender, layout, output, shop, job.batch_size, watch)
                held = hold()
        if held is None:
            output.unlink()
            raise DataError(f"{task.partition.file} was changed while it was read; the same command reads it again")
        receipt = Receipt(name, digest(job.identity), held, Content.of(output), totals, watch.sample.users())
        Receipts(job.output, job.identity).write(receipt)
    except StorageError as error:
        return NoRoom.of(error)
    return receipt


@contextmanager
def _at_hand(file: File, scratch: Path) -> Iterator[tuple[Path, Callable[[], Content | None]]]:
    """Give a file of this machine that is a partition, or a copy of it, and a function that says what it held.

    The function returns None where the partition was changed meanwhile.
    """
    before = num_bytes(file), version_of(file)
    path = file if isinstance(file, Path) else _copied(file, scratch)

    def hold() -> Content | None:
        held = Content.of(file, path)
        return held if (held.num_bytes, held.version) == before else None

    try:
        yield path, hold
    except FinetuneKitError as error:
        raise type(error)(str(error).replace(str(path), str(file))) from error


def _copied(file: RemoteFile, folder: Path) -> Path:
    path = folder / f"input-{file.name}"
    try:
        with file.open() as remote, storing(path), path.open("wb") as local:
            shutil.copyfileobj(remote, local, 1 << 20)
    except OSError as error:
        raise DataError(f"{file} can't be read: {complaint(error)}") from error
    return path


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
            self._ask.tell(self._untold)
            self._untold, self._told = 0, now

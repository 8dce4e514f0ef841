"""`ftkit recommend` over a folder or a pattern of files, in several workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_kit.cli.output import print_json, stdout, warn
from finetune_kit.cli.partition_view import PartitionView
from finetune_kit.cli.recommend import Asked, told, warn_of_doubts, warn_of_strangers
from finetune_kit.data.remote import is_address, without_secrets
from finetune_kit.errors import OptionError
from finetune_kit.recommendation.file import Totals
from finetune_kit.recommendation.folder import recommend_partitions
from finetune_kit.recommendation.formats import KINDS
from finetune_kit.recommendation.job import Job, Task
from finetune_kit.recommendation.partitions import Input, find_input, find_layouts
from finetune_kit.recommendation.receipts import MANIFEST, RECEIPTS, Receipt, Receipts, run_hash
from finetune_kit.recommendation.sample import Owners
from finetune_kit.recommendation.workshop import workshop
from finetune_kit.workers import LocalWorkers, Workers, share_of_cores

if TYPE_CHECKING:
    from finetune_kit.recommendation.recommender import Recommender
    from finetune_kit.training.assemble import Run


def recommend_folder(asked: Asked, num_workers: int | None, ray: str | None) -> None:
    """Score the partitions that are not done yet, and say what all of them came to."""
    _refuse_file(asked)
    source = find_input(asked.input)
    run, recommender = asked.load()
    _protect(asked.output, source, run)
    job = _job(asked, source, run)
    receipts = Receipts(asked.output, job.identity)
    receipts.refuse_foreign(asked.overwrite)
    kept = receipts.finished(source.partitions, asked.overwrite)
    owners = Owners()
    for receipt in kept.values():
        owners.add(receipt.partition, receipt.users)
    tasks = _tasks(asked, source, kept, recommender)
    receipts.begin(source.partitions, kept)
    with PartitionView(tasks, len(kept)) as view, _crew(num_workers, ray, job.device) as (workers, alone):
        made = recommend_partitions(job, tasks, workers, alone, owners, view)
    receipts.end([*kept.values(), *made])
    _report(asked, source, recommender, kept, made, view.seconds)
    _warn_of_more(asked, source)


def _refuse_file(asked: Asked) -> None:
    """Raise where the output is meant to be one file."""
    if asked.output.name.removesuffix(".gz").endswith(tuple(KINDS)):
        raise OptionError(
            f"--input {without_secrets(asked.input)!r} is {_kind(asked.input)}; name one file in it, or for --output a "
            f"folder: {str(asked.output)!r} ends as a file does"
        )


def _kind(text: str) -> str:
    return "an address" if is_address(text) else "a folder" if Path(text).is_dir() else "a pattern"


def _protect(output: Path, source: Input, run: Run) -> None:
    """Raise for an output in the folder of the run, its dataset, or where the input would hold it."""
    for what, where in (("the run", run.folder), ("the dataset", run.dataset.path)):
        if output.resolve().is_relative_to(where.resolve()):
            raise OptionError(f"--output {str(output)!r} lies in the folder of {what}; name another folder")
    if source.would_hold(output):
        raise OptionError(
            f"--output {str(output)!r} and --input {source.text!r} lie in one another: recommendations would be "
            "read as histories; name another folder"
        )


def _job(asked: Asked, source: Input, run: Run) -> Job:
    precision = asked.precision or run.config.run.precision
    identity = {
        "run": run_hash(run.folder),
        "dataset": run.dataset.fingerprint,
        "--top": asked.top,
        "--remove-seen": asked.remove_seen,
        "--separate-ids": asked.separate_ids,
        "--precision": precision,
        **{f"--{name}-column": column for name, column in asdict(asked.columns).items()},
    }
    return Job(
        run=run.folder.resolve(),
        dataset=run.dataset.path.resolve(),
        base=asked.base and asked.base.resolve(),
        source=source.root and source.root.resolve(),
        output=asked.output.resolve(),
        identity=identity,
        device=asked.device or run.config.run.device,
        precision=precision,
        top=asked.top,
        remove_seen=asked.remove_seen,
        separate_ids=asked.separate_ids,
        batch_size=asked.batch_size,
        memory_limit=asked.memory_limit,
    )


def _tasks(asked: Asked, source: Input, kept: Mapping[str, Receipt], recommender: Recommender) -> list[Task]:
    """Return what is to be done, and say what is taken for granted there."""
    left = [partition for partition in source.partitions if partition.name not in kept]
    if not left:
        return []
    with workshop(asked.output / RECEIPTS / "columns", asked.memory_limit) as shop:
        layouts = find_layouts(left, asked.columns, shop)
    warn_of_doubts(recommender, layouts[0], asked.columns)
    return [Task(*pair) for pair in zip(left, layouts, strict=True)]


@contextmanager
def _crew(num_workers: int | None, ray: str | None, device: str) -> Iterator[tuple[Workers, Workers]]:
    """Give the workers, and one alone."""
    if ray is None:
        size = num_workers or 1
        yield LocalWorkers(size, share_of_cores(size)), LocalWorkers(1, share_of_cores(size))
        return
    from finetune_kit.workers.cluster import RayWorkers, connected

    num_gpus, num_threads = float(device.startswith("cuda")), share_of_cores(10**6)
    with connected(ray) as library:
        there = library.cluster_resources()
        room = there.get("GPU", 0) if num_gpus else there.get("CPU", 0) // num_threads
        size = num_workers or max(1, int(room))
        yield RayWorkers(ray, size, num_threads, num_gpus), RayWorkers(ray, 1, num_threads, num_gpus)


def _report(
    asked: Asked,
    source: Input,
    recommender: Recommender,
    kept: Mapping[str, Receipt],
    made: list[Receipt],
    seconds: float,
) -> None:
    """Print what all partitions came to; how fast it was is of those that were scored now."""
    totals = Totals.sum(receipt.totals for receipt in (*kept.values(), *made))
    rate = sum(receipt.totals.users for receipt in made) / max(seconds, 1e-9)
    warn_of_strangers(totals, source.text, asked.columns.item or asked.columns.items or "item")
    if asked.json:
        counts = {"partitions": len(kept) + len(made), "partitions_before": len(kept)}
        facts = {"output": str(asked.output), "manifest": str(asked.output / MANIFEST), "top": recommender.top}
        print_json({**facts, **counts, **vars(totals), "seconds": seconds, "users_per_second": rate})
        return
    num = len(kept) + len(made)
    said = told(totals, recommender, f"{asked.output} in {num:,} partition{'s' * (num != 1)}")
    if kept:
        said.append(f"{len(kept):,} of them done before")
    stdout().print("; ".join([*said, f"{rate:,.0f} users/s"] if made else said), markup=False)


def _warn_of_more(asked: Asked, source: Input) -> None:
    """Say which files came while others were scored."""
    names = {partition.name for partition in source.partitions}
    if new := sorted({partition.name for partition in find_input(asked.input).partitions} - names):
        files = "file has" if len(new) == 1 else "files have"
        warn(f"{len(new):,} more {files} come meanwhile, the first {new[0]!r}; the same command scores what is new")

"""`ftkit recommend`: target items for the users of a file, or of many, known or new."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune_kit.cli import arguments as arg
from finetune_kit.cli.output import print_json, stdout, warn
from finetune_kit.cli.result import dataset_of
from finetune_kit.errors import OptionError

if TYPE_CHECKING:
    from finetune_kit.recommendation.file import Totals
    from finetune_kit.recommendation.layout import Columns, Layout
    from finetune_kit.recommendation.recommender import Recommender
    from finetune_kit.training.assemble import Run


def recommend(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.", show_default=False)],
    input_: Annotated[
        str,
        typer.Option(
            "--input",
            help="Source histories, raw ids: .parquet, .csv, .tsv or .jsonl; or a folder or pattern of such files.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(help="File to write: .parquet, .csv, .tsv or .jsonl; for many, a folder.", show_default=False),
    ],
    top: Annotated[int, typer.Option(min=1, help="Items per user.")] = 10,
    remove_seen: Annotated[
        bool, typer.Option("--remove-seen", help="Leave out target items that a user is known to have.")
    ] = False,
    separate_ids: Annotated[
        bool, typer.Option("--separate-ids", help="With --remove-seen: source and target ids that are alike differ.")
    ] = False,
    user_column: Annotated[str, typer.Option(help="The column with the user's id.")] = "user",
    items_column: Annotated[
        str | None,
        typer.Option(
            help="One row per user: the column with the list of items, oldest first; by default items.",
            show_default=False,
        ),
    ] = None,
    item_column: Annotated[
        str | None,
        typer.Option(help="One row per event: the column with the item; by default item.", show_default=False),
    ] = None,
    time_column: Annotated[
        str | None,
        typer.Option(
            help="One row per event: the column with the time, by default time or timestamp; none takes the "
            "rows' order.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="The run's dataset, where it was moved.")] = None,
    base: Annotated[Path | None, typer.Option(help="The run's pre-trained backbone, where it was moved.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Users scored at once.")] = 512,
    memory_limit: Annotated[
        str, typer.Option(help="Memory for sorting, about; what does not fit goes to disk beside the output.")
    ] = "1GB",
    device: arg.Device = None,
    precision: arg.Precision = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file in --output; in a folder, what has changed.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of many files: processes that score them at once.  \\[default: 1]", show_default=False
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Of many files: score them on a Ray cluster; local starts one here."),
    ] = None,
    json: arg.Json = False,
) -> None:
    """Recommend target items to any users from their source histories, with scores, in a file."""
    from finetune_kit.checkpoint import read_facts
    from finetune_kit.recommendation.layout import Columns
    from finetune_kit.recommendation.partitions import stands_for_many

    read_facts(folder)  # says what is wrong with a folder that is no run
    if separate_ids and not remove_seen:
        raise OptionError("--separate-ids has no effect without --remove-seen; leave it out")
    columns = Columns(user_column, item_column, items_column, time_column)
    asked = Asked(
        folder, input_, output, top, remove_seen, separate_ids, columns, data, base, batch_size, memory_limit, device,
        precision, overwrite, json,
    )  # fmt: skip
    if stands_for_many(input_):
        from finetune_kit.cli.partitions import recommend_folder

        recommend_folder(asked, workers, ray)
    elif workers is not None or ray is not None:
        option = "--workers" if ray is None else "--ray"
        raise OptionError(f"{option} has no effect: --input {input_!r} is no folder or pattern; leave it out")
    else:
        _recommend_file(asked)


@dataclass(frozen=True)
class Asked:
    """What the command line asks for, wherever it is done."""

    folder: Path
    input: str
    output: Path
    top: int
    remove_seen: bool
    separate_ids: bool
    columns: Columns
    data: str | None
    base: Path | None
    batch_size: int
    memory_limit: str
    device: str | None
    precision: str | None
    overwrite: bool
    json: bool

    def load(self) -> tuple[Run, Recommender]:
        """Return the run and what recommends with it."""
        from finetune_kit.recommendation.recommender import Recommender
        from finetune_kit.training.assemble import load_run
        from finetune_kit.training.device import make_fabric

        dataset = dataset_of(self.folder, self.data, "its ids would mean other users and items")
        run = load_run(self.folder, dataset, self.base)
        fabric = make_fabric(self.device or run.config.run.device, self.precision or run.config.run.precision)
        seen = {"remove_seen": self.remove_seen, "separate_ids": self.separate_ids}
        return run, Recommender(run, fabric, top=self.top, **seen)


def _recommend_file(asked: Asked) -> None:
    from finetune_kit.cli.narration import narrated
    from finetune_kit.recommendation.file import recommend_file
    from finetune_kit.recommendation.formats import file_kind
    from finetune_kit.recommendation.layout import find_layout
    from finetune_kit.recommendation.workshop import workshop

    source, output = Path(asked.input), asked.output
    file_kind(output, "--output")
    _refuse_to_lose(output, source, asked.overwrite)
    with workshop(output, asked.memory_limit) as shop:
        layout = find_layout(source, asked.columns, shop)
        run, recommender = asked.load()
        _protect(output, run)
        warn_of_doubts(recommender, layout, asked.columns)
        with narrated("finetune_kit.recommendation"):
            totals = recommend_file(recommender, layout, output, shop, asked.batch_size)
    rate = totals.users / max(totals.seconds, 1e-9)
    warn_of_strangers(totals, str(layout.path), layout.column)
    if asked.json:
        print_json({"output": str(output), "top": recommender.top, **vars(totals), "users_per_second": rate})
    else:
        stdout().print("; ".join([*told(totals, recommender, str(output)), f"{rate:,.0f} users/s"]), markup=False)


def _refuse_to_lose(output: Path, source: Path, overwrite: bool) -> None:
    """Raise if the output is the input, no file, or there already without --overwrite."""
    if output.exists() and source.exists() and output.samefile(source):
        raise OptionError(f"--output {str(output)!r} is --input; name another file")
    if output.exists() and not output.is_file():
        raise OptionError(f"--output {str(output)!r} is no file; name one")
    if output.exists() and not overwrite:
        raise OptionError(f"--output {str(output)!r} exists; --overwrite replaces it")


def _protect(output: Path, run: Run) -> None:
    """Raise if --overwrite would replace a file of the run or of its dataset."""
    for what, where in (("run", run.folder), ("dataset", run.dataset.path)):
        if output.exists() and output.resolve().parent == where.resolve():
            raise OptionError(
                f"--output {str(output)!r} is a file in the {what}'s folder, where --overwrite replaces nothing; "
                "name another"
            )


def warn_of_doubts(recommender: Recommender, layout: Layout, columns: Columns) -> None:
    """Say what is taken for granted."""
    if not layout.is_per_user and layout.time is None and columns.time is None:
        warn(f"{layout.path} has no column 'time': events stand in the rows' order; name another with --time-column")
    if shared := recommender.num_shared:
        warn(
            f"{shared:,} of {len(recommender.answers.raw):,} target items have the raw id of a source item and are "
            "seen where the history holds it; --separate-ids if those are other items"
        )


def warn_of_strangers(totals: Totals, source: str, column: str) -> None:
    """Warn where what was recommended can hardly be what was meant."""
    if totals.events and totals.unknown_events == totals.events:
        warn(
            f"the run knows none of the items in {source}; are these raw ids of the source domain, "
            f"in the column {column!r}?"
        )


def told(totals: Totals, recommender: Recommender, where: str) -> list[str]:
    """Return what was written, in words."""
    answered = totals.users - totals.without_history
    exact = totals.recommended == answered * recommender.top
    each = f"{'' if exact else 'up to '}{recommender.top:,} {recommender.answers.nouns}"
    said = [f"wrote {_users(answered)} × {each} to {where}"]
    if totals.without_history:
        said.append(f"{_users(totals.without_history)} without a usable history")
    if totals.all_seen:
        said.append(f"{_users(totals.all_seen)} with all items seen")
    return [*said, f"{totals.unknown_events:,} of {totals.events:,} events of unknown items skipped"]


def _users(number: int) -> str:
    return f"{number:,} user{'s' * (number != 1)}"

"""`ftkit recommend`: target items for the users of a file, known or new."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune_kit.cli import arguments as arg
from finetune_kit.cli.output import print_json, stdout, warn
from finetune_kit.cli.result import dataset_of
from finetune_kit.errors import OptionError

if TYPE_CHECKING:
    from finetune_kit.recommendation.file import Totals
    from finetune_kit.recommendation.layout import Layout
    from finetune_kit.recommendation.recommender import Recommender
    from finetune_kit.training.assemble import Run


def recommend(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.", show_default=False)],
    input_: Annotated[
        Path,
        typer.Option("--input", help="Source histories, raw ids: .parquet, .csv, .tsv or .jsonl.", show_default=False),
    ],
    output: Annotated[Path, typer.Option(help="File to write: .parquet, .csv, .tsv or .jsonl.", show_default=False)],
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file in --output.")] = False,
    json: arg.Json = False,
) -> None:
    """Recommend target items to any users from their source histories, with scores, in a file."""
    from finetune_kit.checkpoint import read_facts
    from finetune_kit.cli.narration import narrated
    from finetune_kit.recommendation.file import recommend_file
    from finetune_kit.recommendation.formats import file_kind
    from finetune_kit.recommendation.layout import Columns, find_layout
    from finetune_kit.recommendation.recommender import Recommender
    from finetune_kit.recommendation.workshop import workshop
    from finetune_kit.training.assemble import load_run
    from finetune_kit.training.device import make_fabric

    read_facts(folder)  # says what is wrong with a folder that is no run
    if separate_ids and not remove_seen:
        raise OptionError("--separate-ids has no effect without --remove-seen; leave it out")
    file_kind(output, "--output")
    _refuse_to_lose(output, input_, overwrite)
    columns = Columns(user_column, item_column, items_column, time_column)
    with workshop(output, memory_limit) as shop:
        layout = find_layout(input_, columns, shop)
        run = load_run(folder, dataset_of(folder, data, "its ids would mean other users and items"), base)
        _protect(output, run)
        fabric = make_fabric(device or run.config.run.device, precision or run.config.run.precision)
        recommender = Recommender(run, fabric, top=top, remove_seen=remove_seen, separate_ids=separate_ids)
        _warn(recommender, layout, time_column)
        with narrated("finetune_kit.recommendation"):
            totals = recommend_file(recommender, layout, output, shop, batch_size)
    _report(totals, recommender, layout, output, json)


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


def _warn(recommender: Recommender, layout: Layout, time_column: str | None) -> None:
    """Say what is taken for granted."""
    if not layout.is_per_user and layout.time is None and time_column is None:
        warn(f"{layout.path} has no column 'time': events stand in the rows' order; name another with --time-column")
    if shared := recommender.num_shared:
        warn(
            f"{shared:,} of {len(recommender.answers.raw):,} target items have the raw id of a source item and are "
            "seen where the history holds it; --separate-ids if those are other items"
        )


def _report(totals: Totals, recommender: Recommender, layout: Layout, output: Path, as_json: bool) -> None:
    """Print what was written, and warn where it can hardly be what was meant."""
    rate = totals.users / max(totals.seconds, 1e-9)
    if totals.events and totals.unknown_events == totals.events:
        warn(
            f"the run knows none of the items in {layout.path}; are these raw ids of the source domain, "
            f"in the column {layout.column!r}?"
        )
    if as_json:
        print_json({"output": str(output), "top": recommender.top, **vars(totals), "users_per_second": rate})
        return
    answered = totals.users - totals.without_history
    exact = totals.recommended == answered * recommender.top
    each = f"{'' if exact else 'up to '}{recommender.top:,} {recommender.answers.nouns}"
    said = [f"wrote {_users(answered)} × {each} to {output}"]
    if totals.without_history:
        said.append(f"{_users(totals.without_history)} without a usable history")
    if totals.all_seen:
        said.append(f"{_users(totals.all_seen)} with all items seen")
    said.append(f"{totals.unknown_events:,} of {totals.events:,} events of unknown items skipped")
    said.append(f"{rate:,.0f} users/s")
    stdout().print("; ".join(said), markup=False)


def _users(number: int) -> str:
    return f"{number:,} user{'s' * (number != 1)}"

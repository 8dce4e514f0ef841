"""Your own event logs: a table of source events, one of target events, and perhaps one of profile labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from finetune_kit.data.checks import (
    TimeKind,
    refuse_mixed_times,
    settle,
    settle_duplicates,
    settle_missing,
    settle_times,
)
from finetune_kit.data.database import sql_name
from finetune_kit.data.places import Place, PlaceText, find_place
from finetune_kit.data.preparation import DEFAULT_MEMORY_LIMIT, Preparation, logger, preparing
from finetune_kit.data.prepare import write_dataset
from finetune_kit.data.reader import DatasetReader
from finetune_kit.data.tables import column_names, load_files
from finetune_kit.errors import DataError, OptionError
from finetune_kit.files import write_text
from finetune_kit.options import Options

ADVICE = "; name another with --user-column, --item-column or --time-column"


class EventsOptions(Options):
    """Options of `Events`."""

    source: PlaceText
    """Source events: a Parquet, CSV or TSV file (.gz and .zst too), a folder of them with folders below it, a pattern
    like 'log*.csv' or 'log/**/*.parquet', or one of these behind an fsspec address such as s3://bucket/log."""
    target: PlaceText | None = None
    """Target events, in the same ways; none makes a dataset of labels alone."""
    labels: PlaceText | None = None
    """Profile labels, in the same ways: one row per user; every column of the files but the user's is a label."""
    user_column: str = "user"
    """The column with the user's id, in all files; ids may be any text. What the files lack may be a folder's name,
    such as day=2026-01-01."""
    item_column: str = "item"
    """The column with the item's id."""
    time_column: str | None = "time"
    """The column with the time: a number, or an ISO 8601 date or timestamp; none takes the rows' order."""
    max_target: int | None = Field(default=None, ge=1)
    """Keep at most that many target events per user, the earliest; none keeps all."""
    min_source: int = Field(default=1, ge=1)
    """Leave out users with fewer source events."""
    keep_source_only: bool = False
    """Keep users without target events: pre-training uses them."""
    on_bad: Literal["refuse", "drop"] = "refuse"
    """What becomes of rows that can't be used: refuse the file, or drop them with a warning."""
    memory_limit: str = DEFAULT_MEMORY_LIMIT
    """How much memory preparing may take, about; what does not fit is sorted on disk beside the output."""


class Events(DatasetReader):
    """Reads event logs; events of one user at one time keep the order of their rows."""

    Options = EventsOptions
    positional: ClassVar[str | None] = "source"
    options: EventsOptions

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Write two logs of two users into a folder, and return the options that read them."""
        rows = {"source": ["ann,x,3", "ann,y,1", "bob,z,2", "ann,x,4"], "target": ["ann,p,9", "bob,q,8"]}
        for domain, lines in rows.items():
            write_text(folder / f"{domain}.csv", "\n".join(["user,item,time", *lines, ""]))
        return {domain: str(folder / f"{domain}.csv") for domain in rows}

    def prepare(self, output: Path) -> None:
        """Write the dataset folder at ``output``.

        Raises:
            DataError: For input that can't be used as it is.
            OptionError: With neither a target nor labels.
        """
        options = self.options
        if options.target is None and options.labels is None:
            raise OptionError(
                "nothing to fine-tune on: give target events (--target FILE), labels (--labels FILE) or both"
            )
        texts = {"source": options.source, "target": options.target, "labels": options.labels}
        inputs = {name: find_place(text, name) for name, text in texts.items() if text is not None}
        with preparing(output, options.memory_limit, options.on_bad) as preparation:
            source = inputs["source"]
            kind = self._load_log(preparation, "source", source)
            if target := inputs.get("target"):
                other = self._load_log(preparation, "target", target)
                refuse_mixed_times(kind, other, source.address, target.address)
            else:
                preparation.connection.execute("CREATE VIEW target AS SELECT * FROM source WHERE false")
            if labels := inputs.get("labels"):
                _load_labels(preparation, labels, options.user_column)
            write_dataset(
                preparation,
                options=options.model_dump(),
                inputs=inputs.values(),
                max_target=options.max_target,
                min_source=options.min_source,
                keep="all" if options.keep_source_only else "target" if options.target else "labels",
                has_times=options.time_column is not None,
            )

    def _load_log(self, preparation: Preparation, domain: str, place: Place) -> TimeKind:
        """Make the view ``source`` or ``target`` of the usable events; return what its times are."""
        options, log = self.options, f"{domain}_log"
        logger.info("reading %s events", domain)
        columns = {"user": options.user_column, "item": options.item_column}
        if options.time_column is not None:
            columns["time"] = options.time_column
        table = load_files(preparation, log, place, columns, ADVICE)
        logger.info("checking %s events", domain)
        settle_missing(table, "user")
        settle_missing(table, "item")
        time, kind = ("row", "number") if options.time_column is None else settle_times(table)
        if domain == "target":
            unknown = f"SELECT row, user AS value FROM {log} ANTI JOIN source ON {log}.user::VARCHAR = source.user"
            settle(table, unknown, "user {value} has no source event")
            settle_duplicates(table, ("user", "item"), "a pair of user and item")
        elif options.time_column is not None:
            settle_duplicates(table, ("user", "item", "time"), "an event")
        preparation.connection.execute(
            f"CREATE VIEW {domain} AS SELECT user::VARCHAR AS user, item::VARCHAR AS item, {time} AS time, "
            f"row AS tie FROM {log}"
        )
        return kind


def _load_labels(preparation: Preparation, place: Place, user_column: str) -> None:
    """Make the view ``labels``: the user and, as text, every other column of the files."""
    names = [name for name in column_names(preparation, place.files[0]) if name != user_column]
    if not names:
        raise DataError(f"{place.files[0]} has no label: no column but {user_column!r}")
    if any(name.lower() == "user" for name in names):
        raise DataError(f"{place.files[0]}: a label can't be called 'user'; rename that column")
    columns = {"user": user_column} | {f"label{k}": name for k, name in enumerate(names)}
    table = load_files(preparation, "labels_log", place, columns, "; name another with --user-column")
    settle_missing(table, "user")
    settle_duplicates(table, ("user",), "a user")
    known = "SELECT user FROM source UNION SELECT user FROM target"
    unknown = f"SELECT row, user::VARCHAR AS value FROM labels_log WHERE user::VARCHAR NOT IN ({known})"
    settle(table, unknown, "user {value} has no event")
    texts = ", ".join(f"nullif(label{k}::VARCHAR, '') AS {sql_name(name)}" for k, name in enumerate(names))
    preparation.connection.execute(f"CREATE VIEW labels AS SELECT user::VARCHAR AS user, {texts} FROM labels_log")

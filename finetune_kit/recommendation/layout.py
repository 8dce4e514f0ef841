"""Which columns of an input file hold the users' histories: one row per user, or one row per event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_kit.data.preparation import Preparation
from finetune_kit.data.remote import File
from finetune_kit.data.tables import column_names
from finetune_kit.errors import DataError, OptionError, did_you_mean
from finetune_kit.recommendation.formats import Kind, file_kind
from finetune_kit.recommendation.jsonlines import first_names

TIME_COLUMNS = ("time", "timestamp")
"""What a column of times is looked for under, where none is named."""
NO_TIME = "none"
"""What stands for "no column: the rows' order is the order"."""


@dataclass(frozen=True)
class Columns:
    """Names of columns as the caller gave them; None where they are to be found.

    Args:
        user: The user's raw id.
        item: One event's raw item id, where a row is an event.
        items: A list of raw item ids, oldest first, where a row is a user.
        time: When an event was; ``"none"`` takes the rows' order.
    """

    user: str = "user"
    item: str | None = None
    items: str | None = None
    time: str | None = None


@dataclass(frozen=True)
class Layout:
    """An input file and its columns.

    Args:
        path: The file.
        kind: How it is written.
        user: The column with the user.
        column: The column with the items, or the item.
        is_per_user: Whether a row is a user with all items, not an event.
        time: The column with the time of an event; None takes the rows' order.
    """

    path: File
    kind: Kind
    user: str
    column: str
    is_per_user: bool
    time: str | None = None


def find_layout(path: File, columns: Columns, preparation: Preparation) -> Layout:
    """Return which columns of a file to read.

    Args:
        path: A file.
        columns: Their names, as far as the caller knows.
        preparation: Reads the columns of Parquet files.

    Raises:
        DataError: For a file that can't be read, or that lacks a column; names those that are there.
        OptionError: For names that contradict each other.
    """
    if isinstance(path, Path):
        _refuse_no_file(path)
    kind = file_kind(path, "--input")
    names = first_names(path) if kind == "json" else column_names(preparation, path)
    if columns.user not in names:
        raise _lacks(path, columns.user, names, "--user-column")
    column, is_per_user = _items_column(path, columns, names)
    if is_per_user and columns.time is not None:
        raise OptionError(
            f"--time-column has no effect: {path} has one row per user, whose items in {column!r} stand in order"
        )
    return Layout(path, kind, columns.user, column, is_per_user, None if is_per_user else _time(path, columns, names))


def _refuse_no_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"--input {str(path)!r} is a folder; name one file in it")
    if not path.exists():
        raise DataError(f"--input {str(path)!r}: no such file")
    if not path.is_file():  # a pipe can't be read twice: once for its columns, once for its rows
        raise DataError(f"--input {str(path)!r} is a pipe or a device; write a file and name it")


def _items_column(path: File, columns: Columns, names: Sequence[str]) -> tuple[str, bool]:
    """Return the column with the items, and whether it holds all of a user's."""
    if columns.item is not None and columns.items is not None:
        raise OptionError(
            "--items-column is for one row per user, --item-column for one row per event; give the one that fits"
        )
    for name, option in ((columns.items, "--items-column"), (columns.item, "--item-column")):
        if name is not None:
            if name not in names:
                raise _lacks(path, name, names, option)
            return name, option == "--items-column"
    found = [name for name in ("items", "item") if name in names]
    if not found:
        raise DataError(
            f"{path} has neither a column 'items' (one row per user) nor 'item' (one row per event). "
            f"Columns: {', '.join(names)}; name one with --items-column or --item-column"
        )
    if len(found) > 1:
        raise DataError(f"{path} has both a column 'items' and 'item'; say which with --items-column or --item-column")
    return found[0], found == ["items"]


def _time(path: File, columns: Columns, names: Sequence[str]) -> str | None:
    if columns.time == NO_TIME:
        return None
    if columns.time is not None and columns.time not in names:
        raise _lacks(path, columns.time, names, "--time-column")
    return columns.time or next((name for name in TIME_COLUMNS if name in names), None)


def _lacks(path: File, column: str, names: Sequence[str], option: str) -> DataError:
    guess = did_you_mean(column, names)
    return DataError(f"{path} has no column {column!r}.{guess} Columns: {', '.join(names)}; name another with {option}")

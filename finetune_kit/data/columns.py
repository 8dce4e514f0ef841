"""Which columns the files of one table have, and what they hold: the same in all, or the first other is named."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from finetune_kit.data.places import Place
from finetune_kit.data.remote import File
from finetune_kit.errors import DataError, did_you_mean

SMALL = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"}
WHOLE = SMALL | {"UBIGINT", "HUGEINT"}
"""Whole numbers, which may be of several widths; those of `SMALL` fit into a BIGINT."""
FOLDER = "what its folder's name says"
"""What stands for a type where a column is none of the file."""


@dataclass(frozen=True)
class FileColumns:
    """The columns of one file.

    Args:
        file: The file.
        types: What each of its own columns holds, in DuckDB's words.
        folders: What the folders that it lies in say, as in ``day=2026-01-01/``; none of its own columns.
    """

    file: File
    types: Mapping[str, str]
    folders: Mapping[str, str | None]


def own_and_folders(place: Place, file: File, types: Mapping[str, str]) -> FileColumns:
    """Return a file's columns: its own, and those of its folders that bear no name of its own."""
    own = {name.lower() for name in types}
    folders = {name: value for name, value in place.partition(file).items() if name.lower() not in own}
    return FileColumns(file, types, folders)


def require(columns: FileColumns, wanted: Collection[str], advice: str) -> None:
    """Refuse a file that lacks a column.

    Raises:
        DataError: Naming the columns that there are; ends with the advice.
    """
    names = [*columns.types, *columns.folders]
    for column in wanted:
        if column not in names:
            guess = did_you_mean(column, names)
            raise DataError(f"{columns.file} has no column {column!r}.{guess} Columns: {', '.join(names)}{advice}")


def common_type(files: Sequence[FileColumns], column: str) -> str:
    """Return what a column holds in all files, or `FOLDER`; whole numbers may be of several widths.

    Raises:
        DataError: Naming the first file in which it holds something else than in the first.
    """
    found = [one.types.get(column, FOLDER) for one in files]
    types = set(found)
    if len(types) == 1:
        return found[0]
    if types <= WHOLE:
        return "BIGINT" if types <= SMALL else "HUGEINT"
    kinds = ["a whole number" if type_ in WHOLE else type_ for type_ in found]
    odd = next(k for k, kind in enumerate(kinds) if kind != kinds[0])
    raise DataError(
        f"{files[odd].file}: column {column!r} holds {found[odd]}, in {files[0].file} {found[0]}; "
        "write all files of a table the same way"
    )

"""The files that are read and written here: told apart by how their name ends, and opened as lines of text."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import IO, Literal, cast

from finetune_kit.data.remote import File
from finetune_kit.data.tables import DELIMITERS
from finetune_kit.data.text import bounded_lines
from finetune_kit.errors import DataError

Kind = Literal["parquet", "delimited", "json"]
KINDS: dict[str, Kind] = {
    ".parquet": "parquet",
    ".csv": "delimited",
    ".tsv": "delimited",
    ".jsonl": "json",
    ".ndjson": "json",
}
SUFFIXES = (*KINDS, *(f"{suffix}.gz" for suffix in KINDS if suffix != ".parquet"))
"""How the names of files end that are read and written here."""


def file_kind(path: File, what: str) -> Kind:
    """Return how a file is written, by its name.

    Args:
        path: The file.
        what: What it is, for the error: ``"--input"``.

    Raises:
        DataError: For a name that ends otherwise; says which do.
    """
    kind = KINDS.get(_suffix(path))
    if kind is None or (kind == "parquet" and path.name.endswith(".gz")):
        raise DataError(
            f"{what} {str(path)!r}: can't tell its format; the name must end in {', '.join(KINDS)} "
            "(text also in .gz after that)"
        )
    return kind


def delimiter(path: File) -> str:
    """Return what stands between two fields of a file of delimited text."""
    return DELIMITERS[_suffix(path)]


def read_lines(path: File) -> Iterator[str]:
    """Yield the lines of a UTF-8 text, packed or not, with their ends.

    Raises:
        DataError: For bytes that are no UTF-8, naming the line, and for a damaged gzip file.
    """
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(bounded_lines(file, path), 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number}: no UTF-8 text ({error.reason}); write the file in UTF-8") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} can't be read as gzip: {error}; write it again, or unpack it first") from error


@contextmanager
def _open(path: File) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        if path.suffix == ".gz":
            with gzip.open(file) as unpacked:
                yield cast("IO[bytes]", unpacked)
        else:
            yield file


def _suffix(path: File) -> str:
    return PurePath(path.name.removesuffix(".gz")).suffix.lower()

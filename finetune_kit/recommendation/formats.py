"""The files that are read and written here: told apart by how their name ends, and opened as lines of text."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal, cast

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


def file_kind(path: Path, what: str) -> Kind:
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


def delimiter(path: Path) -> str:
    """Return what stands between two fields of a file of delimited text."""
    return DELIMITERS[_suffix(path)]


def read_lines(path: Path) -> Iterator[str]:
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


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()

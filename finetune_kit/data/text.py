"""Delimited text: how it is written, what its header names, and on which line something stands."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, cast

from finetune_kit.data.remote import File, num_bytes
from finetune_kit.errors import DataError, one_line

UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error)
"""What reading lines of a file raises that is damaged, no text, or packed otherwise than its name says."""

MAX_LINE = 1 << 24
"""The longest line of text that is read, in bytes: one user's whole history may be one line."""
HARMLESS, MOST_PACKED = 2**26, 100
"""Bytes that a gzip file may unpack to, and how many more per packed byte; tables of events have 5 to 20."""


@dataclass(frozen=True)
class TextFormat:
    """How a file of delimited text is written.

    Args:
        delimiter: What stands between two fields.
        names: The columns, where the file has no header; None takes them from its first line.
        quote: What may stand around a field; empty for nothing.
        encoding: ``"utf-8"`` or ``"latin-1"``.
    """

    delimiter: str
    names: tuple[str, ...] | None = None
    quote: str = '"'
    encoding: str = "utf-8"


def line_of_byte(path: File, byte: int) -> int:
    """Return the line, from 1, of the record that begins at a byte, from 0, or after blank lines there."""
    with _open(path) as file:
        line = 1 + sum(piece.count(b"\n") for piece in _pieces(file, byte))
        while (character := file.read(1)) in (b"\r", b"\n"):
            line += character == b"\n"
    return line


def header_names(path: File, text: TextFormat) -> tuple[str, ...]:
    """Return the columns that a text file's first line names.

    Raises:
        DataError: For a file that is empty, no text, or names a column twice.
    """
    try:
        with _open(path) as file:
            return first_names(path, text, (line.decode("utf-8-sig") for line in bounded_lines(file, path)))
    except UNREADABLE as error:
        raise DataError(f"{path} can't be read as text: {one_line(error)}") from error


def first_names(path: File, text: TextFormat, lines: Iterable[str]) -> tuple[str, ...]:
    """Return the columns that the first of a file's lines names.

    Raises:
        DataError: For no line, or a column that is named twice.
    """
    quoting = csv.QUOTE_MINIMAL if text.quote else csv.QUOTE_NONE
    names = next(csv.reader(lines, delimiter=text.delimiter, quotechar=text.quote or None, quoting=quoting), [])
    if not names:
        raise DataError(f"{path} is empty; its first line must name the columns")
    if len(set(names)) < len(names):
        raise DataError(f"{path} names a column twice: {', '.join(names)}")
    return tuple(names)


def bounded_lines(file: IO[bytes], path: File) -> Iterator[bytes]:
    """Yield the lines of a file with their ends.

    Raises:
        DataError: For a line longer than `MAX_LINE`.
    """
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise DataError(f"{path} has a line of more than {MAX_LINE:,} bytes; is it a table?")
        yield line


def refuse_bomb(path: File) -> None:
    """Raise for a gzip file that unpacks to far more than text does.

    Raises:
        DataError: Naming both sizes.
    """
    packed, unpacked = num_bytes(path), 0
    try:
        with _open(path) as file:
            while piece := file.read(1 << 20):
                unpacked += len(piece)
                if unpacked > HARMLESS + MOST_PACKED * packed:
                    raise bomb(path, unpacked)
    except (OSError, EOFError, zlib.error):  # damaged: its reader says so
        return


def bomb(path: File, unpacked: int) -> DataError:
    """Return the error for a file that unpacks to more bytes than text does."""
    return DataError(
        f"{path} unpacks from {num_bytes(path):,} to more than {unpacked:,} bytes, which text does not; "
        "unpack it yourself if you trust it, and give that file"
    )


@contextmanager
def _open(path: File) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        if path.suffix != ".gz":
            yield file
            return
        with gzip.open(file) as unpacked:
            yield cast("IO[bytes]", unpacked)


def _pieces(file: IO[bytes], length: int) -> Iterator[bytes]:
    """Yield the first ``length`` bytes of a file, in pieces."""
    while length > 0 and (piece := file.read(min(length, 1 << 20))):
        length -= len(piece)
        yield piece


def line_of_record(path: File, text: TextFormat, record: int) -> int | None:
    """Return the line, from 1, on which the record of that number, from 0, begins; None where that can't be told.

    Of a zstd file it never is: Python reads none.
    A quoted field may span lines, and what was set aside has another width. Only called on the way to a
    message: it reads the text line by line, with another reader than the one that took it apart.
    """
    if path.suffix == ".zst":
        return None
    width, seen = len(text.names or header_names(path, text)), -1 if text.names is None else 0
    with suppress(*UNREADABLE), _open(path) as file:
        lines = (line.decode(text.encoding, errors="replace") for line in file)
        for begin, fields in _records(lines, text):
            seen += fields == width
            if seen > record:
                return begin
    return None


def _records(lines: Iterator[str], text: TextFormat) -> Iterator[tuple[int, int]]:
    """Yield where each record begins, counted from 1, and how many fields it has; 0 for a blank line."""
    if text.quote:
        reader, begin = csv.reader(lines, delimiter=text.delimiter, quotechar=text.quote), 1
        for fields in reader:
            yield begin, len(fields)
            begin = reader.line_num + 1
    else:
        one_column = text.names is not None and len(text.names) == 1  # where a blank line is a record too
        for number, line in enumerate(lines, 1):
            yield number, line.count(text.delimiter) + 1 if one_column or line.strip() else 0

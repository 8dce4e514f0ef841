"""JSON lines: one object per line; ids are text or whole numbers of any size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from finetune_kit.data.remote import File
from finetune_kit.errors import DataError
from finetune_kit.recommendation.formats import read_lines


def first_names(path: File) -> tuple[str, ...]:
    """Return the keys of a file's first object.

    Raises:
        DataError: For a file without one.
    """
    for _, row in read_objects(path):
        return tuple(row)
    raise DataError(f"{path} has no rows")


def read_objects(path: File) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each object of a file and where it stands, e.g. ``"log.jsonl, line 7"``; blank lines are passed over.

    Raises:
        DataError: For a line that is no object, naming it.
    """
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = (
                f"{error.msg} at character {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            )
            raise DataError(f"{where}: no JSON ({reason}); every line must be one object") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: a {type(row).__name__}, not an object; every line must be one, {{…}}")
        yield where, row


def line_of_object(path: File, number: int) -> int:
    """Return the line, from 1, of the object of that number, from 0."""
    lines = (line for line, text in enumerate(read_lines(path), 1) if text.strip())
    return next(line for place, line in enumerate(lines) if place == number)


def value_of(row: dict[str, Any], key: str, where: str) -> Any:
    """Return what an object has under a key.

    Raises:
        DataError: When it has no such key.
    """
    if key not in row:
        raise DataError(f"{where}: no key {key!r}, which the first line has. Keys: {', '.join(row)}")
    return row[key]


def text_of(value: Any, what: str, where: str) -> str:
    """Return an id as text; an empty one for null.

    Raises:
        DataError: For what is neither text nor a whole number.
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise DataError(f"{where}: {what} {json.dumps(value)} is no id; ids are text or whole numbers")
    text = str(value)
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{where}: {what} {value!r} has half a character, which no file can hold")
    return text

"""Users and their raw source items from a file, one user after another: the file is never held as a whole."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import duckdb

from finetune_kit.data.database import parquet_scan, sql_name
from finetune_kit.data.tables import MAX_LINE
from finetune_kit.data.text import TextFormat, header_names
from finetune_kit.errors import DataError, one_line
from finetune_kit.recommendation.events import read_events
from finetune_kit.recommendation.formats import delimiter, read_lines
from finetune_kit.recommendation.jsonlines import read_objects, text_of, value_of
from finetune_kit.recommendation.layout import Layout
from finetune_kit.recommendation.workshop import Workshop

USERS_AT_ONCE = 512


def read_histories(layout: Layout, workshop: Workshop) -> Iterator[tuple[str, Iterable[str]]]:
    """Yield each user's raw id and raw source items, oldest first; take the items before the next user.

    With one row per user they come in the file's order, a user who stands there twice twice; with one row per
    event in the order of raw user ids.

    Raises:
        DataError: For what can't be read; names file, place and reason.
    """
    if not layout.is_per_user:
        yield from read_events(layout, workshop)
        return
    rows = {"parquet": _parquet_rows, "delimited": _delimited_rows, "json": _json_rows}[layout.kind]
    where = None
    for where, user, items in rows(layout, workshop):
        if not user:
            raise DataError(f"{where}: no user; mend the file")
        if not all(items):
            raise DataError(f"{where}: an empty id among the items of user {user!r}; mend the file")
        yield user, items
    if where is None:
        raise DataError(f"{layout.path} has no rows")


def _parquet_rows(layout: Layout, workshop: Workshop) -> Iterator[tuple[str, str, list[str]]]:
    connection = workshop.connection.cursor()
    user, items = sql_name(layout.user), sql_name(layout.column)
    try:
        scan = parquet_scan(connection, layout.path)
        kind = connection.execute(f"SELECT typeof({items}) FROM {scan} LIMIT 1").fetchall()
        if kind and not kind[0][0].endswith("]"):
            raise DataError(
                f"{layout.path}: column {layout.column!r} holds {kind[0][0]}, not lists of ids; write lists, or one "
                "row per event and name its column with --item-column"
            )
        rows = connection.execute(f"SELECT {user}::VARCHAR, {items}::VARCHAR[] FROM {scan}")
        pieces = iter(lambda: rows.fetchmany(USERS_AT_ONCE), [])
        for number, (name, values) in enumerate(chain.from_iterable(pieces), 1):
            yield f"{layout.path}, row {number}", name, values or []
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        raise DataError(f"{layout.path} can't be read as parquet: {one_line(error, first=True)}") from error


def _delimited_rows(layout: Layout, _: Workshop) -> Iterator[tuple[str, str, list[str]]]:
    names = header_names(layout.path, TextFormat(delimiter(layout.path)))
    user, items = names.index(layout.user), names.index(layout.column)
    with _long_fields():
        reader = csv.reader(read_lines(layout.path), delimiter=delimiter(layout.path), strict=True)
        line = 1
        try:
            for fields in reader:
                where, first, line = f"{layout.path}, line {line}", line == 1, reader.line_num + 1
                if first or not fields:
                    continue
                if len(fields) != len(names):
                    raise DataError(f"{where}: columns expected: {len(names)}, found: {len(fields)}; mend the file")
                yield where, fields[user], [item for item in fields[items].split(" ") if item]
        except csv.Error as error:
            raise DataError(f"{layout.path}, line {line}: {error}; look for unclosed quotes") from error


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let the csv module take a user's whole history in one field."""
    limit = csv.field_size_limit(MAX_LINE)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _json_rows(layout: Layout, _: Workshop) -> Iterator[tuple[str, str, list[str]]]:
    for where, row in read_objects(layout.path):
        items = value_of(row, layout.column, where)
        if not isinstance(items, list | None):
            raise DataError(
                f"{where}: {layout.column!r} is a {type(items).__name__}, not a list of ids; write lists, or one row "
                "per event and name its key with --item-column"
            )
        user = text_of(value_of(row, layout.user, where), "user", where)
        yield where, user, [text_of(item, "item", where) for item in items or []]

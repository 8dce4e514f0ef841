"""Histories from one row per event: DuckDB groups and orders them, on disk where they don't fit into memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path

import duckdb
import numpy as np

from finetune_kit.data.checks import settle_missing, settle_times
from finetune_kit.data.tables import RawTable, load_files
from finetune_kit.errors import DataError
from finetune_kit.recommendation.jsonlines import line_of_object, read_objects, text_of, value_of
from finetune_kit.recommendation.layout import Layout
from finetune_kit.recommendation.workshop import Workshop

ROWS_AT_ONCE = 50_000
NO_ITEM = "item IS NULL OR item::VARCHAR = ''"


def read_events(layout: Layout, workshop: Workshop) -> Iterator[tuple[str, Iterable[str]]]:
    """Yield each user, in the order of raw ids, and the items, oldest first, of the same time in the rows' order.

    The items must be taken before the next user is. A row without an item only names its user.

    Raises:
        DataError: For rows without user, or with a time that can't be read.
    """
    table = _load_json(layout, workshop) if layout.kind == "json" else _load(layout, workshop)
    settle_missing(table, "user")
    run = workshop.connection.execute
    run(f"CREATE TABLE bare AS SELECT DISTINCT user::VARCHAR AS user FROM events WHERE {NO_ITEM}")
    if workshop.count("SELECT count(*) FROM bare"):
        table.exclude(f"SELECT row FROM events WHERE {NO_ITEM}")
    time = "row" if layout.time is None else settle_times(table)[0]
    rows = workshop.connection.cursor().execute(
        f"""SELECT user, item FROM (
            SELECT user::VARCHAR AS user, item::VARCHAR AS item, {time} AS moment, row FROM events
            UNION ALL SELECT user, NULL, NULL, NULL FROM bare
        ) ORDER BY user, moment, row"""
    )
    for user, group in groupby(_fetch(rows), key=itemgetter(0)):
        yield user, (item for _, item in group if item is not None)


def _fetch(rows: duckdb.DuckDBPyConnection) -> Iterator[tuple[str, str | None]]:
    while some := rows.fetchmany(ROWS_AT_ONCE):
        yield from some


def _columns(layout: Layout) -> dict[str, str]:
    columns = {"user": layout.user, "item": layout.column}
    return columns if layout.time is None else {**columns, "time": layout.time}


def _load(layout: Layout, workshop: Workshop) -> RawTable:
    """Return the events of a Parquet file or of delimited text."""
    table = load_files(workshop, "events", [layout.path], _columns(layout))
    kinds = dict(workshop.connection.execute("SELECT column_name, column_type FROM (DESCRIBE events)").fetchall())
    for name, column in _columns(layout).items():
        if kinds[name].endswith("]") or kinds[name].startswith(("STRUCT", "MAP")):
            raise DataError(
                f"{layout.path}: column {column!r} holds {kinds[name]}, not one {name} a row; "
                "name lists of items, one row per user, with --items-column"
            )
    return table


class _JsonTable(RawTable):
    """Rows as they stood in JSON lines."""

    def locate(self, row: int) -> str:
        """Return where a row stood."""
        path = self.parts[0][0]
        assert isinstance(path, Path)
        return f"{path}, line {line_of_object(path, row)}"


def _load_json(layout: Layout, workshop: Workshop) -> RawTable:
    """Return the events of a file of JSON lines, all as text."""
    columns = _columns(layout)
    connection = workshop.connection
    connection.execute(f"CREATE TABLE events_stored ({', '.join(f'{name} VARCHAR' for name in columns)})")
    connection.execute("CREATE VIEW events AS SELECT rowid AS row, * FROM events_stored")
    rows = _json_rows(layout, columns)
    while some := list(islice(rows, ROWS_AT_ONCE)):
        part = {
            name: np.array(values, dtype=object) for name, values in zip(columns, zip(*some, strict=True), strict=True)
        }
        connection.register("part", part)
        connection.execute(f"INSERT INTO events_stored SELECT {', '.join(columns)} FROM part")
        connection.unregister("part")
    return _JsonTable(workshop, "events", tuple(columns), [(layout.path, None, 0)])


def _json_rows(layout: Layout, columns: dict[str, str]) -> Iterator[tuple[str, ...]]:
    for where, row in read_objects(layout.path):
        values = {name: value_of(row, key, where) for name, key in columns.items()}
        if isinstance(values.get("time"), float):
            values["time"] = repr(values["time"])
        yield tuple(text_of(value, name, where) for name, value in values.items())

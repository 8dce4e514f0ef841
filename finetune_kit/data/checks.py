"""What makes a row of raw events unusable; a check names the first such row, the reason and their number."""

from __future__ import annotations

from typing import Literal

from finetune_kit.data.database import sql_name
from finetune_kit.data.tables import RawTable
from finetune_kit.errors import DataError

ROWS_AT_ONCE = 16_000_000
"""How many rows are looked through for duplicates in one pass: about 0.5 GB."""

NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
NUMBERS += ("UHUGEINT", "FLOAT", "DOUBLE", "DECIMAL")
"""How DuckDB's names of numbers begin."""

TimeKind = Literal["number", "date"]


def settle(table: RawTable, rows: str, reason: str) -> None:
    """Refuse or drop the rows of a table that a query gives, as the preparation's ``on_bad`` says.

    Args:
        table: The raw table.
        rows: A query with the column ``row`` and, where the reason shows it, ``value``.
        reason: What is wrong; ``{value}`` stands for the first row's value.

    Raises:
        DataError: With ``on_bad="refuse"`` when there is such a row.
    """
    preparation = table.preparation
    found = sql_name(f"{table.name}_found")
    preparation.connection.execute(f"CREATE OR REPLACE TABLE {found} AS {rows}")
    bad = preparation.count(f"SELECT count(*) FROM {found}")
    if not bad:
        return
    columns = [row[0] for row in preparation.connection.execute(f"DESCRIBE {found}").fetchall()]
    value = "value" if "value" in columns else "NULL"
    row, shown = preparation.connection.execute(f"SELECT row, {value} FROM {found} ORDER BY row LIMIT 1").fetchall()[0]
    preparation.bad(table.locate(row), reason.replace("{value}", repr(shown)), bad)
    table.exclude(f"SELECT row FROM {found}")


def settle_missing(table: RawTable, column: str) -> None:
    """Refuse or drop rows without a value in a column: null, not a number, or text of no characters.

    Raises:
        DataError: As `settle` does.
    """
    name = sql_name(column)
    settle(
        table,
        f"SELECT row FROM {sql_name(table.name)} WHERE {name} IS NULL OR {name}::VARCHAR = ''"
        + (f" OR isnan({name})" if column_type(table, column) in ("FLOAT", "DOUBLE") else ""),
        f"no {column}",
    )


def column_type(table: RawTable, column: str) -> str:
    """Return DuckDB's name for what a column holds."""
    query = f"SELECT column_type FROM (DESCRIBE {sql_name(table.name)}) WHERE column_name = ?"
    return str(table.preparation.connection.execute(query, [column]).fetchall()[0][0])


def settle_duplicates(table: RawTable, columns: tuple[str, ...], what: str) -> None:
    """Refuse or drop rows that repeat an earlier row in some columns.

    Rows are first compared by a 64-bit hash, a part of the hashes at a time, so that memory stays bounded;
    only rows that share a hash are compared in full.

    Args:
        table: The raw table.
        columns: The columns that together must not occur twice.
        what: What a repeated row is, e.g. ``"an event"``.

    Raises:
        DataError: As `settle` does.
    """
    preparation, name, key = (
        table.preparation,
        sql_name(table.name),
        ", ".join(sql_name(column) for column in columns),
    )
    shared = sql_name(f"{table.name}_shared")
    preparation.connection.execute(f"CREATE OR REPLACE TABLE {shared} (code UBIGINT)")
    passes = 1 + preparation.count(f"SELECT count(*) FROM {name}") // ROWS_AT_ONCE
    for part in range(passes):
        preparation.connection.execute(
            f"INSERT INTO {shared} SELECT hash({key}) AS code FROM {name} WHERE code % {passes} = {part} "
            "GROUP BY code HAVING count(*) > 1"
        )
    if preparation.count(f"SELECT count(*) FROM {shared}"):
        again = f"SELECT row, row_number() OVER (PARTITION BY {key} ORDER BY row) AS nth FROM {name}"
        again += f" WHERE hash({key}) IN (SELECT code FROM {shared})"
        settle(table, f"SELECT row FROM ({again}) WHERE nth > 1", f"{what} that an earlier row has already")


def settle_times(table: RawTable, column: str = "time") -> tuple[str, TimeKind]:
    """Return how to read a table's times as numbers that sort, after settling those that can't be read.

    Whole numbers stay whole, other numbers become DOUBLE, dates and timestamps (ISO 8601; UTC where no zone
    is given) microseconds since 1970. What most rows can be read as is what the column is taken for.

    Returns:
        An SQL expression over ``column`` and the kind of its values.

    Raises:
        DataError: As `settle` does.
    """
    settle_missing(table, column)
    expression, kind = _time_expression(table, column)
    name = sql_name(column)
    bad = f"SELECT row, {name}::VARCHAR AS value FROM {sql_name(table.name)} WHERE ({expression}) IS NULL"
    what = "a number" if kind == "number" else "a date or timestamp"
    settle(table, bad, f"{column} {{value}} is not {what}")
    return expression, kind


def _time_expression(table: RawTable, column: str) -> tuple[str, TimeKind]:
    name, view = sql_name(column), sql_name(table.name)
    connection, declared = table.preparation.connection, column_type(table, column)
    if declared.startswith(("TIMESTAMP", "DATE")):
        moment = f"try_cast({name} AS TIMESTAMPTZ)"
        return f"CASE WHEN isfinite({moment}) THEN epoch_us({moment}) END", "date"
    if declared != "VARCHAR" and (not declared.startswith(NUMBERS) or declared.endswith("]")):
        raise DataError(
            f"{table.parts[0][0]}: {column} holds {declared}; a time is a number, a date or a timestamp, or text of one"
        )
    number = f"CASE WHEN isfinite(try_cast({name} AS DOUBLE)) THEN try_cast({name} AS DOUBLE) END"
    whole = f"try_cast({name} AS BIGINT)"
    moment = f"try_cast({name} AS TIMESTAMPTZ)"
    date = f"CASE WHEN isfinite({moment}) THEN epoch_us({moment}) END" if declared == "VARCHAR" else "NULL"
    # The cast to BIGINT would round what has a fraction.
    is_whole = f"NOT (contains({name}, '.') OR contains(lower({name}), 'e'))" if declared == "VARCHAR" else "true"
    wholes, numbers, dates = connection.execute(
        f"SELECT count({whole}) FILTER ({is_whole}), count({number}), count({date}) FROM {view}"
    ).fetchall()[0]
    if numbers >= dates:
        can_be_whole = declared == "VARCHAR" or "INT" in declared
        return (whole if can_be_whole and wholes == numbers else number), "number"
    return date, "date"


def refuse_mixed_times(first: TimeKind, second: TimeKind, one: str, other: str) -> None:
    """Refuse two files whose times can't be compared.

    Raises:
        DataError: When one has numbers and the other dates.
    """
    if first != second:
        raise DataError(f"times in {one} are {first}s and in {other} {second}s; write both the same way")

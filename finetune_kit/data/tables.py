"""Raw files into DuckDB tables that remember which row of which file each of their rows was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePath

import duckdb

from finetune_kit.data.columns import FileColumns, common_type, own_and_folders, require
from finetune_kit.data.database import parquet_scan, sql_file, sql_name, sql_text
from finetune_kit.data.places import SUFFIXES, Place
from finetune_kit.data.preparation import Preparation
from finetune_kit.data.remote import File, complaint
from finetune_kit.data.text import MAX_LINE, TextFormat, header_names, line_of_byte, line_of_record, refuse_bomb
from finetune_kit.data.zstd import refuse_zstd_bomb, zstd_header_names
from finetune_kit.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass
class RawTable:
    """Rows as they stood in files: a view ``name`` with the columns asked for and ``row``, from 0.

    Args:
        preparation: Where the table lives.
        name: The view's name.
        columns: Its columns, without ``row``.
        parts: Per file: the file, how it is written (None for Parquet) and the ``row`` of its first row.
    """

    preparation: Preparation
    name: str
    columns: tuple[str, ...]
    parts: list[tuple[File, TextFormat | None, int]] = field(default_factory=list)

    def locate(self, row: int) -> str:
        """Return where a row stood, e.g. ``"events.csv, line 7"``; reads text again up to there."""
        path, text, first = next(part for part in reversed(self.parts) if part[2] <= row)
        line = None if text is None else line_of_record(path, text, row - first)
        return f"{path}, row {row - first + 1}" if line is None else f"{path}, line {line}"

    def exclude(self, rows: str) -> None:
        """Leave out the rows that a query gives in its column ``row``."""
        connection = self.preparation.connection
        bad, stored = sql_name(f"{self.name}_bad"), sql_name(f"{self.name}_stored")
        connection.execute(f"CREATE TABLE IF NOT EXISTS {bad} (row BIGINT)")
        connection.execute(f"INSERT INTO {bad} SELECT row FROM ({rows})")
        connection.execute(
            f"CREATE OR REPLACE VIEW {sql_name(self.name)} AS "
            f"SELECT rowid AS row, * FROM {stored} WHERE rowid NOT IN (SELECT row FROM {bad})"
        )


def load_files(
    preparation: Preparation, name: str, files: Place | Sequence[File], columns: dict[str, str], advice: str = ""
) -> RawTable:
    """Return a `RawTable` of some columns of CSV, TSV or Parquet files, told apart by extension.

    Args:
        preparation: Where the table is made.
        name: The view to make.
        files: The files, read in this order; of a `Place` also what folders such as ``day=2026-01-01/`` say counts,
            for columns that the files lack.
        columns: Column of the view to column of the files. Text stays text; Parquet columns keep their type.
        advice: What to do about a missing column; ends the error.

    Raises:
        DataError: For an unreadable or empty file, a missing column, another width or extension, or a column that
            holds something else than in the files before.
    """
    place = files if isinstance(files, Place) else Place("", tuple(files))
    there = [own_and_folders(place, file, _column_types(preparation, file)) for file in place.files]
    for one in there:
        require(one, columns.values(), advice)
    types = {column: common_type(there, column) for column in columns.values()}
    table = RawTable(preparation, name, tuple(columns))
    for one in there:
        if one.file.suffix.lower() == ".parquet":
            with _readable(one.file):
                scan = parquet_scan(preparation.connection, one.file)
                _append(table, one.file, None, _expressions(one, columns, types), scan)
        else:
            text = TextFormat(DELIMITERS[_suffix(one.file)])
            _append_text(table, one.file, text, tuple(one.types), _expressions(one, columns, types))
        _settle_empty(table, is_one=len(there) == 1)
    return table


def _expressions(one: FileColumns, columns: Mapping[str, str], types: Mapping[str, str]) -> dict[str, str]:
    """Return what each column of a view is, in SQL: a column of the file, or what its folder says."""
    constants = {
        name: "NULL::VARCHAR" if value is None else f"{sql_text(value)}::VARCHAR" for name, value in one.folders.items()
    }
    return {
        name: constants[column] if column in constants else f"{sql_name(column)}::{types[column]}"
        for name, column in columns.items()
    }


def column_names(preparation: Preparation, path: File) -> tuple[str, ...]:
    """Return the columns of a CSV, TSV or Parquet file.

    Raises:
        DataError: For an unreadable or empty file, or another extension.
    """
    return tuple(_column_types(preparation, path))


def _column_types(preparation: Preparation, path: File) -> dict[str, str]:
    suffix, connection = _suffix(path), preparation.connection
    if suffix in DELIMITERS:
        return dict.fromkeys(_header(preparation, path, TextFormat(DELIMITERS[suffix])), "VARCHAR")
    if suffix != ".parquet":
        raise DataError(f"{path}: can't tell its format; the name must end in {', '.join(SUFFIXES)}")
    with _readable(path):
        rows = connection.execute(f"DESCRIBE SELECT * FROM {parquet_scan(connection, path)}").fetchall()
    return {row[0]: row[1] for row in rows}


def _header(preparation: Preparation, path: File, text: TextFormat) -> tuple[str, ...]:
    if path.suffix != ".zst":
        return header_names(path, text)
    with _readable(path):
        return zstd_header_names(preparation.connection, path, text)


def _suffix(path: File) -> str:
    return PurePath(path.name.removesuffix(".gz").removesuffix(".zst")).suffix.lower()


def append_text(table: RawTable, path: File, text: TextFormat, columns: dict[str, str]) -> None:
    """Append a file of delimited text to a table; its columns are all text, an empty field is null.

    Raises:
        DataError: As `load_files` does.
    """
    names = text.names or _header(table.preparation, path, text)
    require(FileColumns(path, dict.fromkeys(names, "VARCHAR"), {}), columns.values(), "")
    _append_text(table, path, text, names, {name: sql_name(column) for name, column in columns.items()})
    _settle_empty(table, is_one=True)


def _append_text(
    table: RawTable, path: File, text: TextFormat, names: Sequence[str], expressions: dict[str, str]
) -> None:
    connection = table.preparation.connection
    if path.suffix == ".gz":
        refuse_bomb(path)
    settings = {
        "columns": "{" + ", ".join(f"{sql_text(name)}: 'VARCHAR'" for name in names) + "}",
        "auto_detect": "false",
        "header": str(text.names is None).lower(),
        "delim": sql_text(text.delimiter),
        "quote": sql_text(text.quote),
        "escape": sql_text(text.quote),
        "encoding": sql_text(text.encoding),
        "max_line_size": str(MAX_LINE),
        "hive_partitioning": "false",  # names of folders such as user=7 are no columns
        "store_rejects": "true",  # rows of another width are set aside with their place in the file
    }
    reader = ", ".join(f"{key} = {value}" for key, value in settings.items())
    with _readable(path):
        if path.suffix == ".zst":
            refuse_zstd_bomb(connection, path)
        _append(table, path, text, expressions, f"read_csv({sql_file(connection, path)}, {reader})")
    _refuse_rejects(table, path)


def _append(table: RawTable, path: File, text: TextFormat | None, expressions: dict[str, str], scan: str) -> None:
    """Insert the rows of a scan in the file's order, so that DuckDB's ``rowid`` is their number."""
    connection, stored = table.preparation.connection, sql_name(f"{table.name}_stored")
    wanted = ", ".join(f"{expression} AS {sql_name(name)}" for name, expression in expressions.items())
    first = table.preparation.count(f"SELECT count(*) FROM {stored}") if table.parts else 0
    if table.parts:
        connection.execute(f"INSERT INTO {stored} SELECT {wanted} FROM {scan}")
    else:
        connection.execute(f"CREATE TABLE {stored} AS SELECT {wanted} FROM {scan}")
        connection.execute(f"CREATE VIEW {sql_name(table.name)} AS SELECT rowid AS row, * FROM {stored}")
    table.parts.append((path, text, first))


def _settle_empty(table: RawTable, is_one: bool) -> None:
    """Refuse the file that was appended last if it has no rows, or warn where it is one of several and may be."""
    path, _, first = table.parts[-1]
    if table.preparation.count(f"SELECT count(*) FROM {sql_name(f'{table.name}_stored')}") > first:
        return
    if is_one or table.preparation.on_bad == "refuse":
        raise DataError(f"{path} has no rows" + ("" if is_one else "; take it away, or give --on-bad drop"))
    table.preparation.warn(f"left out {path}, which has no rows")


@contextmanager
def _readable(path: File) -> Iterator[None]:
    """Turn DuckDB's complaint about a file into one line that names it; memory is another's business."""
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        is_text = path.suffix != ".parquet" and not str(error).startswith("Traceback")
        hint = "; look for unclosed quotes and for line ends that are not all alike" if is_text else ""
        raise DataError(
            f"{path} can't be read as {path.suffix.lstrip('.') or 'a table'}: {complaint(error)}{hint}"
        ) from error


def _refuse_rejects(table: RawTable, path: File) -> None:
    """Refuse or drop the rows of a text file that could not be taken apart; they are not in the table."""
    connection = table.preparation.connection
    rejects = connection.execute(
        "SELECT min(byte), arg_min(line, byte), count(*), arg_min(message, byte) FROM (SELECT line, "
        "line_byte_position AS byte, any_value(error_message) AS message FROM reject_errors GROUP BY ALL)"
    ).fetchall()
    connection.execute("DROP TABLE reject_errors; DROP TABLE reject_scans")
    byte, record, rows, message = rejects[0]
    if rows:
        line = record if path.suffix == ".zst" else line_of_byte(path, byte - 1)
        reason = (
            message.rstrip(".")
            .replace("Expected Number of Columns: ", "columns expected: ")
            .replace(" Found: ", ", found: ")
        )
        table.preparation.bad(f"{path}, line {line}", reason, rows)

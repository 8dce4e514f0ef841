"""Raw files into DuckDB tables that remember which row of which file each of their rows was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from finetune_kit.data.database import parquet_scan, sql_name, sql_path, sql_text
from finetune_kit.data.preparation import Preparation
from finetune_kit.data.text import MAX_LINE, TextFormat, header_names, line_of_byte, line_of_record, refuse_bomb
from finetune_kit.errors import DataError, did_you_mean, one_line

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".parquet", ".csv", ".tsv", ".csv.gz", ".tsv.gz")


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
    parts: list[tuple[Path, TextFormat | None, int]] = field(default_factory=list)

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


def find_files(text: str, what: str) -> list[Path]:
    """Return the files that a path, a folder of parts or a glob stands for, sorted.

    Raises:
        DataError: When there is none.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:  # ~somebody who has no home
        raise DataError(f"{what} {text!r}: {one_line(error)}") from None
    if path.is_file():
        return [path]
    if path.is_dir():
        names = [
            part for part in path.iterdir() if part.name.endswith(SUFFIXES) and not part.name.startswith((".", "_"))
        ]
        found = [part for part in names if part.is_file()]
        hint = f"the folder holds no {', '.join(SUFFIXES)} file"
    else:
        found = files_of_pattern(path)
        hint = "no such file or folder, and no file matches it as a pattern"
    if not found:
        raise DataError(f"{what} {text!r}: {hint}")
    return sorted(found)


def files_of_pattern(pattern: Path) -> list[Path]:
    """Return the files whose paths match a pattern; none where it is no pattern."""
    anchor = Path(pattern.anchor or ".")
    try:
        return [part for part in anchor.glob(str(pattern.relative_to(pattern.anchor))) if part.is_file()]
    except (ValueError, NotImplementedError):  # two stars beside something, a character that no path has
        return []


def load_files(
    preparation: Preparation, name: str, files: Sequence[Path], columns: dict[str, str], advice: str = ""
) -> RawTable:
    """Return a `RawTable` of some columns of CSV, TSV or Parquet files, told apart by extension.

    Args:
        preparation: Where the table is made.
        name: The view to make.
        files: The files, read in this order.
        columns: Column of the view to column of the files. Text stays text; Parquet columns keep their type.
        advice: What to do about a missing column; ends the error.

    Raises:
        DataError: For an unreadable or empty file, a missing column, another width or extension.
    """
    table = RawTable(preparation, name, tuple(columns))
    for path in files:
        names = column_names(preparation, path)
        _require(path, columns.values(), names, advice)
        if path.suffix.lower() == ".parquet":
            with _readable(path):
                _append(table, path, None, columns, parquet_scan(preparation.connection, path))
            _refuse_empty(table)
        else:
            append_text(table, path, TextFormat(DELIMITERS[_suffix(path)]), columns)
    return table


def column_names(preparation: Preparation, path: Path) -> tuple[str, ...]:
    """Return the columns of a CSV, TSV or Parquet file.

    Raises:
        DataError: For an unreadable or empty file, or another extension.
    """
    suffix = _suffix(path)
    if suffix in DELIMITERS:
        return header_names(path, TextFormat(DELIMITERS[suffix]))
    if suffix != ".parquet":
        raise DataError(f"{path}: can't tell its format; the name must end in {', '.join(SUFFIXES)}")
    with _readable(path):
        rows = preparation.connection.execute(
            f"DESCRIBE SELECT * FROM {parquet_scan(preparation.connection, path)}"
        ).fetchall()
    return tuple(row[0] for row in rows)


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def append_text(table: RawTable, path: Path, text: TextFormat, columns: dict[str, str]) -> None:
    """Append a file of delimited text to a table; its columns are all text, an empty field is null.

    Raises:
        DataError: As `load_files` does.
    """
    names = text.names or header_names(path, text)
    _require(path, columns.values(), names, "")
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
        _append(table, path, text, columns, f"read_csv({sql_path(path)}, {reader})")
    _refuse_rejects(table, path)
    _refuse_empty(table)


def _append(table: RawTable, path: Path, text: TextFormat | None, columns: dict[str, str], scan: str) -> None:
    """Insert the rows of a scan in the file's order, so that DuckDB's ``rowid`` is their number."""
    connection, stored = table.preparation.connection, sql_name(f"{table.name}_stored")
    wanted = ", ".join(f"{sql_name(column)} AS {sql_name(name)}" for name, column in columns.items())
    first = table.preparation.count(f"SELECT count(*) FROM {stored}") if table.parts else 0
    if table.parts:
        connection.execute(f"INSERT INTO {stored} SELECT {wanted} FROM {scan}")
    else:
        connection.execute(f"CREATE TABLE {stored} AS SELECT {wanted} FROM {scan}")
        connection.execute(f"CREATE VIEW {sql_name(table.name)} AS SELECT rowid AS row, * FROM {stored}")
    table.parts.append((path, text, first))


def _refuse_empty(table: RawTable) -> None:
    """Refuse the file that was appended last if it has no rows."""
    path, _, first = table.parts[-1]
    if table.preparation.count(f"SELECT count(*) FROM {sql_name(f'{table.name}_stored')}") == first:
        raise DataError(f"{path} has no rows")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn DuckDB's complaint about a file into one line that names it; memory is another's business."""
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        hint = (
            "" if path.suffix == ".parquet" else "; look for unclosed quotes and for line ends that are not all alike"
        )
        raise DataError(
            f"{path} can't be read as {path.suffix.lstrip('.') or 'a table'}: {one_line(error, first=True)}{hint}"
        ) from error


def _require(path: Path, wanted: Iterable[str], names: Sequence[str], advice: str) -> None:
    for column in wanted:
        if column not in names:
            guess = did_you_mean(column, names)
            raise DataError(f"{path} has no column {column!r}.{guess} Columns: {', '.join(names)}{advice}")


def _refuse_rejects(table: RawTable, path: Path) -> None:
    """Refuse or drop the rows of a text file that could not be taken apart; they are not in the table."""
    connection = table.preparation.connection
    rejects = connection.execute(
        "SELECT min(byte), count(*), arg_min(message, byte) FROM (SELECT line_byte_position AS byte, "
        "any_value(error_message) AS message FROM reject_errors GROUP BY line, line_byte_position)"
    ).fetchall()
    connection.execute("DROP TABLE reject_errors; DROP TABLE reject_scans")
    byte, rows, message = rejects[0]
    if rows:
        line = line_of_byte(path, byte - 1)
        reason = (
            message.rstrip(".")
            .replace("Expected Number of Columns: ", "columns expected: ")
            .replace(" Found: ", ", found: ")
        )
        table.preparation.bad(f"{path}, line {line}", reason, rows)

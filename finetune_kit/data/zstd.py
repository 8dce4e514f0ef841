"""Text packed by zstd, which DuckDB unpacks and Python, before 3.14, does not."""

from __future__ import annotations

import duckdb

from finetune_kit.data.database import sql_file
from finetune_kit.data.remote import File, num_bytes
from finetune_kit.data.text import HARMLESS, MAX_LINE, MOST_PACKED, TextFormat, bomb, first_names

HEADER_LINES = 10
"""How many lines are looked at for names of columns, in whose quotes a line may end."""


def zstd_header_names(connection: duckdb.DuckDBPyConnection, path: File, text: TextFormat) -> tuple[str, ...]:
    """Return the columns that the file's first line names.

    Raises:
        DataError: For a file that is empty, or names a column twice.
        duckdb.Error: For a damaged file.
    """
    rows = connection.execute(f"SELECT line FROM {_lines(connection, path)} LIMIT {HEADER_LINES}").fetchall()
    return first_names(path, text, [f"{line or ''}\n" for (line,) in rows])


def refuse_zstd_bomb(connection: duckdb.DuckDBPyConnection, path: File) -> None:
    """Raise for a file that unpacks to far more than text does; no more of it is unpacked than that.

    Raises:
        DataError: Naming both sizes.
        duckdb.Error: For a damaged file.
    """
    most = HARMLESS + MOST_PACKED * num_bytes(path)
    so_far = "sum(strlen(coalesce(line, '')) + 1) OVER (ROWS UNBOUNDED PRECEDING)"  # a window that streams
    beyond = f"SELECT 1 FROM (SELECT {so_far} AS unpacked FROM {_lines(connection, path)}) WHERE unpacked > {most}"
    if connection.execute(f"{beyond} LIMIT 1").fetchall():
        raise bomb(path, most)


def _lines(connection: duckdb.DuckDBPyConnection, path: File) -> str:
    """Return SQL that reads a file's lines as they are, in buffers of two of the longest."""
    settings = "columns = {'line': 'VARCHAR'}, auto_detect = false, header = false, delim = '', quote = '', escape = ''"
    sizes = f"max_line_size = {MAX_LINE}, buffer_size = {2 * MAX_LINE}"
    return (
        f"read_csv({sql_file(connection, path)}, {settings}, {sizes}, compression = 'zstd', hive_partitioning = false)"
    )

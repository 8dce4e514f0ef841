"""DuckDB as this package uses it: silent, off the network, in UTC; and text made safe for its SQL."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb

from finetune_kit.data.remote import File, num_bytes
from finetune_kit.errors import DataError, one_line

MAX_THREADS = 4
"""Every thread sorts and joins in buffers of its own: with dozens, a small memory limit can't be kept."""

MOST_VALUES, VALUES_PER_BYTE = 1_000_000, 16
"""How many values per column a Parquet file may claim, and how many more per byte of it."""


def connect(path: Path | None = None, settings: Mapping[str, Any] | None = None) -> duckdb.DuckDBPyConnection:
    """Return a connection to a database on disk, or in memory without a path.

    Args:
        path: The database's file.
        settings: More of DuckDB's settings, e.g. ``memory_limit``.
    """
    quiet = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }  # never reach for the network
    connection = duckdb.connect(":memory:" if path is None else str(path), config=quiet | dict(settings or {}))
    connection.execute("SET enable_progress_bar = false")
    with suppress(duckdb.Error):  # without the time zone extension, a time without a zone is UTC anyway
        connection.execute("SET TimeZone = 'UTC'")
    return connection


def connect_on_disk(scratch: Path, memory_limit: str) -> duckdb.DuckDBPyConnection:
    """Return a connection to a new database in a folder, where it also spills what exceeds the memory limit.

    Raises:
        duckdb.Error: For a limit that DuckDB can't read.
    """
    settings = {
        "memory_limit": memory_limit,
        "threads": min(MAX_THREADS, os.cpu_count() or 1),
        "temp_directory": str(scratch / "spill"),
    }
    return connect(scratch / "scratch.duckdb", settings)


@contextmanager
def working_database(scratch: Path, memory_limit: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Give a connection as `connect_on_disk` does, and close it; say in one line what DuckDB says in several.

    Args:
        scratch: Folder of the database.
        memory_limit: How much memory DuckDB may take, e.g. ``"500MB"``.

    Raises:
        DataError: When the limit is no amount of memory, memory or disk run out, or a file can't be read or written.
    """
    try:
        connection = connect_on_disk(scratch, memory_limit)
    except duckdb.Error as error:
        raise DataError(f"--memory-limit {memory_limit!r} is no amount of memory; give for example 1GB") from error
    try:
        yield connection
    except duckdb.OutOfMemoryException as error:
        raise DataError(
            f"more memory was wanted than --memory-limit {memory_limit}, or more disk than there is; raise the limit "
            f"({one_line(error, first=True)})"
        ) from error
    except duckdb.IOException as error:
        raise DataError(f"reading or writing failed: {one_line(error, first=True)}") from error
    except (duckdb.DataError, duckdb.InvalidInputException) as error:  # a value that nobody thought of
        raise DataError(f"a value can't be worked with: {one_line(error, first=True)}; mend the file") from error
    finally:
        connection.close()


def sql_text(text: str | Path) -> str:
    """Return text as an SQL literal."""
    return "'" + str(text).replace("'", "''") + "'"


def sql_name(name: str) -> str:
    """Return a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def parquet_scan(connection: duckdb.DuckDBPyConnection, path: File) -> str:
    """Return SQL that reads one Parquet file and nothing else: names of folders such as ``user=7`` add no column.

    Raises:
        DataError: When the file claims more values than its bytes can be worth: they would fill memory.
        duckdb.Error: When it is no Parquet file.
    """
    name = sql_file(connection, path)
    claimed = connection.execute(
        "SELECT max(n) FROM (SELECT sum(num_values::HUGEINT) AS n FROM "
        f"parquet_metadata({name}) GROUP BY path_in_schema)"
    ).fetchall()[0][0]
    size = num_bytes(path)
    if (claimed or 0) > MOST_VALUES + VALUES_PER_BYTE * size:
        raise DataError(f"{path} claims {claimed:,} values in {size:,} bytes, which can't be; write the file again")
    return f"read_parquet({name}, hive_partitioning = false)"


def sql_file(connection: duckdb.DuckDBPyConnection, file: File) -> str:
    """Return the name under which a connection reads one file, local or remote, as an SQL literal."""
    if isinstance(file, Path):
        return sql_path(file)
    from finetune_kit.data.mounted import mount  # fsspec: only where an address is given

    return sql_text(mount(connection, file))


def sql_path(path: Path) -> str:
    """Return the path of one file as an SQL literal in which no character is a wildcard."""
    return sql_text("".join(f"[{character}]" if character in "[*?" else character for character in str(path)))

"""DuckDB as this package uses it: silent, off the network, in UTC; and text made safe for its SQL."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb


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


def sql_text(text: str | Path) -> str:
    """Return text as an SQL literal."""
    return "'" + str(text).replace("'", "''") + "'"


def sql_name(name: str) -> str:
    """Return a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def sql_path(path: Path) -> str:
    """Return the path of one file as an SQL literal in which no character is a wildcard."""
    return sql_text("".join(f"[{character}]" if character in "[*?" else character for character in str(path)))

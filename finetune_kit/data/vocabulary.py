"""Vocabularies on disk: which raw id each dense id stands for, and the hash that binds weights to one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb

from finetune_kit.data.database import connect, parquet_scan, sql_path
from finetune_kit.data.folder import MANIFEST
from finetune_kit.errors import DataError, one_line

IDS_AT_ONCE = 100_000
IDS_PER_BYTE = 4
"""How many ids a byte of a file can hold at most: they differ from each other. Ours take 8 bytes each."""


def refuse_other_counts(folder: Path, counts: Mapping[str, Any], connection: duckdb.DuckDBPyConnection) -> None:
    """Check a manifest's counts against the vocabularies: models are made as large as they say.

    Raises:
        DataError: When a count is another one than a file's, or more than the file has room for.
    """
    for name in ("users", "source_items", "target_items"):
        path, count, what = folder / f"{name}.parquet", counts[name], name.replace("_", " ")
        try:
            parquet_scan(connection, path)
            query = f"SELECT sum(num_rows::HUGEINT) FROM parquet_file_metadata({sql_path(path)})"
            rows = connection.execute(query).fetchall()[0][0]
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            raise DataError(f"{path} is damaged ({one_line(error, first=True)}); prepare the dataset again") from error
        size = path.stat().st_size
        if type(count) is not int or count != rows or count > IDS_PER_BYTE * size:
            raise DataError(
                f"{folder} is damaged: its {MANIFEST} counts {count!r} {what}, {path.name} has {rows} in {size:,} "
                "bytes; prepare the dataset again"
            )


def read_vocabulary(path: Path) -> list[str]:
    """Return the raw ids of ``users.parquet`` or one of the ``…_items.parquet``, by dense id - 1.

    Raises:
        DataError: When the file is damaged.
    """
    with connect() as connection:
        try:
            rows = connection.execute(f"SELECT raw FROM {parquet_scan(connection, path)} ORDER BY id").fetchnumpy()
        except duckdb.OutOfMemoryException:
            raise
        except (duckdb.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path} is damaged ({one_line(error, first=True)}); prepare the dataset again") from error
    return [str(raw) for raw in rows["raw"]]


def vocabulary_hash(path: Path, connection: duckdb.DuckDBPyConnection) -> str:
    """Return a SHA-256, in hex, of a vocabulary's raw ids in the order of their dense ids."""
    digest = hashlib.sha256()
    rows = connection.execute(f"SELECT raw FROM {parquet_scan(connection, path)} ORDER BY id")
    while some := rows.fetchmany(IDS_AT_ONCE):
        for (raw,) in some:
            encoded = raw.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()

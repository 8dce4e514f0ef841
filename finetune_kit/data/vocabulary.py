"""Vocabularies on disk: which raw id each dense id stands for, and the hash that binds weights to one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import duckdb

from finetune_kit.data.database import connect, sql_path
from finetune_kit.errors import DataError, one_line

IDS_AT_ONCE = 100_000


def read_vocabulary(path: Path) -> list[str]:
    """Return the raw ids of ``users.parquet`` or one of the ``…_items.parquet``, by dense id - 1.

    Raises:
        DataError: When the file is damaged.
    """
    with connect() as connection:
        try:
            rows = connection.execute(f"SELECT raw FROM read_parquet({sql_path(path)}) ORDER BY id").fetchnumpy()
        except duckdb.OutOfMemoryException:
            raise
        except (duckdb.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path} is damaged ({one_line(error, first=True)}); prepare the dataset again") from error
    return [str(raw) for raw in rows["raw"]]


def vocabulary_hash(path: Path, connection: duckdb.DuckDBPyConnection) -> str:
    """Return a SHA-256, in hex, of a vocabulary's raw ids in the order of their dense ids."""
    digest = hashlib.sha256()
    rows = connection.execute(f"SELECT raw FROM read_parquet({sql_path(path)}) ORDER BY id")
    while some := rows.fetchmany(IDS_AT_ONCE):
        for (raw,) in some:
            encoded = raw.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()

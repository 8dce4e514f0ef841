"""Flat arrays beside ``source.parquet``: what training memory-maps.

``source.items.npy`` (int32) holds all users' items one after another, ``source.offsets.npy`` (int64,
``num_users + 1``) where each user's begin, ``source.flat.json`` the checksum of the Parquet file that they
were made of.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np

from finetune_kit.data.database import sql_path
from finetune_kit.errors import DataError, one_line

ITEMS, OFFSETS, STAMP = "source.items.npy", "source.offsets.npy", "source.flat.json"
EVENTS_AT_ONCE = 2_000_000
"""How many events of a range of users are held in memory, in about 0.1 GB; a single user may have more."""


def user_ranges(lengths: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield ranges of users, ``[first, last)`` counted from 0, of about `EVENTS_AT_ONCE` events each.

    Args:
        lengths: Source events per user, ``(num_users,)``.
    """
    total = np.cumsum(lengths)
    first = 0
    while first < len(lengths):
        before = total[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(total, before + EVENTS_AT_ONCE, side="right")))
        yield first, last
        first = last


def is_flat(folder: Path, checksum: str) -> bool:
    """Return whether the flat arrays are there and made of the ``source.parquet`` with that SHA-256."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in (ITEMS, OFFSETS)}
    except (OSError, ValueError, RecursionError):
        return False
    return stamp == {"source.parquet": checksum, "bytes": sizes}


def read_flat(folder: Path, num_users: int, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Return all users' items, memory-mapped, and where each user's begin; all are looked at once.

    Raises:
        DataError: When a file is damaged: what it says is not what ``num_users`` and ``num_items`` allow.
    """
    try:
        offsets = np.load(folder / OFFSETS, allow_pickle=False)
        mapped = np.load(folder / ITEMS, mmap_mode="r", allow_pickle=False)
        items = mapped.view(np.ndarray)  # indexes faster than a memmap
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(folder, one_line(error, first=True)) from error
    if offsets.shape != (num_users + 1,) or offsets.dtype != np.int64 or items.dtype != np.int32 or items.ndim != 1:
        raise _damaged(folder, f"{offsets.shape} {offsets.dtype} offsets, {items.shape} {items.dtype} items")
    if offsets[0] != 0 or offsets[-1] != len(items) or (np.diff(offsets) < 0).any():
        raise _damaged(folder, f"offsets from {offsets[0]} to {offsets[-1]} for {len(items)} items")
    for start in range(0, len(items), EVENTS_AT_ONCE):
        some = items[start : start + EVENTS_AT_ONCE]
        if some.min() < 1 or some.max() > num_items:
            raise _damaged(folder, f"items from {some.min()} to {some.max()}, where there are {num_items}")
    return items, offsets


def _damaged(folder: Path, reason: str) -> DataError:
    return DataError(
        f"{folder / ITEMS} or {OFFSETS} is damaged ({reason}); delete {STAMP} beside it and both are written anew"
    )


def write_flat(folder: Path, checksum: str, connection: duckdb.DuckDBPyConnection) -> None:
    """Write the flat arrays from ``source.parquet``, a range of users at a time.

    Args:
        folder: The dataset folder.
        checksum: SHA-256 of its ``source.parquet``.
        connection: Any database; its memory limit holds.

    Raises:
        DataError: When the file's users are not 1, 2, 3, …, or the folder can't be written.
    """
    scan = f"read_parquet({sql_path(folder / 'source.parquet')})"
    lengths = _read_lengths(connection, scan, folder)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    with tempfile.TemporaryDirectory(prefix=".flat.", dir=_writable(folder)) as temporary:
        new = Path(temporary)
        np.save(new / OFFSETS, offsets)
        items = np.lib.format.open_memmap(new / ITEMS, mode="w+", dtype=np.int32, shape=(int(offsets[-1]),))
        for first, last in user_ranges(lengths):
            query = f"SELECT unnest(items) AS item FROM {scan} WHERE user > {first} AND user <= {last}"
            items[offsets[first] : offsets[last]] = connection.execute(query).fetchnumpy()["item"]
        items.flush()
        sizes = {name: (new / name).stat().st_size for name in (ITEMS, OFFSETS)}
        stamp = {"source.parquet": checksum, "bytes": sizes}
        (new / STAMP).write_text(json.dumps(stamp) + "\n", encoding="utf-8")
        for name in (ITEMS, OFFSETS, STAMP):  # the stamp last: the arrays count only once both are in place
            (new / name).replace(folder / name)


def _read_lengths(connection: duckdb.DuckDBPyConnection, scan: str, folder: Path) -> np.ndarray:
    columns = connection.execute(f"SELECT user, len(items) AS length FROM {scan}").fetchnumpy()
    users = columns["user"]
    if not np.array_equal(users, np.arange(1, len(users) + 1)):
        file = folder / "source.parquet"
        raise DataError(f"{file}: the column user must be 1, 2, 3, … in order; prepare it again")
    return np.asarray(columns["length"], dtype=np.int64)


def _writable(folder: Path) -> Path:
    if not os.access(folder, os.W_OK):
        raise DataError(f"{folder} lacks {ITEMS} and can't be written; open it once where it can, or copy it")
    return folder

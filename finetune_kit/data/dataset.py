"""A prepared dataset, opened: what training, evaluation and `ftkit data inspect` read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np

from finetune_kit.data.database import connect, parquet_scan
from finetune_kit.data.flat import EVENTS_AT_ONCE, is_flat, read_flat, write_flat
from finetune_kit.data.folder import read_manifest
from finetune_kit.data.vocabulary import read_vocabulary, refuse_other_counts
from finetune_kit.errors import DataError, one_line

KEPT = 2**22
"""Users × length up to which `Dataset.sequences` keeps all users' latest items in memory, 8 bytes each."""

UNKNOWN = -1
"""The class of a user whose label is not known."""


class Target(NamedTuple):
    """All target instances, int64 arrays ``(num_instances,)`` sorted by (user, position)."""

    user: np.ndarray
    item: np.ndarray
    position: np.ndarray


class Labels(NamedTuple):
    """One profile label: its classes, and per user a class's index, ``(num_users,)`` int64, -1 if unknown.

    Classes are sorted, as numbers where all of them are whole numbers. User ``u`` stands at ``value[u - 1]``.
    """

    classes: tuple[str, ...]
    value: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """A dataset folder, memory-mapped. Make one with `Dataset.open`.

    Users, source items and target items are dense ids from 1; 0 pads.

    Args:
        path: The folder.
        manifest: What its ``dataset.json`` says.
    """

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """Return the dataset in a folder; its flat arrays are written anew if missing or stale.

        Raises:
            DataError: For no folder, no dataset, another format version, or a file missing or damaged.
        """
        path = Path(path)
        manifest = read_manifest(path)
        checksum = manifest["files"]["source.parquet"]["sha256"]
        with connect() as connection:
            refuse_other_counts(path, manifest["counts"], connection)
            if not is_flat(path, checksum, manifest["counts"]["users"]):
                with _undamaged(path / "source.parquet"):
                    write_flat(path, checksum, connection)
        return cls(path, manifest)

    @property
    def name(self) -> str:
        """The name it was prepared under."""
        return self.manifest["name"]

    @property
    def num_users(self) -> int:
        """Number of users."""
        return self.manifest["counts"]["users"]

    @property
    def num_source_items(self) -> int:
        """Number of source items, without the padding 0."""
        return self.manifest["counts"]["source_items"]

    @property
    def num_target_items(self) -> int:
        """Number of target items, without the padding 0."""
        return self.manifest["counts"]["target_items"]

    @property
    def source_items_hash(self) -> str:
        """SHA-256 of the source items' raw ids in the order of their dense ids."""
        return self.manifest["vocabularies"]["source"]

    @property
    def target_items_hash(self) -> str:
        """SHA-256 of the target items' raw ids in the order of their dense ids."""
        return self.manifest["vocabularies"]["target"]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the Parquet files' checksums: equal for equal content, whatever the folder."""
        files = self.manifest["files"]
        text = "\n".join(f"{name} {files[name]['sha256']}" for name in sorted(files) if name.endswith(".parquet"))
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def target(self) -> Target:
        """All target instances."""
        columns = self._read("target.parquet", "SELECT user, item, position FROM {} ORDER BY user, position")
        most = {"user": self.num_users, "item": self.num_target_items, "position": 2**31}
        for name, values in columns.items():
            self._refuse_others("target.parquet", values, 0 if name == "position" else 1, most[name])
        return Target(*(columns[name].astype(np.int64) for name in Target._fields))

    @cached_property
    def labels(self) -> dict[str, Labels]:
        """The profile labels by name; empty without ``labels.parquet``."""
        if "labels.parquet" not in self.manifest["files"]:
            return {}
        columns = self._read("labels.parquet", "SELECT * FROM {}")
        user = columns.pop("user")
        self._refuse_others("labels.parquet", user, 1, self.num_users)
        return {name: _labels(user, values, self.num_users) for name, values in columns.items()}

    @cached_property
    def source_lengths(self) -> np.ndarray:
        """Source events per user, ``(num_users,)`` int64; user ``u`` stands at ``u - 1``."""
        return np.diff(self._offsets)

    @cached_property
    def source_items(self) -> np.ndarray:
        """All users' source items one after another, ``(num_events,)`` int32, memory-mapped."""
        return self._flat[0]

    def source_frequency(self) -> np.ndarray:
        """Return how often each source item occurs, ``(num_source_items,)`` int64; item ``i`` stands at ``i - 1``."""
        items, counts = self.source_items, np.zeros(self.num_source_items + 1, dtype=np.int64)
        for start in range(0, len(items), EVENTS_AT_ONCE):  # bincount makes a copy of 8 bytes an event
            counts += np.bincount(items[start : start + EVENTS_AT_ONCE], minlength=len(counts))
        return counts[1:]

    def sequences(self, users: np.ndarray, max_length: int, skip_latest: np.ndarray | int = 0) -> np.ndarray:
        """Return users' source sequences, left-padded with 0, the most recent items kept.

        Args:
            users: Users' ids, ``(n,)``, each in [1, ``num_users``].
            max_length: Length of the result's rows, at least 1.
            skip_latest: How many of the latest events to leave out, for all users or ``(n,)``, each ≥ 0.

        Returns:
            Item ids, ``(n, max_length)`` int64, the latest last.

        Raises:
            DataError: For a user that is not in the dataset.
        """
        users = np.asarray(users, dtype=np.int64)
        if len(users) and not (users.min() >= 1 and users.max() <= self.num_users):
            raise DataError(f"users must be in [1, {self.num_users}], not {users.min()} to {users.max()}")
        if isinstance(skip_latest, int) and not skip_latest and self.num_users * max_length <= KEPT:
            if max_length not in self._latest:
                self._latest[max_length] = self._cut(np.arange(1, self.num_users + 1), max_length, 0)
            return self._latest[max_length][users - 1]
        return self._cut(users, max_length, skip_latest)

    def _cut(self, users: np.ndarray, max_length: int, skip_latest: np.ndarray | int) -> np.ndarray:
        begin, end = self._offsets[users - 1], self._offsets[users]
        place = (end - skip_latest)[:, None] + np.arange(-max_length, 0)  # (n, max_length)
        is_item = place >= begin[:, None]
        return np.where(is_item, self.source_items[np.where(is_item, place, 0)], 0).astype(np.int64)

    @cached_property
    def _latest(self) -> dict[int, np.ndarray]:
        """All users' latest items, ``(num_users, max_length)``, by ``max_length``; for small datasets alone."""
        return {}

    def raw_users(self) -> list[str]:
        """Return the users' raw ids by dense id - 1."""
        return self._vocabulary("users.parquet", self.num_users)

    def raw_source_items(self) -> list[str]:
        """Return the source items' raw ids by dense id - 1."""
        return self._vocabulary("source_items.parquet", self.num_source_items)

    def raw_target_items(self) -> list[str]:
        """Return the target items' raw ids by dense id - 1."""
        return self._vocabulary("target_items.parquet", self.num_target_items)

    @cached_property
    def _offsets(self) -> np.ndarray:
        return self._flat[1]

    @cached_property
    def _flat(self) -> tuple[np.ndarray, np.ndarray]:
        return read_flat(self.path, self.num_users, self.num_source_items)

    def _read(self, name: str, query: str) -> dict[str, np.ndarray]:
        with connect() as connection, _undamaged(self.path / name):
            return connection.execute(query.format(parquet_scan(connection, self.path / name))).fetchnumpy()

    def _vocabulary(self, name: str, size: int) -> list[str]:
        raw = read_vocabulary(self.path / name)
        if len(raw) != size:
            raise DataError(f"{self.path / name} is damaged: {len(raw)} ids, not {size}; prepare the dataset again")
        return raw

    def _refuse_others(self, name: str, ids: np.ndarray, least: int, most: int) -> None:
        """Refuse a table with ids outside of ``[least, most]``, or that are none."""
        if not np.issubdtype(ids.dtype, np.integer) or np.ma.is_masked(ids):
            raise DataError(f"{self.path / name} is damaged: ids that are no whole numbers; prepare the dataset again")
        if len(ids) and not (ids.min() >= least and ids.max() <= most):
            raise DataError(
                f"{self.path / name} is damaged: ids from {ids.min()} to {ids.max()}, not {least} to {most}; prepare "
                "the dataset again"
            )


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """Turn what reading a damaged table raises into one line that names it; memory is another's business."""
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise
    except (duckdb.Error, ValueError, KeyError, UnicodeDecodeError) as error:
        if isinstance(error, DataError):
            raise
        reason = one_line(error, first=True)
        raise DataError(f"{path} is damaged ({reason}); prepare the dataset again") from error


def _labels(user: np.ndarray, values: np.ndarray, num_users: int) -> Labels:
    """Return one label's classes and the class per user; a masked value is unknown."""
    known = ~np.ma.getmaskarray(values)
    texts = np.asarray(np.ma.getdata(values)[known], dtype=str)
    classes, index = np.unique(texts, return_inverse=True)
    if all(re.fullmatch("-?[0-9]{1,1000}", text) for text in classes):  # Python's own, as they may be beyond 2⁶³
        order = np.array(sorted(range(len(classes)), key=lambda k: int(classes[k])), dtype=np.int64)
        classes, index = classes[order], np.argsort(order)[index]
    value = np.full(num_users, UNKNOWN, dtype=np.int64)
    value[np.asarray(user)[known] - 1] = index
    return Labels(tuple(classes.tolist()), value)

"""Parts that instances had before: a training that goes on keeps apart what was trained on from what is measured on.

Weights that have learned from an instance know it. Had it fallen into the test part of a new split, the numbers would
be too good. So whoever starts from such weights, on the same dataset or on another with some of the same users and
items, keeps the part of every instance that had one; only instances that are new are split anew. Instances that a
dataset does not have go along by their raw ids: a later one may have them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finetune_kit.data.matched import Matched
from finetune_kit.data.split import Split
from finetune_kit.errors import CheckpointError, one_line
from finetune_kit.files import read_table, write_table

if TYPE_CHECKING:
    from finetune_kit.data.dataset import Dataset
    from finetune_kit.sections import Protocol

PARTS = ("train", "valid", "test")
NEW = -1
"""The part of an instance that had none."""
KEPT, SPLIT = "earlier.parquet", "split.parquet"
"""Files of a run: the parts that it was bound to keep, and those that its instances had."""
GONE = "gone.parquet"
"""File beside these: the parts of instances whose user or item the dataset does not have, by raw ids."""


@dataclass(frozen=True)
class Earlier:
    """Instances and the part of each, in the ids of one dataset; an instance may have several parts.

    Args:
        user: Users' dense ids, ``(instances,)``.
        item: Target items' dense ids, or classes, ``(instances,)``; 0 where only the user is in the dataset.
        part: Index into `PARTS`, ``(instances,)``.
        gone: Raw user, raw item and part of instances whose user or item the dataset does not have.
    """

    user: np.ndarray
    item: np.ndarray
    part: np.ndarray
    gone: frozenset[tuple[str, str, int]] = frozenset()

    @classmethod
    def read(cls, folder: Path, name: str = KEPT) -> Earlier | None:
        """Return what a folder's table says, and what is gone; None where there is no such table.

        Raises:
            CheckpointError: When one of them is damaged.
        """
        if not (folder / name).exists():
            return None
        user, item, part = _read_parts(folder / name)
        gone = zip(*(column.tolist() for column in _read_parts(folder / GONE)), strict=True)
        return cls(user, item, part, frozenset(gone))

    @classmethod
    def of(cls, folder: Path, old: Dataset, new: Dataset) -> Earlier | None:
        """Return the parts of a run's instances in the ids of another dataset; None for a folder without parts.

        What the run itself was bound to keep is among them, whether its dataset had these instances or not.

        Args:
            folder: Run folder, or that of a backbone that target instances were trained into.
            old: Its dataset, seen by its task.
            new: The other dataset, seen by the same task.
        """
        found = [earlier for name in (SPLIT, KEPT) if (earlier := cls.read(folder, name)) is not None]
        if not found:
            return None
        columns = zip(*((one.user, one.item, one.part) for one in found), strict=True)
        user, item, part = np.unique([np.concatenate(column) for column in columns], axis=1)
        earlier = cls(user, item, part, frozenset().union(*(one.gone for one in found)))
        return earlier if old.fingerprint == new.fingerprint else earlier._translated(old, new)

    def _translated(self, old: Dataset, new: Dataset) -> Earlier:
        """Return the parts in the ids of another dataset; what is not in it is gone, what is in it again comes back."""
        users, items = (old.raw_users(), new.raw_users()), (old.raw_target_items(), new.raw_target_items())
        user, item = Matched.of(*users).translate(self.user), Matched.of(*items).translate(self.item)
        is_there = (user != 0) & (item != 0)
        is_lost = ~is_there & (self.item != 0)
        lost = zip(*(column[is_lost].tolist() for column in (self.user, self.item, self.part)), strict=True)
        absent = {(users[0][user - 1], items[0][item - 1], part) for user, item, part in lost} | self.gone
        user_of, item_of = ({raw: id for id, raw in enumerate(known[1], 1)} for known in (users, items))
        known = [(user_of[user], item_of.get(item, 0), part) for user, item, part in absent if user in user_of]
        rows = np.array(known, dtype=np.int64).reshape(-1, 3)
        return Earlier(
            np.concatenate([user[is_there], rows[:, 0]]),
            np.concatenate([item[is_there], rows[:, 1]]),
            np.concatenate([self.part[is_there], rows[:, 2]]),
            frozenset(one for one in absent if one[0] not in user_of or one[1] not in item_of),
        )

    def write(self, folder: Path, name: str = KEPT) -> None:
        """Write the parts into a folder, and what is gone beside them."""
        _write_parts(folder / name, self.user, self.item, self.part)
        if self.gone:
            user, item, part = zip(*sorted(self.gone), strict=True)
            _write_parts(folder / GONE, np.array(user, dtype=object), np.array(item, dtype=object), np.array(part))

    def part_of(self, user: np.ndarray, item: np.ndarray, protocol: Protocol) -> np.ndarray:
        """Return the part that instances ``(n,)`` had, or `NEW`.

        Where there are several (by ``protocol="authors"`` validation and test; by ``protocol="user"`` those of any
        instances of one user), training comes before validation, and that before the test.
        """
        if protocol == "user":
            item, own_item = np.zeros_like(item), np.zeros_like(self.item)
        else:
            own_item = self.item
        width = int(max(item.max(initial=0), own_item.max(initial=0))) + 1
        key, own = user * width + item, self.user.astype(np.int64) * width + own_item
        found = np.full(len(key), NEW)
        for part in reversed(range(len(PARTS))):
            found[np.isin(key, own[self.part == part])] = part
        return found

    def keep(self, parts: Split, user: np.ndarray, item: np.ndarray, protocol: Protocol) -> Split:
        """Return a split in which instances that had a part have that one, and the others what they had in ``parts``.

        Args:
            parts: A split of all instances.
            user: The user of each instance, ``(instances,)``.
            item: Its target item or class, ``(instances,)``.
            protocol: How ``parts`` was made.
        """
        was = self.part_of(user, item, protocol)
        measured = [1, 2] if protocol == "authors" else None  # which validates on what it tests

        def kept(own: np.ndarray, earlier: list[int]) -> np.ndarray:
            is_own = np.isin(np.arange(len(was)), own) & (was == NEW)
            return np.flatnonzero(is_own | np.isin(was, earlier))

        return Split(
            train=kept(parts.train, [0]),
            known=kept(parts.known, [0]),
            valid=kept(parts.valid, measured or [1]),
            test=kept(parts.test, measured or [2]),
        )


def _read_parts(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return users, items and parts of a table; none where there is no such table."""
    if not path.exists():
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
    try:
        table = read_table(path)
        part = np.full(len(table["part"]), NEW)
        for index, known in enumerate(PARTS):
            part[table["part"] == known] = index
        if NEW in part:
            raise ValueError(f"a part is none of {', '.join(PARTS)}")
        return table["user"], table["item"], part
    except Exception as error:  # DuckDB's, or for a column that does not exist
        raise CheckpointError(f"{path} is damaged: {one_line(error, first=True)}") from error


def _write_parts(path: Path, user: np.ndarray, item: np.ndarray, part: np.ndarray) -> None:
    write_table(path, {"user": user, "item": item, "part": np.array(PARTS, dtype=object)[part]})

"""Parts that instances had before: a training that goes on keeps apart what was trained on from what is measured on.

Weights that have learned from an instance know it. Had it fallen into the test part of a new split, the numbers would
be too good. So whoever starts from such weights, on the same dataset or on another with some of the same users and
items, keeps the part of every instance that had one; only instances that are new are split anew.
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


@dataclass(frozen=True)
class Earlier:
    """Instances and the part of each, in the ids of one dataset; an instance may have several parts.

    Args:
        user: Users' dense ids, ``(instances,)``.
        item: Target items' dense ids, or classes, ``(instances,)``.
        part: Index into `PARTS`, ``(instances,)``.
    """

    user: np.ndarray
    item: np.ndarray
    part: np.ndarray

    @classmethod
    def read(cls, folder: Path, name: str = KEPT) -> Earlier | None:
        """Return what a run folder's table says, or None where there is no such table.

        Raises:
            CheckpointError: When it is damaged.
        """
        if not (folder / name).exists():
            return None
        try:
            table = read_table(folder / name)
            part = np.full(len(table["part"]), NEW)
            for index, known in enumerate(PARTS):
                part[table["part"] == known] = index
            if NEW in part:
                raise ValueError(f"a part is none of {', '.join(PARTS)}")
            return cls(table["user"], table["item"], part)
        except Exception as error:  # DuckDB's, or for a column that does not exist
            raise CheckpointError(f"{folder / name} is damaged: {one_line(error, first=True)}") from error

    @classmethod
    def of(cls, folder: Path, old: Dataset, new: Dataset) -> Earlier | None:
        """Return the parts of a run's instances in the ids of another dataset; None for a folder without parts.

        Args:
            folder: Run folder, or that of a backbone that target instances were trained into.
            old: Its dataset, seen by its task.
            new: The other dataset, seen by the same task.
        """
        earlier = cls.read(folder, SPLIT)
        if earlier is None or old.fingerprint == new.fingerprint:
            return earlier
        user = Matched.of(old.raw_users(), new.raw_users()).translate(earlier.user)
        item = Matched.of(old.raw_target_items(), new.raw_target_items()).translate(earlier.item)
        still = (user != 0) & (item != 0)
        return cls(user[still], item[still], earlier.part[still])

    def write(self, folder: Path, name: str = KEPT) -> None:
        """Write the parts into a folder."""
        part = np.array(PARTS, dtype=object)[self.part]
        write_table(folder / name, {"user": self.user, "item": self.item, "part": part})

    def part_of(self, user: np.ndarray, item: np.ndarray, protocol: Protocol) -> np.ndarray:
        """Return the part that instances ``(n,)`` had, or `NEW`.

        Where there are several (an item bought twice; by ``protocol="user"`` any instances of one user), training
        comes before validation, and that before the test.
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

"""Which entries of one vocabulary another has, by raw id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Matched:
    """An old vocabulary laid beside a new one; entries count from 0, so that an id's is the id - 1.

    Args:
        old: Entries of the old one that the new one has too, ``(num_known,)`` int64.
        new: Where these stand in the new one, ``(num_known,)`` int64.
        num_old: Entries of the old one.
        num_new: Entries of the new one.
    """

    old: np.ndarray
    new: np.ndarray
    num_old: int
    num_new: int

    @classmethod
    def of(cls, old: Sequence[str], new: Sequence[str]) -> Matched:
        """Return two vocabularies, raw ids by dense id - 1, laid beside one another."""
        place = {raw: index for index, raw in enumerate(old)}
        pairs = [(place[raw], index) for index, raw in enumerate(new) if raw in place]
        both = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        return cls(both[:, 0], both[:, 1], len(old), len(new))

    @property
    def num_known(self) -> int:
        """How many entries both have."""
        return len(self.old)

    def translate(self, ids: np.ndarray) -> np.ndarray:
        """Return old dense ids, any shape, as new ones, int64; 0 where the new vocabulary has no such entry."""
        table = np.zeros(self.num_old + 1, dtype=np.int64)
        table[self.old + 1] = self.new + 1
        return table[ids]

    def __str__(self) -> str:
        """Return how many are known, new and gone."""
        return (
            f"{self.num_known:,} known, {self.num_new - self.num_known:,} new, {self.num_old - self.num_known:,} gone"
        )

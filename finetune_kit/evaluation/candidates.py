"""The items that the sampled protocol ranks a positive among: a function of (seed, instance), and kept with the run.

An instance is told by its user and its item. Its candidates are the same in any batch, order, part or process, on any
device, and whatever other instances there are. A run stores those of its validation and test instances, with a hash in
``metrics.json``, so that later measurements rank among the same ones and edited ones are refused.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from finetune_kit.errors import CheckpointError, one_line
from finetune_kit.files import read_table, write_table
from finetune_kit.memory import is_out_of_memory
from finetune_kit.seeding import derive_seed

FILE = "candidates.parquet"
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MAX_CELLS = 2**21
"""Most numbers drawn at once; bounds the memory of a draw."""


@dataclass(frozen=True)
class Candidates:
    """The candidates of some instances; arrays run parallel, sorted by user and item, each pair once.

    Args:
        user: Users' dense ids, ``(instances,)``.
        item: The positives, ``(instances,)``.
        drawn: ``(instances, candidates)`` int64, items from 1.
    """

    user: np.ndarray
    item: np.ndarray
    drawn: np.ndarray

    @classmethod
    def draw(cls, user: np.ndarray, item: np.ndarray, num_items: int, num_candidates: int, seed: int) -> Candidates:
        """Return the candidates of instances given in any order, as `draw_candidates` draws them."""
        user, item = np.unique(np.stack([user, item]), axis=1)
        return cls(user, item, draw_candidates(user, item, num_items, num_candidates, seed))

    @classmethod
    def read(cls, folder: Path, sha256: str) -> Candidates:
        """Return what `write` wrote into a run folder.

        Raises:
            CheckpointError: When it is not there, damaged, or not what was written.
        """
        path = folder / FILE
        try:
            table = read_table(path)
            columns = [table[f"candidate_{k}"] for k in range(len(table) - 2)]
            found = cls(table["user"], table["item"], np.stack(columns, axis=1).astype(np.int64))
        except Exception as error:  # DuckDB's, or for a column that does not exist
            if is_out_of_memory(error):
                raise
            raise CheckpointError(
                f"{path} can't be read: {one_line(error, first=True)}; copy the run's folder again"
            ) from error
        if found.sha256 != sha256:
            raise CheckpointError(
                f"{path} was edited: its candidates have the hash {found.sha256[:12]}, metrics.json says {sha256[:12]}"
                "; copy the run's folder again"
            )
        return found

    def write(self, folder: Path) -> None:
        """Write them into a run folder: ``user``, ``item``, and a column per candidate."""
        columns = {
            f"candidate_{k}": np.ascontiguousarray(self.drawn[:, k], np.int32) for k in range(self.drawn.shape[1])
        }
        write_table(folder / FILE, {"user": self.user, "item": self.item, **columns})

    @property
    def sha256(self) -> str:
        """The hash of what they are, however they are stored."""
        whole = np.column_stack([self.user, self.item, self.drawn]).astype("<i8")
        return hashlib.sha256(np.ascontiguousarray(whole).tobytes()).hexdigest()

    def of(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Return the candidates of some of the instances, ``(n, candidates)``.

        Args:
            user: ``(n,)``.
            item: ``(n,)``.

        Raises:
            CheckpointError: For an instance that they are not of.
        """
        key = _keys(user, item)
        place = np.minimum(np.searchsorted(self._own, key), len(self._own) - 1)
        if len(lost := np.flatnonzero(self._own[place] != key)):
            pair = f"user {user[lost[0]]} and item {item[lost[0]]}"
            raise CheckpointError(f"{FILE} has no candidates of {pair}; copy the run's folder again")
        return self.drawn[place]

    @cached_property
    def _own(self) -> np.ndarray:
        return _keys(self.user, self.item)


def _keys(user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Return a number per pair, in the order of users and items."""
    return user.astype(np.int64) << 32 | item.astype(np.int64)


def draw_candidates(
    user: np.ndarray, positive: np.ndarray, num_items: int, num_candidates: int, seed: int
) -> np.ndarray:
    """Return distinct items other than the positive, uniform, ``(instances, candidates)`` int64.

    Each row is a function of (seed, user, positive) and the two numbers alone.

    Args:
        user: ``(instances,)``, users' ids.
        positive: ``(instances,)``, items from 1.
        num_items: Items of the target domain.
        num_candidates: Candidates per instance (the authors' protocol: 99); all others where there are no more.
        seed: Seed of the draw.
    """
    num_others = num_items - 1
    width = min(num_candidates, num_others)
    state = np.full(len(positive), derive_seed(seed, "candidates"), np.uint64)
    for part in (user, positive):
        state = _mixed(state + (part.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    drawn = np.empty((len(positive), width), np.int64)
    step = max(1, _MAX_CELLS // num_others if 2 * width > num_others else _MAX_CELLS // width)
    for start in range(0, len(positive), step):
        drawn[start : start + step] = _distinct(state[start : start + step], num_others, width)
    return drawn + (drawn >= positive[:, None])  # step over the positive


def _distinct(state: np.ndarray, high: int, width: int) -> np.ndarray:
    """Return for each state ``(n,)`` distinct integers from 1 … high, ``(n, width)``.

    Where they are many, those that come first in a random order; where they are few, drawn one by one, and what
    repeats an earlier one of its row is drawn again.
    """
    if 2 * width > high:
        return 1 + np.argsort(_numbers(state, np.arange(high)), axis=1, kind="stable")[:, :width]
    drawn = _integers(state, np.arange(width), high)
    rows, count = np.arange(len(state)), width
    while len(rows):
        order = np.argsort(drawn[rows], axis=1, kind="stable")
        ordered = np.take_along_axis(drawn[rows], order, axis=1)
        repeats = np.zeros_like(ordered, dtype=bool)
        np.put_along_axis(repeats, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
        row, column = np.nonzero(repeats)
        again = _integers(state[rows], count + np.arange(width), high)
        drawn[rows[row], column] = again[row, column]
        rows, count = rows[repeats.any(axis=1)], count + width
    return drawn


def _integers(state: np.ndarray, counter: np.ndarray, high: int) -> np.ndarray:
    """Return integers from 1 … high, uniform to one part in 2³²/high, ``(n, len(counter))``."""
    return 1 + ((_numbers(state, counter) >> np.uint64(32)) * np.uint64(high) >> np.uint64(32)).astype(np.int64)


def _numbers(state: np.ndarray, counter: np.ndarray) -> np.ndarray:
    """Return the numbers at some places of the streams that states ``(n,)`` begin, ``(n, len(counter))`` uint64."""
    return _mixed(state[:, None] + (counter.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def _mixed(state: np.ndarray) -> np.ndarray:
    """Return SplitMix64's output for states (Steele, Lea, Flood, *Fast Splittable Pseudorandom Number Generators*)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    return state ^ (state >> np.uint64(31))

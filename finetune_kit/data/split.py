"""Which target instances train, which select, which are measured on: a function of (dataset, protocol, seed)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetune_kit.errors import DataError
from finetune_kit.sections import Protocol
from finetune_kit.seeding import derive_seed

SHARES = {"train": 0.80, "valid": 0.05, "test": 0.15}
"""Shares of the three parts (UAF paper, section 4.3). The protocol ``authors`` validates and tests on the last two."""


@dataclass(frozen=True)
class Split:
    """Indices of target instances, ascending, disjoint but for ``train`` and ``known`` (and the authors' protocol).

    Args:
        train: ``(n,)`` int64, instances that train.
        known: The whole training part, of which ``train`` may be a fraction; full ranking leaves its items out, so
            that numbers at different fractions compare.
        valid: Instances that choose the best epoch and hyper-parameters.
        test: Instances that are measured on, once, at the end.
    """

    train: np.ndarray
    known: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def split(user: np.ndarray, protocol: Protocol, seed: int, fraction: float = 1.0) -> Split:
    """Return 80 % of the instances for training, 5 % for validation, 15 % for the test, at random.

    Args:
        user: ``(instances,)``, the user of each instance.
        protocol: ``"instance"`` draws instances (the paper's; a test user may have training instances too);
            ``"user"`` draws users with all their instances (every test user is fully cold); ``"authors"`` draws
            instances and takes all that don't train for validation *and* test, as the authors' code does.
        seed: Seed of the draw.
        fraction: Share of the training part that is kept, in (0, 1]; validation and test stay whole.

    Raises:
        DataError: When a part would be empty.
    """
    rng = np.random.default_rng(derive_seed(seed, "split", protocol))
    unit = np.unique(user, return_inverse=True)[1] if protocol == "user" else np.arange(len(user))
    num_units = int(unit.max()) + 1 if len(unit) else 0
    place = rng.permutation(num_units)[unit]  # of each instance, or of its user
    train_end, valid_end = round(num_units * SHARES["train"]), round(num_units * (SHARES["train"] + SHARES["valid"]))
    kept = round(train_end * fraction)
    train, known, rest = np.flatnonzero(place < kept), np.flatnonzero(place < train_end), place >= train_end
    if protocol == "authors":
        parts = Split(train, known, valid=np.flatnonzero(rest), test=np.flatnonzero(rest))
    else:
        valid = np.flatnonzero(rest & (place < valid_end))
        parts = Split(train, known, valid, test=np.flatnonzero(place >= valid_end))
    for name in SHARES:
        if not len(getattr(parts, name)):
            raise DataError(
                f"the {name} part of the split is empty: {num_units} {protocol}s with data.fraction={fraction} are too "
                "few; prepare more target events"
            )
    return parts


def num_repeated(user: np.ndarray, item: np.ndarray) -> int:
    """Return how many instances ``(n,)`` repeat a pair of user and item: they would be trained on and tested on."""
    pair = np.sort(user.astype(np.int64) << 32 | item)
    return int((pair[1:] == pair[:-1]).sum())


def unseen_in_training(item: np.ndarray, parts: Split, part: np.ndarray) -> np.ndarray:
    """Return which instances of a part have an item that no training instance has, ``(len(part),)`` bool."""
    return ~np.isin(item[part], item[parts.train])

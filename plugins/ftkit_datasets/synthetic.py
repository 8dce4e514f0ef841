"""Made-up users of known kinds, with what user-adaptive fine-tuning is for planted in them.

Source items form groups. Within a group users walk along a fixed order, now and then they change the group; to
predict the next item, a model of the source domain must carry the group a user is in. Each user's first events also
hold a few marker items, which tell nothing of what comes next, so such a model has no reason to carry them on. Target
items form as many groups as source items. What a user likes there depends on the user's kind, which the markers give
away:

| kind | target group | what that asks of fine-tuning |
| --- | --- | --- |
| ``aligned`` | that of the source group at the end of the sequence | the source model's structure, as it is |
| ``shifted`` | the one half-way round from it | that structure re-learned |
| ``unrelated`` | any | nothing helps |

One model for all can't please both of the first two kinds unless it learns to tell them apart. Every number is a
function of the options.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field

from finetune_kit.data.preparation import Preparation, preparing
from finetune_kit.data.prepare import write_dataset
from finetune_kit.data.reader import DatasetReader
from finetune_kit.options import Options

KINDS = ("aligned", "shifted", "unrelated")
NUM_GROUPS = 8
MARKERS_PER_KIND = 4
STAY, MARK, FAITHFUL = 0.95, 0.4, 0.9
"""Probabilities: of staying in a group from one event to the next, that an early event is a marker, and
that a target event is of the kind's group rather than any."""
EARLY = 8
"""How many of a user's first events may be markers."""


class SyntheticOptions(Options):
    """Options of `Synthetic`."""

    users: int = Field(1000, ge=20)
    """Users."""
    seed: int = Field(0, ge=0)
    """Seed of everything."""
    aligned: float = Field(0.6, ge=0, le=1)
    """Share of users whose target taste follows the source model's structure."""
    shifted: float = Field(0.3, ge=0, le=1)
    """Share of users whose target taste does not; the rest have none that could be learned."""
    items_per_group: int = Field(25, ge=2)
    """Source items in each of the 8 groups; target groups have half as many."""
    max_length: int = Field(50, ge=4)
    """Longest source sequence; the shortest has two thirds."""
    max_target: int = Field(5, ge=1)
    """Most target events of a user; the fewest is 1."""


class Synthetic(DatasetReader):
    """Generates users of several kinds, as described at the top of this file; the label ``kind`` says which."""

    Options = SyntheticOptions
    options: SyntheticOptions

    def prepare(self, output: Path) -> None:
        """Write the dataset folder at ``output``.

        Raises:
            DataError: When ``output`` is taken.
        """
        options = self.options
        rng = np.random.default_rng(options.seed)
        kind = rng.choice(len(KINDS), options.users, p=_shares(options))
        source, group = _source_events(rng, kind, options)
        target = _target_events(rng, kind, group, options)
        with preparing(output) as preparation:
            _fill(preparation, "source", *source)
            _fill(preparation, "target", *target)
            names = np.array(KINDS, dtype=object)[kind]
            rows = {"user": np.arange(options.users), "kind": names}
            preparation.connection.register("_labels", rows)
            preparation.connection.execute(f"CREATE TABLE labels AS SELECT {_TEXT_USER}, kind FROM _labels")
            write_dataset(preparation, options=options.model_dump(), inputs=[])


_TEXT_USER = "format('user{:08d}', \"user\") AS user"


def _shares(options: SyntheticOptions) -> list[float]:
    """Return the share of each of `KINDS`."""
    rest = max(0.0, 1 - options.aligned - options.shifted)
    total = options.aligned + options.shifted + rest
    return [options.aligned / total, options.shifted / total, rest / total]


def _source_events(
    rng: np.random.Generator, kind: np.ndarray, options: SyntheticOptions
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """Return ``(user, item, time)``, each ``(events,)``, and each user's last group, ``(users,)``."""
    num_users, size, num_steps = len(kind), options.items_per_group, options.max_length
    start = num_steps - rng.integers((2 * num_steps + 2) // 3, num_steps, num_users, endpoint=True)
    group, place = rng.integers(NUM_GROUPS, size=num_users), rng.integers(size, size=num_users)
    first_marker = NUM_GROUPS * size + kind * MARKERS_PER_KIND
    items = np.empty((num_steps, num_users), dtype=np.int64)
    for step in range(num_steps):  # all users at once; shorter histories start later
        moves = rng.random(num_users) > STAY
        group = np.where(moves, rng.integers(NUM_GROUPS, size=num_users), group)
        place = (place + rng.integers(1, 2, num_users, endpoint=True)) % size
        is_first, is_early = step == start, (step > start) & (step < start + EARLY)
        marked = is_first | (is_early & (rng.random(num_users) < MARK))  # at least once
        marker = first_marker + rng.integers(MARKERS_PER_KIND, size=num_users)
        items[step] = np.where(marked, marker, group * size + place)
    step, user = np.nonzero(np.arange(num_steps)[:, None] >= start)
    return (user, items[step, user], step), group


def _target_events(
    rng: np.random.Generator, kind: np.ndarray, group: np.ndarray, options: SyntheticOptions
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ``(user, item, time)``, each ``(events,)``; a user's items differ."""
    num_users, size = len(kind), max(1, options.items_per_group // 2)
    any_group = rng.integers(NUM_GROUPS, size=(options.max_target, num_users))
    own = np.select(
        [kind == 0, kind == 1], [group, (group + NUM_GROUPS // 2) % NUM_GROUPS], any_group
    )  # in the order of KINDS
    faithful = rng.random(own.shape) < FAITHFUL
    popularity = 1 / np.arange(1, size + 1)
    place = rng.choice(size, own.shape, p=popularity / popularity.sum())
    item = np.where(faithful, own, any_group) * size + place  # (max_target, users)
    wanted = np.arange(options.max_target)[:, None] < rng.integers(1, options.max_target, num_users, endpoint=True)
    time, user = np.nonzero(wanted)
    item = item[time, user]
    _, first = np.unique(np.stack([user, item]), axis=1, return_index=True)
    return user[first], item[first], options.max_length + time[first]


def _fill(preparation: Preparation, domain: str, user: np.ndarray, item: np.ndarray, time: np.ndarray) -> None:
    """Make the table of a domain's events."""
    preparation.connection.register(f"_{domain}", {"user": user, "item": item, "time": time})
    text_item = "format('item{:05d}', item) AS item"
    preparation.connection.execute(
        f"CREATE TABLE {domain} AS SELECT {_TEXT_USER}, {text_item}, time, 0 AS tie FROM _{domain}"
    )

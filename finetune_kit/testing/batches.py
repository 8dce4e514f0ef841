"""Batches for tests: drawn from a seed, or by Hypothesis."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from finetune_kit.data.batch import Batch, Windows
from finetune_kit.tryout import made_up_sequence


def random_sequence(num_users: int, length: int, num_items: int, seed: int = 0, *, min_items: int = 1) -> Tensor:
    """Return item ids ``(users, length)``, left-padded with 0; histories have ``min_items`` to ``length`` items."""
    return made_up_sequence(num_users, length, num_items, torch.Generator().manual_seed(seed), min_items=min_items)


def random_windows(num_windows: int, length: int, num_items: int, seed: int = 0) -> Windows:
    """Return windows of the source domain, ``(windows, length)``, each with an item to predict at least."""
    return _windows(random_sequence(num_windows, length + 1, num_items, seed, min_items=2))


def _windows(sequence: Tensor) -> Windows:
    """Return item ids ``(windows, length + 1)``, two of them at least, as inputs and what follows each."""
    inputs = sequence[:, :-1]
    return Windows(inputs, labels=sequence[:, 1:].where(inputs != 0, 0))


def random_batch(
    num_users: int = 6,
    length: int = 7,
    num_items: int = 20,
    num_target_items: int = 9,
    *,
    num_negatives: int = 1,
    num_windows: int = 0,
    seed: int = 0,
) -> Batch:
    """Return a batch in which every user has an instance and some have two; user ids are not the rows.

    With ``num_windows`` it has that many windows of the source domain too, as for a strategy that learns both.
    """
    random = torch.Generator().manual_seed(seed)
    row = torch.cat([torch.arange(num_users), torch.arange(0, num_users, 2)])
    positive = torch.randint(1, num_target_items + 1, (len(row),), generator=random)
    negative = torch.randint(1, num_target_items, (len(row), num_negatives), generator=random)
    return Batch(
        user=torch.arange(num_users) * 3 + 1,
        sequence=random_sequence(num_users, length, num_items, seed),
        row=row,
        positive=positive,
        negative=negative + (negative >= positive.unsqueeze(1)),
        source=random_windows(num_windows, length, num_items, seed) if num_windows else None,
    )


def with_sequence(batch: Batch, sequence: Tensor) -> Batch:
    """Return a batch whose users have other sequences, ``(users, length)``."""
    return Batch(batch.user, sequence, batch.row, batch.positive, batch.negative)


def only_user(batch: Batch, row: int) -> Batch:
    """Return the part of a batch that is one user's."""
    own = batch.row == row
    user, sequence = batch.user[row : row + 1], batch.sequence[row : row + 1]
    return Batch(user, sequence, torch.zeros_like(batch.row[own]), batch.positive[own], batch.negative[own])


@st.composite
def sequences(
    draw: st.DrawFn, num_items: int = 20, max_users: int = 4, max_length: int = 8, min_items: int = 0
) -> Tensor:
    """Draw item ids ``(users, length)``, left-padded with 0; histories have at least ``min_items`` items."""
    length = draw(st.integers(max(1, min_items), max_length))
    items = st.lists(st.integers(1, num_items), min_size=min_items, max_size=length)
    histories = draw(st.lists(items, min_size=1, max_size=max_users))
    return torch.tensor([[0] * (length - len(history)) + history for history in histories])


@st.composite
def windows(draw: st.DrawFn, num_items: int = 20, max_windows: int = 4, max_length: int = 8) -> Windows:
    """Draw windows of the source domain, ``(windows, length)``, each with an item to predict at least."""
    return _windows(draw(sequences(num_items, max_windows, max_length + 1, min_items=2)))


@st.composite
def batches(
    draw: st.DrawFn,
    num_items: int = 20,
    num_target_items: int = 9,
    max_users: int = 4,
    max_length: int = 8,
    max_negatives: int = 3,
    max_windows: int = 0,
) -> Batch:
    """Draw batches as `finetune_kit.data.loading` makes them: each user has an item and an instance.

    With ``max_windows`` each has from one to that many windows of the source domain too.
    """
    sequence = draw(sequences(num_items, max_users, max_length, min_items=1))
    num_users = len(sequence)
    extra = draw(st.lists(st.integers(0, num_users - 1), max_size=num_users))
    row = [*range(num_users), *extra]
    num_negatives = draw(st.integers(1, max_negatives))
    item = st.integers(1, num_target_items)
    positive = draw(st.lists(item, min_size=len(row), max_size=len(row)))
    negative = [
        draw(
            st.lists(
                item.filter(lambda drawn, own=own: drawn != own),
                min_size=num_negatives,
                max_size=num_negatives,
            )
        )
        for own in positive
    ]
    users = draw(st.lists(st.integers(1, 10**6), min_size=num_users, max_size=num_users, unique=True))
    return Batch(
        torch.tensor(sorted(users)),
        sequence,
        torch.tensor(row),
        torch.tensor(positive),
        torch.tensor(negative),
        draw(windows(num_items, max_windows, max_length)) if max_windows else None,
    )

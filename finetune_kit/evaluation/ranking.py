"""The rank of the positive among candidates, by counting: no sort, ties count half, chunk by chunk.

A rank is 1 + (candidates above the positive) + ½ (candidates level with it), so it does not depend on where the
positive stands among the candidates. A score that is not a number never helps: as the positive's it counts as the
lowest there is, as a candidate's as the highest.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from finetune_kit.seeding import derive_seed

MAX_CELLS = 2**24
"""Most scores compared at once; bounds memory for large catalogues (64 MiB of float32)."""


def full_ranks(scores: Tensor, row: Tensor, positive: Tensor, known: tuple[Tensor, Tensor]) -> Tensor:
    """Return the rank of each positive among all items but the user's other known ones, ``(instances,)`` float.

    Args:
        scores: ``(users, num_items)``; item y stands in column y − 1.
        row: ``(instances,)``, the row of ``scores`` that an instance belongs to.
        positive: ``(instances,)``, items from 1.
        known: Row and item, ``(pairs,)`` each, of what the users are known to have (their training items).
    """
    columns = (positive - 1).unsqueeze(1)  # (instances, 1)
    rivals = _as_rivals(scores)
    rivals[known[0], known[1] - 1] = -torch.inf  # takes no part
    step = max(1, MAX_CELLS // scores.shape[1])
    ranks = []
    for start in range(0, len(row), step):
        part = slice(start, start + step)
        of_positive = scores[row[part]].gather(1, columns[part])
        candidates = rivals[row[part]].scatter(1, columns[part], -torch.inf)  # nobody is their own rival
        ranks.append(_rank(of_positive, candidates))
    return torch.cat(ranks)


def sampled_ranks(scores: Tensor, row: Tensor, positive: Tensor, candidates: Tensor) -> Tensor:
    """Return the rank of each positive among given candidates, ``(instances,)`` float.

    Args:
        scores: ``(users, num_items)``; item y stands in column y − 1.
        row: ``(instances,)``, the row of ``scores`` that an instance belongs to.
        positive: ``(instances,)``, items from 1.
        candidates: ``(instances, candidates)``, items from 1, none of them the positive.
    """
    row = row.unsqueeze(1)
    return _rank(scores[row, positive.unsqueeze(1) - 1], _as_rivals(scores[row, candidates - 1]))


def _as_rivals(scores: Tensor) -> Tensor:
    """Return scores (a copy) in which −∞ is free to mean "takes no part" and "not a number" is the highest."""
    return scores.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=torch.finfo(scores.dtype).min)


def _rank(positive: Tensor, rivals: Tensor) -> Tensor:
    """Return 1 + above + ½ level, ``(instances,)``, for ``(instances, 1)`` against ``(instances, rivals)``."""
    lowest = torch.finfo(positive.dtype).min
    positive = positive.nan_to_num(nan=lowest, posinf=torch.inf, neginf=lowest)
    return 1 + (rivals > positive).sum(dim=1) + (rivals == positive).sum(dim=1) / 2


def draw_candidates(positive: np.ndarray, num_items: int, num_candidates: int, seed: int) -> np.ndarray:
    """Return distinct items other than the positive, uniform, ``(instances, candidates)`` int64.

    A function of its arguments alone, so that all strategies of a seed are ranked against the same items.

    Args:
        positive: ``(instances,)``, items from 1.
        num_items: Items of the target domain.
        num_candidates: Candidates per instance (the authors' protocol: 99); all others where there are no more.
        seed: Seed of the draw.
    """
    rng = np.random.default_rng(derive_seed(seed, "candidates"))
    num_others = num_items - 1
    if num_candidates >= num_others:
        drawn = np.broadcast_to(np.arange(1, num_others + 1), (len(positive), num_others)).copy()
    else:
        drawn = _distinct(rng, len(positive), num_others, num_candidates)
    return drawn + (drawn >= positive[:, None])  # step over the positive


def _distinct(rng: np.random.Generator, num_rows: int, high: int, width: int) -> np.ndarray:
    """Return rows of distinct integers from 1 … high: draw, then redraw what repeats an earlier one of its row."""
    drawn = rng.integers(1, high, size=(num_rows, width), endpoint=True)
    rows = np.arange(num_rows)
    while len(rows):
        order = np.argsort(drawn[rows], axis=1, kind="stable")
        ordered = np.take_along_axis(drawn[rows], order, axis=1)
        repeats = np.zeros_like(ordered, dtype=bool)
        np.put_along_axis(repeats, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
        rows, repeats = rows[repeats.any(axis=1)], repeats[repeats.any(axis=1)]
        row, column = np.nonzero(repeats)
        drawn[rows[row], column] = rng.integers(1, high, size=len(row), endpoint=True)
    return drawn

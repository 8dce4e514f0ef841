"""The rank of the positive among candidates, by counting: no sort, ties count half, chunk by chunk.

A rank is 1 + (candidates above the positive) + ½ (candidates level with it), so it does not depend on where the
positive stands among the candidates. A score that is not a number never helps: as the positive's it counts as the
lowest there is, as a candidate's as the highest.
"""

from __future__ import annotations

import torch
from torch import Tensor

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

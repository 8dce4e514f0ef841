"""Losses on the scores of target items; each is one line of a paper.

``positive`` is ``(instances,)``, ``negative`` is ``(instances, negatives)``; all return a scalar, in nats per instance.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bpr(positive: Tensor, negative: Tensor) -> Tensor:
    """Return the pairwise ranking loss −log σ(o⁺ − o⁻) (UAF paper, Eq. 8), mean over pairs."""
    return -F.logsigmoid(positive.unsqueeze(1) - negative).mean()


def binary_cross_entropy(positive: Tensor, negative: Tensor) -> Tensor:
    """Return −log σ(o⁺) − log σ(−o⁻), halved as the mean over the pair's two terms (the authors' code)."""
    return -(F.logsigmoid(positive).mean() + F.logsigmoid(-negative).mean()) / 2


def sampled_softmax(positive: Tensor, negative: Tensor) -> Tensor:
    """Return −log of the positive's softmax share among itself and its uniformly drawn negatives."""
    scores = torch.cat([positive.unsqueeze(1), negative], dim=1)  # (instances, 1 + negatives)
    return (scores.logsumexp(dim=1) - positive).mean()

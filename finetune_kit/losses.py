"""Losses; each is one line of a paper. All return a scalar, in nats per instance or item.

In those on the scores of target items, ``positive`` is ``(instances,)`` and ``negative`` ``(instances, negatives)``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune_kit.tables import OutputLayer

CHUNK, LOGITS = 1024, 2**26
"""Positions, and numbers, of the logits that exist at once in `next_item`, never those of a batch × length × items."""


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


def next_item(hidden: Tensor, labels: Tensor, output: nn.Linear) -> Tensor:
    """Return the mean of −log softmax(W E_L + b) at the item that follows (UAF paper, Eq. 3-5), nats per item.

    Args:
        hidden: ``(windows, length, dim)``, the states of every position.
        labels: ``(windows, length)``, the item that follows, from 1; positions with 0 have none and don't count.
        output: W and b, from ``dim`` to the number of items.
    """
    has_label = labels != 0
    # linear_cross_entropy ignores autocast, so it must not be handed half-precision states
    hidden = hidden[has_label].float()  # (positions, dim)
    if isinstance(output, OutputLayer) and output.mesh is not None:
        return _next_item_divided(hidden, labels[has_label] - 1, output)
    # torch falls back with a warning where chunking can't pay
    chunked = len(hidden) >= hidden.shape[1] and output.out_features > hidden.shape[1]
    return F.linear_cross_entropy(
        hidden,
        output.weight,
        labels[has_label] - 1,
        linear_bias=output.bias,
        options=nn.LinearCrossEntropyOptions(batch_chunk_size=_at_once(output.out_features)) if chunked else None,
    )


def _next_item_divided(hidden: Tensor, label: Tensor, output: OutputLayer) -> Tensor:
    """Return `next_item` of hidden states ``(positions, dim)`` and labels from 0 where processes share W."""
    assert not torch.is_grad_enabled(), "the exact loss over a divided table can't be trained on; its scores don't fit"
    total, size = hidden.new_zeros((), dtype=torch.float64), _at_once(output.out_features)
    for part, wanted in zip(hidden.split(size), label.split(size), strict=True):
        total += F.cross_entropy(output(part), wanted, reduction="sum")
    return (total / len(label)).float()


def _at_once(num_items: int) -> int:
    """Return for how many positions all items are scored at once."""
    return max(1, min(CHUNK, LOGITS // num_items))

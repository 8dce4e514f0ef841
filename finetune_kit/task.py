"""The task on the target domain: a head on the user vectors, its loss, and its scores."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from finetune_kit import losses
from finetune_kit.data.batch import Batch
from finetune_kit.sections import Loss

_PAIRED = {"bpr": losses.bpr, "bce": losses.binary_cross_entropy, "sampled-softmax": losses.sampled_softmax}


class ItemTask(nn.Module):
    """Rank the items of the target domain: ``o_y = W_n h_n + b_n`` (UAF paper, Eq. 7).

    Args:
        dim: Width of user vectors.
        num_items: Items of the target domain; item y ∈ 1 … num_items is scored by output y − 1.
        loss: ``"bpr"`` (the paper, Eq. 8), ``"bce"`` (the authors' code), ``"sampled-softmax"`` over the drawn
            negatives, or ``"softmax"`` over all items.
    """

    def __init__(self, dim: int, num_items: int, loss: Loss = "bpr") -> None:
        super().__init__()
        self.head = nn.Linear(dim, num_items)
        # Small, as the authors' code has it: a larger head sends noise into the backbone before it has learned what
        # the user vectors mean, and fine-tuning then forgets the pre-trained features within an epoch.
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self._loss = loss

    def scores(self, vectors: Tensor) -> Tensor:
        """Return the scores of all items, ``(users, num_items)``, from user vectors ``(users, dim)``."""
        return self.head(vectors)

    def scores_of(self, vectors: Tensor, items: Tensor) -> Tensor:
        """Return the scores of given items, ``(instances, n)``, from vectors ``(instances, dim)`` and their ids."""
        weight = F.embedding(items - 1, self.head.weight)  # (instances, n, dim)
        bias = F.embedding(items - 1, self.head.bias.unsqueeze(1)).squeeze(-1)  # (instances, n)
        return (weight * vectors.unsqueeze(1)).sum(dim=-1) + bias

    def loss(self, vectors: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss over the batch's instances, nats, from user vectors ``(users, dim)``."""
        vectors = vectors[batch.row]  # (instances, dim)
        if self._loss == "softmax":
            return F.cross_entropy(self.scores(vectors), batch.positive - 1)
        positive = self.scores_of(vectors, batch.positive.unsqueeze(1)).squeeze(1)
        negative = self.scores_of(vectors, batch.negative)
        return _PAIRED[self._loss](positive, negative)

"""The task on the target domain: a head on the user vectors, its loss, and its scores.

An answer is what an instance asks for: a target item, or a class of a profile label. Answers run from 1, and answer y
is scored by output y − 1 of the head.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune_kit import losses
from finetune_kit.data.batch import Batch
from finetune_kit.data.loading import draw_negatives
from finetune_kit.sections import Loss
from finetune_kit.tables import OutputLayer

_PAIRED = {"bpr": losses.bpr, "bce": losses.binary_cross_entropy, "sampled-softmax": losses.sampled_softmax}


class Task(nn.Module):
    """Score answers from user vectors: ``o_y = W_n h_n + b_n`` (UAF paper, Eq. 7).

    Strategies rely on everything here; `ItemTask` and `LabelTask` add their loss.

    Args:
        dim: Width of user vectors.
        num_answers: Target items, or classes of the label.
    """

    hit_rank: ClassVar[int]
    """The lowest rank among candidates that counts as a hit, e.g. in the reward of a reinforcement-learned policy."""

    def __init__(self, dim: int, num_answers: int) -> None:
        super().__init__()
        self.head = OutputLayer(dim, num_answers)
        # Small, as the authors' code has it: a larger head sends noise into the backbone before it has learned what
        # the user vectors mean, and fine-tuning then forgets the pre-trained features within an epoch.
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def scores(self, vectors: Tensor) -> Tensor:
        """Return the scores of all answers, ``(users, num_answers)``, from user vectors ``(users, dim)``."""
        return self.head(vectors)

    def scores_of(self, vectors: Tensor, answers: Tensor) -> Tensor:
        """Return the scores of given answers, ``(instances, n)``, from vectors ``(instances, dim)`` and their ids."""
        weight, bias = self.head.rows(answers - 1)  # (instances, n, dim), (instances, n)
        return (weight * vectors.unsqueeze(1)).sum(dim=-1) + bias

    def loss(self, vectors: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss over the batch's instances, nats, from user vectors ``(users, dim)``."""
        raise NotImplementedError(f"{type(self).__name__} must implement loss(vectors, batch)")

    def draw_candidates(self, batch: Batch, num_candidates: int, generator: torch.Generator) -> Tensor:
        """Return answers that each positive is ranked against, ``(instances, n)``, none of them the positive."""
        drawn = draw_negatives(batch.positive.cpu(), self.head.out_features, num_candidates, generator)
        return drawn.to(batch.positive.device)

    def ranks(self, vectors: Tensor, batch: Batch, candidates: Tensor) -> Tensor:
        """Return each positive's rank among itself and its candidates, ``(instances,)`` float; ties count half."""
        vectors = vectors[batch.row]  # (instances, dim)
        positive = self.scores_of(vectors, batch.positive.unsqueeze(1))  # (instances, 1)
        rivals = self.scores_of(vectors, candidates)
        return 1 + (rivals > positive).sum(dim=1) + 0.5 * (rivals == positive).sum(dim=1)


class ItemTask(Task):
    """Rank the items of the target domain.

    Args:
        dim: Width of user vectors.
        num_items: Items of the target domain.
        loss: ``"bpr"`` (the paper, Eq. 8), ``"bce"`` (the authors' code), ``"sampled-softmax"`` over the drawn
            negatives, or ``"softmax"`` over all items.
    """

    hit_rank = 5

    def __init__(self, dim: int, num_items: int, loss: Loss = "bpr") -> None:
        super().__init__(dim, num_items)
        self._loss = loss

    def loss(self, vectors: Tensor, batch: Batch) -> Tensor:
        """Return the mean of the chosen loss over the batch's instances, nats."""
        vectors = vectors[batch.row]  # (instances, dim)
        if self._loss == "softmax":
            return F.cross_entropy(self.scores(vectors), batch.positive - 1)
        answers = torch.cat([batch.positive.unsqueeze(1), batch.negative], dim=1)  # (instances, 1 + negatives)
        scores = self.scores_of(vectors, answers)
        return _PAIRED[self._loss](scores[:, 0], scores[:, 1:])


class LabelTask(Task):
    """Tell the class of a profile label, e.g. gender, by cross-entropy (UAF paper, section 5.4)."""

    hit_rank = 1

    def loss(self, vectors: Tensor, batch: Batch) -> Tensor:
        """Return the mean of −log p(class) over the batch's instances, nats; negatives are not looked at."""
        return F.cross_entropy(self.scores(vectors[batch.row]), batch.positive - 1)

    def draw_candidates(self, batch: Batch, num_candidates: int, generator: torch.Generator) -> Tensor:
        """Return all other classes, ``(instances, classes − 1)``; nothing is drawn."""
        others = torch.arange(1, self.head.out_features, device=batch.positive.device)
        return others + (others >= batch.positive.unsqueeze(1))  # step over the positive

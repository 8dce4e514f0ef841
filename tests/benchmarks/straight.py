"""The paper read straight into plain PyTorch: what the toolkit's speed and numbers are held against.

Nothing here is clever. Convolutions are ``conv1d`` between two transposes, both branches run for everybody and at
every position, an instance is a row of its own, frozen blocks are computed again in every epoch, the softmax is over
the whole catalogue, Adam is dense, ranks come from sorting. Modules are named as the toolkit names them, so that
``load_state_dict`` takes the weights of a strategy over. `test_straight.py` holds the toolkit's numbers against these.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def causal(conv: nn.Conv1d, hidden: Tensor) -> Tensor:
    """Return a causal convolution of ``(rows, length, dim)``, the same shape."""
    reach = conv.dilation[0] * (conv.kernel_size[0] - 1)
    padded = F.pad(hidden.transpose(1, 2), (reach, 0))  # (rows, dim, reach + length)
    return conv(padded).transpose(1, 2)


class Block(nn.Module):
    """Eq. 1 and 2: two dilated convolutions, each with LayerNorm and ReLU, and a skip."""

    def __init__(self, dim: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(dim, dim, 3, dilation=dilation)
        self.norm1 = nn.LayerNorm(dim, eps=1e-8)
        self.conv2 = nn.Conv1d(dim, dim, 3, dilation=2 * dilation)
        self.norm2 = nn.LayerNorm(dim, eps=1e-8)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        inner = torch.relu(self.norm1(causal(self.conv1, hidden * mask)))
        return torch.relu(self.norm2(causal(self.conv2, inner * mask))) + hidden


class TwoBranches(nn.Module):
    """Eq. 6: both branches for all, mixed by the gate."""

    def __init__(self, dim: int, dilation: int) -> None:
        super().__init__()
        self.frozen = Block(dim, dilation).requires_grad_(False)
        self.tuned = Block(dim, dilation)

    def forward(self, hidden: Tensor, mask: Tensor, gate: Tensor) -> Tensor:
        gate = gate[:, None, None]
        return gate * self.tuned(hidden, mask) + (1 - gate) * self.frozen(hidden, mask)


class Network(nn.Module):
    """An item embedding and blocks over it."""

    def __init__(self, num_items: int, dim: int, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.item_embedding = nn.Embedding(num_items + 1, dim)
        self.blocks = nn.ModuleList(blocks)

    def run(self, sequence: Tensor, gates: Tensor | None = None) -> Tensor:
        """Return hidden states ``(rows, length, dim)`` of item ids ``(rows, length)``."""
        mask = (sequence != 0).unsqueeze(-1).float()
        hidden = self.item_embedding(sequence)
        for k, block in enumerate(self.blocks):
            hidden = block(hidden, mask) if gates is None else block(hidden, mask, gates[:, k])
        return hidden


class Head(nn.Module):
    """Eq. 7: scores of all target items."""

    def __init__(self, dim: int, num_target: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, num_target)


def bpr(scores: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Return Eq. 8 of scores ``(rows, num_target)`` and items ``(rows,)``, from 1."""
    difference = scores.gather(1, positive[:, None] - 1) - scores.gather(1, negative[:, None] - 1)
    return -F.logsigmoid(difference).mean()


class Straight(nn.Module):
    """What both models of the target domain do with their scores; ``scores(sequence)`` is that of evaluation."""

    @torch.no_grad()
    def ranks(self, sequence: Tensor, positive: Tensor, known: Tensor | None = None) -> Tensor:
        """Return the rank of each positive among all target items, ``(rows,)``.

        ``known``, ``(rows, num_target)`` bool, marks items that take no part.
        """
        scores = self.scores(sequence)
        if known is not None:
            scores = scores.masked_fill(known.scatter(1, positive[:, None] - 1, False), -torch.inf)
        order = scores.argsort(dim=1, descending=True)
        return (order == positive[:, None] - 1).int().argmax(dim=1) + 1

    @torch.no_grad()
    def best(self, sequence: Tensor, top: int) -> Tensor:
        """Return the best target items, from 1, best first, ``(rows, top)``."""
        return self.scores(sequence).argsort(dim=1, descending=True)[:, :top] + 1


class StraightFinetune(Straight):
    """One backbone for all users; with ``head_only`` it is frozen (finetune-cls), and run all the same."""

    def __init__(self, num_source: int, num_target: int, dim: int, dilations: list[int], *, head_only: bool) -> None:
        super().__init__()
        self.backbone = Network(num_source, dim, [Block(dim, dilation) for dilation in dilations])
        self.backbone.requires_grad_(not head_only)
        self.task = Head(dim, num_target)

    def scores(self, sequence: Tensor) -> Tensor:
        """Return the scores of all target items, ``(rows, num_target)``."""
        return self.task.head(self.backbone.run(sequence)[:, -1])

    def forward(self, sequence: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Return the BPR loss (Eq. 8) of instances ``(rows,)``."""
        return bpr(self.scores(sequence), positive, negative)


class StraightUafHard(Straight):
    """UAF-Hard (Eq. 6, 9, 10)."""

    def __init__(
        self, num_source: int, num_target: int, dim: int, dilations: list[int], temperature: float = 10.0
    ) -> None:
        super().__init__()
        self.backbone = Network(num_source, dim, [TwoBranches(dim, dilation) for dilation in dilations])
        self.policy = Network(num_source, dim, [Block(dim, dilation) for dilation in (1, 4)])
        self.policy.output = nn.Linear(dim, 2 * len(dilations))
        self.task = Head(dim, num_target)
        self.temperature = temperature

    def log_probabilities(self, sequence: Tensor) -> Tensor:
        """Return log π, ``(rows, blocks, 2)``."""
        mask = (sequence != 0).unsqueeze(-1).float()
        hidden = self.policy.run(sequence)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        return self.policy.output(mean).unflatten(-1, (-1, 2)).log_softmax(dim=-1)

    def gates(self, sequence: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Return gates ``(rows, blocks)``; ``uniform`` ``(rows, blocks, 2)`` makes the noise, None has none."""
        log_probabilities = self.log_probabilities(sequence)
        if uniform is None:
            return (log_probabilities.argmax(dim=-1) == 0).float()
        noisy = log_probabilities - (-uniform.log()).log()
        relaxed = (noisy / self.temperature).softmax(dim=-1)  # Eq. 10
        hard = F.one_hot(noisy.argmax(dim=-1), 2).float()  # Eq. 9
        return (hard + (relaxed - relaxed.detach()))[..., 0]

    def vectors(self, sequence: Tensor, gates: Tensor) -> Tensor:
        """Return user vectors ``(rows, dim)`` under gates ``(rows, blocks)``."""
        return self.backbone.run(sequence, gates)[:, -1]

    def scores(self, sequence: Tensor) -> Tensor:
        """Return the scores of all target items, ``(rows, num_target)``, under the likelier actions."""
        return self.task.head(self.vectors(sequence, self.gates(sequence)))

    def forward(self, sequence: Tensor, positive: Tensor, negative: Tensor, uniform: Tensor) -> Tensor:
        """Return the BPR loss (Eq. 8) of instances ``(rows,)``; ``uniform`` ``(rows, blocks, 2)`` makes the noise."""
        vectors = self.vectors(sequence, self.gates(sequence, uniform))
        return bpr(self.task.head(vectors), positive, negative)


class StraightNextItem(nn.Module):
    """Pre-training: the next item by a softmax over the whole catalogue (Eq. 3 to 5)."""

    def __init__(self, num_source: int, dim: int, dilations: list[int]) -> None:
        super().__init__()
        self.backbone = Network(num_source, dim, [Block(dim, dilation) for dilation in dilations])
        self.output = nn.Linear(dim, num_source)

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the summed loss of windows ``(rows, length)``, nats; label 0 is none."""
        logits = self.output(self.backbone.run(inputs)[labels != 0])  # (positions, num_source)
        return F.cross_entropy(logits, labels[labels != 0] - 1, reduction="sum")

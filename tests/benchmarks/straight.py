"""UAF-Hard read straight off the paper, in plain PyTorch: what the toolkit's speed and numbers are held against.

Nothing here is clever. Convolutions are ``conv1d`` between two transposes, both branches run for everybody and at
every position, an instance is a row of its own, frozen blocks are computed again in every epoch, Adam is dense, ranks
come from sorting. Modules are named as the toolkit names them, so that ``load_state_dict`` takes a strategy's weights
over.
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


class StraightUafHard(nn.Module):
    """The whole model; one row per instance."""

    def __init__(self, num_source: int, num_target: int, dim: int, dilations: list[int], temperature: float) -> None:
        super().__init__()
        self.backbone = Network(num_source, dim, [TwoBranches(dim, dilation) for dilation in dilations])
        self.policy = Network(num_source, dim, [Block(dim, dilation) for dilation in (1, 4)])
        self.policy.output = nn.Linear(dim, 2 * len(dilations))
        self.task = nn.Module()
        self.task.head = nn.Linear(dim, num_target)
        self.temperature = temperature

    def log_probabilities(self, sequence: Tensor) -> Tensor:
        """Return log π, ``(rows, blocks, 2)``."""
        mask = (sequence != 0).unsqueeze(-1).float()
        hidden = self.policy.item_embedding(sequence)
        for block in self.policy.blocks:
            hidden = block(hidden, mask)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        return self.policy.output(mean).unflatten(-1, (-1, 2)).log_softmax(dim=-1)

    def vectors(self, sequence: Tensor, gates: Tensor) -> Tensor:
        """Return user vectors ``(rows, dim)`` under gates ``(rows, blocks)``."""
        mask = (sequence != 0).unsqueeze(-1).float()
        hidden = self.backbone.item_embedding(sequence)
        for k, block in enumerate(self.backbone.blocks):
            hidden = block(hidden, mask, gates[:, k])
        return hidden[:, -1]

    def forward(self, sequence: Tensor, positive: Tensor, negative: Tensor, uniform: Tensor) -> Tensor:
        """Return the BPR loss (Eq. 8) of instances ``(rows,)``; ``uniform`` ``(rows, blocks, 2)`` makes the noise."""
        noisy = self.log_probabilities(sequence) - (-uniform.log()).log()
        relaxed = (noisy / self.temperature).softmax(dim=-1)  # Eq. 10
        hard = F.one_hot(noisy.argmax(dim=-1), 2).float()  # Eq. 9
        gates = (hard + relaxed - relaxed.detach())[..., 0]
        scores = self.task.head(self.vectors(sequence, gates))  # (rows, num_target)
        difference = scores.gather(1, positive[:, None] - 1) - scores.gather(1, negative[:, None] - 1)
        return -F.logsigmoid(difference).mean()

    @torch.no_grad()
    def ranks(self, sequence: Tensor, positive: Tensor) -> Tensor:
        """Return the rank of each positive among all target items, ``(rows,)``, under the likelier actions."""
        gates = (self.log_probabilities(sequence).argmax(dim=-1) == 0).float()
        scores = self.task.head(self.vectors(sequence, gates))
        order = scores.argsort(dim=1, descending=True)
        return (order == positive[:, None] - 1).int().argmax(dim=1) + 1

"""A strategy defined and used in one file: train the LayerNorms and the head, nothing else.

    python examples/02_own_strategy.py

`ftkit-bitfit/` beside this file makes a plugin of such a class, so that `ftkit run --strategy NAME` finds it.
"""

from __future__ import annotations

import torch
from torch import nn

from finetune_kit import Batch, ItemTask, Strategy
from ftkit_backbones.nextitnet import NextItNet, NextItNetOptions


class NormsOnly(Strategy):
    """Train the head and the scale and shift of every LayerNorm."""

    def build(self) -> None:
        """Freeze the backbone but for its LayerNorms."""
        norms = [module for module in self.backbone.modules() if isinstance(module, nn.LayerNorm)]
        self.freeze(self.backbone, but=norms)


def random_batch(generator: torch.Generator, num_items: int = 50, num_users: int = 32) -> Batch:
    """Return users whose target item is a function of their last source item, one instance each."""
    sequence = torch.randint(1, num_items + 1, (num_users, 10), generator=generator)
    positive = (sequence[:, -1] - 1) % 5 + 1
    negative = positive % 5 + 1  # another of the 5 target items
    return Batch(torch.arange(1, num_users + 1), sequence, torch.arange(num_users), positive, negative.unsqueeze(1))


def main(steps: int = 200) -> list[float]:
    """Train for so many steps; return the loss of each, nats per instance."""
    torch.manual_seed(0)
    backbone = NextItNet(50, 10, NextItNetOptions(dim=16, num_blocks=2))
    nn.init.normal_(backbone.item_embedding.weight)  # stands for pre-training: fresh ones hardly tell items apart
    strategy = NormsOnly(backbone, ItemTask(backbone.dim, 5))
    trained = [parameter for parameter in strategy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.01)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        loss = strategy(random_batch(generator))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss: {losses[0]:.3f} nats at first, {losses[-1]:.3f} after {len(losses)} steps")

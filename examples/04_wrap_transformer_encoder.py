"""A model of your own, an ``nn.TransformerEncoder`` over item embeddings, wrapped and fine-tuned with uaf-hard.

python examples/04_wrap_transformer_encoder.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from finetune_kit import Batch, ItemTask, wrap
from ftkit_uaf.hard import UafHard

NUM_ITEMS, NUM_TARGET_ITEMS, LENGTH = 50, 5, 10


class Encoder(nn.Module):
    """SASRec, as it is often written; knows nothing of finetune-kit."""

    def __init__(self, num_items: int, max_length: int, dim: int = 16) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items + 1, dim, padding_idx=0)
        self.positions = nn.Embedding(max_length, dim)
        layer = nn.TransformerEncoderLayer(dim, nhead=2, dim_feedforward=32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, norm=nn.LayerNorm(dim))

    def forward(self, ids: Tensor) -> Tensor:
        """Return hidden states ``(users, length, dim)`` of item ids ``(users, length)``, padding on the right."""
        length = ids.shape[1]
        hidden = self.items(ids) + self.positions(torch.arange(length, device=ids.device))
        later = torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1)
        return self.encoder(hidden, mask=later, src_key_padding_mask=ids == 0)


def random_batch(generator: torch.Generator, num_users: int = 32) -> Batch:
    """Return users whose target item is a function of their last source item, one instance each."""
    sequence = torch.randint(1, NUM_ITEMS + 1, (num_users, LENGTH), generator=generator)
    sequence[: num_users // 2, : LENGTH // 2] = 0  # half of them have a short history
    positive = (sequence[:, -1] - 1) % NUM_TARGET_ITEMS + 1
    negative = positive % NUM_TARGET_ITEMS + 1
    return Batch(torch.arange(1, num_users + 1), sequence, torch.arange(num_users), positive, negative.unsqueeze(1))


def main(steps: int = 200) -> list[float]:
    """Wrap, and train for so many steps; return the loss of each, nats per instance."""
    torch.manual_seed(0)
    encoder = Encoder(NUM_ITEMS, LENGTH)  # here you would load its pre-trained weights
    backbone = wrap(
        encoder,
        embedding="items",
        blocks="encoder.layers",
        finish="encoder.norm",
        padding="right",  # positions count from the left, and a causal mask leaves padding there nothing to look at
        max_length=LENGTH,
    )
    strategy = UafHard(backbone, ItemTask(backbone.dim, NUM_TARGET_ITEMS)).train()
    optimizer = torch.optim.Adam((weight for weight in strategy.parameters() if weight.requires_grad), lr=0.01)
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

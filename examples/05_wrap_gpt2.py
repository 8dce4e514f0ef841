"""A Hugging Face GPT-2 over items, wrapped and fine-tuned with adapters (PeterRec) and the head alone.

    pip install transformers
    python examples/05_wrap_gpt2.py

Other decoders differ in names only: LLaMA has ``embedding="embed_tokens", blocks="layers", finish="norm"``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2Model

from finetune_kit import Batch, ItemTask, wrap
from ftkit_baselines.peterrec import PeterRec

NUM_ITEMS, NUM_TARGET_ITEMS, LENGTH = 50, 5, 10


def inputs(ids: Tensor) -> dict[str, Any]:
    """Return what GPT-2 is called with: positions count items, so that padding on the left changes nothing."""
    is_item = (ids != 0).long()
    return {
        "input_ids": ids,
        "attention_mask": is_item,
        "position_ids": (is_item.cumsum(1) - 1).clamp(min=0),
        "use_cache": False,  # blocks must remember nothing of an earlier call
    }


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
    sizes = GPT2Config(
        vocab_size=NUM_ITEMS + 1,
        n_positions=LENGTH,
        n_embd=16,
        n_layer=2,
        n_head=2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.2,  # stands for pre-training: a fresh one hardly tells items apart
    )
    backbone = wrap(
        GPT2Model(sizes), embedding="wte", blocks="h", finish="ln_f", inputs=inputs, max_length=LENGTH, sites=["mlp"]
    )
    strategy = PeterRec(backbone, ItemTask(backbone.dim, NUM_TARGET_ITEMS)).train()
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

"""SASRec of the library RecBole, wrapped and fine-tuned with finetune-last1.

    pip install tensorboard scikit-learn pandas pyyaml colorlog colorama texttable
    pip install --no-deps recbole==1.2.1
    python examples/06_wrap_recbole.py

RecBole's own requirements name old versions of packages that the model does not need, hence ``--no-deps``. A model that
RecBole has trained comes from ``recbole.quick_start.load_data_and_model``; here a new one stands for it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from recbole.model.sequential_recommender.sasrec import SASRec  # pyrefly: ignore[missing-import]  (see above)
from torch import Tensor

from finetune_kit import Batch, ItemTask, WrappedBackbone, wrap
from ftkit_baselines.finetune import FinetuneLast

NUM_ITEMS, NUM_TARGET_ITEMS, LENGTH = 50, 5, 10
CONFIG = {
    **{"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "LIST_SUFFIX": "_list", "NEG_PREFIX": "neg_"},
    **{"ITEM_LIST_LENGTH_FIELD": "item_length", "MAX_ITEM_LIST_LENGTH": LENGTH, "device": "cpu", "loss_type": "CE"},
    **{"n_layers": 2, "n_heads": 2, "hidden_size": 16, "inner_size": 32, "hidden_act": "gelu"},
    **{"hidden_dropout_prob": 0.1, "attn_dropout_prob": 0.1, "layer_norm_eps": 1e-12, "initializer_range": 0.2},
}


def inputs(ids: Tensor) -> dict[str, Any]:
    """Return what RecBole's sequential models are called with."""
    return {"item_seq": ids, "item_seq_len": (ids != 0).sum(dim=1)}


def output(model: Any, hidden: Tensor, ids: Tensor) -> Tensor:
    """Return what RecBole's SASRec returns: the last item's hidden state, ``(users, dim)``."""
    return model.gather_indexes(hidden, (ids != 0).sum(dim=1) - 1)


def wrapped(model: SASRec) -> WrappedBackbone:
    """Return RecBole's SASRec as a backbone."""
    return wrap(
        model,
        embedding="item_embedding",
        blocks="trm_encoder.layer",
        inputs=inputs,
        output=output,
        padding="right",
        max_length=LENGTH,
    )


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
    model = SASRec(CONFIG, SimpleNamespace(num=lambda field: NUM_ITEMS + 1))  # RecBole counts the padding
    backbone = wrapped(model)
    strategy = FinetuneLast(backbone, ItemTask(backbone.dim, NUM_TARGET_ITEMS)).train()
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

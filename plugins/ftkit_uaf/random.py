"""UAF-Random: for each user and block, the frozen or the fine-tuned branch by the toss of a coin.

Chen et al., *User-specific Adaptive Fine-tuning for Cross-domain Recommendations*, TKDE 2021, section 5.2.1:

    I_l(u) ~ Bernoulli(0.5)

drawn once for each user and kept, and I_l enters Eq. 6 (`branches.py`). What learned policies must beat: with it,
differences between users come from the ensemble of sub-networks alone.

| symbol | attribute or variable | shape |
| --- | --- | --- |
| 0.5 | ``share`` | scalar |
| I_l | ``gates`` | (users, blocks) |

Differences from the paper: the draw is a function of (seed, user), so that a user meets the same gates in training and
at inference, in every batch and on every device, without a table of users. ``evaluation_seed`` draws others at
evaluation; the paper says that this ruins the result.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from finetune_kit.data.batch import Batch
from finetune_kit.options import Options
from finetune_kit.seeding import uniform_per_user
from finetune_kit.strategy import Encoded, Strategy
from ftkit_uaf.branches import add_tuned_branches


class UafRandomOptions(Options):
    """Options of UAF-Random."""

    share: float = Field(0.5, ge=0, le=1)
    """Probability that a user takes the fine-tuned branch of a block."""
    evaluation_seed: int | None = None
    """Draw other gates at evaluation than in training, from this seed; none keeps those of training."""


class UafRandom(Strategy):
    """UAF without a policy: fixed random gates; trains the fine-tuned branches, the item embedding and the head."""

    Options = UafRandomOptions
    evaluation_options = frozenset({"evaluation_seed"})
    options: UafRandomOptions

    def build(self) -> None:
        """Give each block a trainable copy; at first both branches compute the same."""
        add_tuned_branches(self)

    def encode(self, batch: Batch) -> Encoded:
        """Return user vectors ``(users, dim)`` with each user's gates applied (Eq. 6)."""
        gates = self.gates(batch.user)
        probabilities = torch.full_like(gates, self.options.share)
        return Encoded(self.backbone.user_vectors(batch.sequence, gates, pooling=self.pooling), gates, probabilities)

    def gates(self, user: Tensor) -> Tensor:
        """Return I_l(u) ~ Bernoulli(share), ``(users, blocks)``, of user ids ``(users,)``."""
        other = None if self.training else self.options.evaluation_seed
        draws = uniform_per_user(user, len(self.backbone.blocks), self.seed if other is None else other)
        return (draws < self.options.share).to(self.backbone.item_embedding.weight.dtype)

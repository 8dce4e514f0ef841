"""UAF-Soft: for each user and block, a mixture of the frozen and the fine-tuned branch.

Chen et al., *User-specific Adaptive Fine-tuning for Cross-domain Recommendations*, TKDE 2021, section 3.3.2.
With h_p what the policy makes of the user's source sequence:

    v   = W_p h_p + b_p                                                     (Eq. 11)
    I_l = σ(v_l)                                                            (Eq. 12)

and I_l, in (0, 1), enters Eq. 6 (`branches.py`).

| symbol | attribute or variable | shape |
| --- | --- | --- |
| W_p, b_p | ``policy.output`` | (blocks, dim), (blocks,) |
| v | ``logits`` | (users, blocks) |
| I_l | ``gates`` | (users, blocks) |

Differences from the paper: none in the equations. Nothing is drawn, so training and evaluation compute the same. Of the
authors' code we know nothing that differs here besides the padding in the policy (``policy_options.mask_padding``).
``usage_weight``, ``entropy_weight`` and ``information_weight`` are ours (`collapse.py`); they take the gate for a
probability.
"""

from __future__ import annotations

from torch import Tensor

from finetune_kit.data.batch import Batch
from finetune_kit.policy import make_policy
from finetune_kit.strategy import Encoded, Strategy
from ftkit_uaf.branches import add_tuned_branches
from ftkit_uaf.collapse import LearnedPolicyOptions, collapse_loss


class UafSoftOptions(LearnedPolicyOptions):
    """Options of UAF-Soft."""


class UafSoft(Strategy):
    """UAF with soft gates; trains the policy, the fine-tuned branches, the item embedding and the head."""

    Options = UafSoftOptions
    options: UafSoftOptions

    def build(self) -> None:
        """Give each block a trainable copy and add the policy; at first both branches compute the same."""
        self.policy = make_policy(self.options.policy, self.backbone, 1, self.options.policy_options)
        add_tuned_branches(self)

    def encode(self, batch: Batch) -> Encoded:
        """Return user vectors ``(users, dim)`` with each user's gates applied (Eq. 6)."""
        logits = self.policy(batch.sequence).squeeze(-1)  # Eq. 11, (users, blocks)
        gates = logits.sigmoid()  # Eq. 12
        return Encoded(self.backbone.user_vectors(batch.sequence, gates, pooling=self.pooling), gates)

    def loss(self, batch: Batch, encoded: Encoded) -> Tensor:
        """Return the task's loss, plus the terms against collapse."""
        assert encoded.gates is not None
        return super().loss(batch, encoded) + collapse_loss(self.options, encoded.gates, encoded.gates)

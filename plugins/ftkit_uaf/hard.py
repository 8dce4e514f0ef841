"""UAF-Hard: for each user and block, the frozen or the fine-tuned branch, learned through Gumbel-softmax.

Chen et al., *User-specific Adaptive Fine-tuning for Cross-domain Recommendations*, TKDE 2021, section 3.3.1.
With π the policy's probabilities of (fine-tuned, frozen) and g ~ Gumbel(0, 1):

    z   = one_hot(argmax_i [g_i + log π_i])                                 (Eq. 9, forward)
    α_i = exp((log π_i + g_i)/τ) / Σ_j exp((log π_j + g_j)/τ)               (Eq. 10, backward)

(`gumbel.py`), and I_l = z_0 of block l enters Eq. 6 (`branches.py`).

| symbol | attribute or variable | shape |
| --- | --- | --- |
| log π | ``log_probabilities`` | (users, blocks, 2) |
| g | ``gumbel`` in `gumbel_softmax` | (users, blocks, 2) |
| τ | ``temperature`` | scalar |
| I_l | ``gates`` | (users, blocks) |

Differences from the authors' code: there the sigmoid of the linear output stands in for log π
(``logits=sigmoid``), and the noise stays on at evaluation (``evaluation=sample``, here with a noise that is a
function of seed and user, so that evaluating twice gives the same numbers). The paper does not say what it does at
evaluation; greedy is what it says of UAF-RL. Ours are an annealed temperature (``final_temperature``), and
``usage_weight`` and its like (`collapse.py`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from finetune_kit.data.batch import Batch
from finetune_kit.policy import make_policy
from finetune_kit.strategy import Encoded, Strategy
from ftkit_uaf.branches import add_tuned_branches
from ftkit_uaf.collapse import collapse_loss
from ftkit_uaf.gumbel import GumbelOptions, choose_actions, idle_gumbel_options, temperature_of


class UafHardOptions(GumbelOptions):
    """Options of UAF-Hard."""

    temperature: float = Field(10.0, gt=0)
    """τ of Eq. 10: the larger, the more even the gradient between the two actions."""
    logits: Literal["log-softmax", "sigmoid"] = "log-softmax"
    """What stands for log π: log-softmax of the policy's output (the paper) or its sigmoid (the authors' code)."""


class UafHard(Strategy):
    """UAF with hard decisions; trains the policy, the fine-tuned branches, the item embedding and the head."""

    Options = UafHardOptions
    evaluation_options = frozenset({"evaluation"})
    options: UafHardOptions

    @classmethod
    def idle_options(cls, options: UafHardOptions) -> dict[str, str]:
        """Return which of the options have no effect, and why."""
        return idle_gumbel_options(options)

    def build(self) -> None:
        """Give each block a trainable copy and add the policy; at first both branches compute the same."""
        self.policy = make_policy(self.options.policy, self.backbone, 2, self.options.policy_options)
        self.temperature = self.options.temperature
        add_tuned_branches(self)

    def start_epoch(self, epoch: int) -> None:
        """Anneal the temperature, a function of the epoch alone."""
        super().start_epoch(epoch)
        self.temperature = temperature_of(self.options, epoch)

    def encode(self, batch: Batch) -> Encoded:
        """Return user vectors ``(users, dim)`` with each user's gates applied (Eq. 6)."""
        log_probabilities = self.log_probabilities(batch.sequence)  # (users, blocks, 2)
        probabilities = log_probabilities.softmax(dim=-1)[..., 0]  # (users, blocks)
        gates = choose_actions(self, batch, log_probabilities, self.temperature)[..., 0]  # Eq. 9, 10; (users, blocks)
        vectors = self.backbone.user_vectors(batch.sequence, gates, pooling=self.pooling)
        return Encoded(vectors, gates, probabilities)

    def loss(self, batch: Batch, encoded: Encoded) -> Tensor:
        """Return the task's loss, plus the terms against collapse."""
        assert encoded.gates is not None
        assert encoded.probabilities is not None
        return super().loss(batch, encoded) + collapse_loss(self.options, encoded.gates, encoded.probabilities)

    def log_probabilities(self, sequence: Tensor) -> Tensor:
        """Return log π, ``(users, blocks, 2)``, of item ids ``(users, length)``."""
        output = self.policy(sequence)
        return output.log_softmax(dim=-1) if self.options.logits == "log-softmax" else output.sigmoid()

"""SpotTune: for each user and block, the frozen or the fine-tuned branch; if wanted, in at most k blocks for anybody.

Guo, Shi, Kumar, Grauman, Rosing, Feris, *SpotTune: Transfer Learning Through Adaptive Fine-Tuning*, CVPR 2019,
https://arxiv.org/abs/1811.08737; the method that UAF-Hard brings to users. With I_l(x) ∈ {0, 1} drawn through
Gumbel-softmax (`gumbel.py`) from what a policy network makes of the input x:

    x_l = I_l(x) F̂_l(x_{l−1}) + (1 − I_l(x)) F_l(x_{l−1}) + x_{l−1}

which is Eq. 6 of UAF (`branches.py`). Of the global variant, with v_l the share of inputs that take the fine-tuned
branch of block l:

    L_k = ((Σ_l v_l) − k)²                      (k blocks are fine-tuned)
    L_e = Σ_l −v_l log v_l                      (each for all inputs or for none)
    L   = L_task + λ_1 L_k + λ_2 L_e

| symbol | attribute or variable | shape |
| --- | --- | --- |
| F_l, F̂_l | branches of ``frozen``, ``tuned`` | (users, length, dim) → same |
| I_l(x) | ``gates`` | (users, blocks) |
| v_l | ``shares`` | (blocks,) |
| k, λ_1, λ_2 | ``k``, ``lambda_1``, ``lambda_2`` | scalar |

Without k, and with the same τ, this is UAF-Hard: what UAF took over.

Differences from the paper: the input is the user's source sequence, and the policy network any that is installed,
trained by the same optimiser as all else; there it is a small ResNet with a learning rate of its own. v_l is taken over
the batch's users and has the straight-through gradient of their actions. L_k and L_e only push: a policy that has not
become decisive would still spread over more blocks. At evaluation, therefore, the fine-tuned branch is open in the k
blocks alone whose share, a running mean over training batches, is largest; elsewhere everybody is frozen, and the
policy decides within the k. λ_1 and λ_2 default to 1, our choice; that makes policies decisive on the built-in data.
The branches that nobody takes in the end are trained and saved all the same.

Differences from the authors' code, which lacks the global variant: there noise stays on at evaluation
(``evaluation=sample``, here with a noise that is a function of seed and user), and the BatchNorms of the frozen blocks
train, where here nothing of these does. As there, τ is 5, and what stands before the blocks trains too (there a
convolution, here the item embedding). Ours are an annealed temperature (``final_temperature``), and ``usage_weight``
and its like (`collapse.py`).
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from finetune_kit.data.batch import Batch
from finetune_kit.errors import OptionError
from finetune_kit.policy import make_policy
from finetune_kit.strategy import Encoded, Strategy
from ftkit_uaf.branches import add_tuned_branches
from ftkit_uaf.collapse import collapse_loss
from ftkit_uaf.gumbel import GumbelOptions, choose_actions, idle_gumbel_options, temperature_of

RECENT = 0.1
"""Weight of the newest batch in the running mean of the shares."""


class SpotTuneOptions(GumbelOptions):
    """Options of SpotTune."""

    temperature: float = Field(5.0, gt=0)
    """τ of the Gumbel-softmax: the larger, the more even the gradient between the two actions."""
    k: int | None = Field(None, ge=0)
    """At most so many blocks are fine-tuned for anybody (global SpotTune); none sets no limit."""
    lambda_1: float = Field(1.0, ge=0)
    """λ_1: weight of L_k, where k is set."""
    lambda_2: float = Field(1.0, ge=0)
    """λ_2: weight of L_e, where k is set."""


class SpotTune(Strategy):
    """Route each user by block; trains the policy, the fine-tuned branches, the item embedding and the head."""

    Options = SpotTuneOptions
    evaluation_options = frozenset({"evaluation"})
    options: SpotTuneOptions
    shares: Tensor

    @classmethod
    def idle_options(cls, options: SpotTuneOptions) -> dict[str, str]:
        """Return which of the options have no effect, and why."""
        idle = idle_gumbel_options(options)
        if options.k is None:
            idle |= dict.fromkeys(("lambda_1", "lambda_2"), "L_k and L_e join the loss only where strategy.k is set")
        return idle

    def build(self) -> None:
        """Give each block a trainable copy and add the policy; at first both branches compute the same.

        Raises:
            OptionError: When k is more than there are blocks.
        """
        num_blocks, k = len(self.backbone.blocks), self.options.k
        if k is not None and k > num_blocks:
            raise OptionError(
                f"strategy.k = {k}, but the backbone has {num_blocks} blocks; set it to fewer, or to none for no limit"
            )
        self.policy = make_policy(self.options.policy, self.backbone, 2, self.options.policy_options)
        self.temperature = self.options.temperature
        if k is not None:
            self.register_buffer("shares", torch.full((num_blocks,), 0.5))
        add_tuned_branches(self)

    def start_epoch(self, epoch: int) -> None:
        """Anneal the temperature, a function of the epoch alone."""
        super().start_epoch(epoch)
        self.temperature = temperature_of(self.options, epoch)

    def encode(self, batch: Batch) -> Encoded:
        """Return user vectors ``(users, dim)`` with each user's gates applied."""
        log_probabilities = self.policy(batch.sequence).log_softmax(dim=-1)  # (users, blocks, 2)
        probabilities = log_probabilities[..., 0].exp()  # (users, blocks)
        gates = choose_actions(self, batch, log_probabilities, self.temperature)[..., 0]  # (users, blocks)
        if self.options.k is not None and not self.training:
            is_open = largest(self.shares, self.options.k).to(gates.dtype)  # (blocks,)
            gates, probabilities = gates * is_open, probabilities * is_open
        vectors = self.backbone.user_vectors(batch.sequence, gates, pooling=self.pooling)
        return Encoded(vectors, gates, probabilities)

    def loss(self, batch: Batch, encoded: Encoded) -> Tensor:
        """Return the task's loss, plus λ_1 L_k + λ_2 L_e where k is set, and the terms against collapse."""
        assert encoded.gates is not None
        assert encoded.probabilities is not None
        loss = super().loss(batch, encoded) + collapse_loss(self.options, encoded.gates, encoded.probabilities)
        if self.options.k is None:
            return loss
        shares = encoded.gates.mean(dim=0)  # v, (blocks,)
        if self.training:
            self.shares.lerp_(shares.detach().to(self.shares.dtype), RECENT)
        return (
            loss
            + self.options.lambda_1 * count_loss(shares, self.options.k)
            + self.options.lambda_2 * certainty_loss(shares)
        )


def count_loss(shares: Tensor, k: int) -> Tensor:
    """Return L_k = ((Σ_l v_l) − k)², of v ``(blocks,)``."""
    return (shares.sum() - k) ** 2


def certainty_loss(shares: Tensor) -> Tensor:
    """Return L_e = Σ_l −v_l log v_l, nats, of v ``(blocks,)``; at v_l = 0 its gradient is 0 instead of infinite."""
    return torch.special.entr(shares.clamp(min=torch.finfo(shares.dtype).eps)).sum()


def largest(shares: Tensor, k: int) -> Tensor:
    """Return for each block whether it is among the k of the largest shares ``(blocks,)``; of equal ones the first."""
    other, own = shares.unsqueeze(0), shares.unsqueeze(1)
    is_earlier = torch.ones_like(own * other, dtype=torch.bool).tril(diagonal=-1)
    stands_before = (other > own) | ((other == own) & is_earlier)  # (blocks, blocks); ONNX has no stable sort
    return stands_before.sum(dim=1) < k

"""Skip: for each user and block, the fine-tuned branch, the frozen one, or neither; what is skipped is not computed.

Blocks that a policy skips for an input, after

* Wang, Yu, Dou, Darrell, Gonzalez, *SkipNet: Learning Dynamic Routing in Convolutional Networks*, ECCV 2018,
  https://arxiv.org/abs/1711.09485: a gate before each block looks at the block's input; a price on what is computed.
* Wu, Nagarajan, Kumar, Rennie, Davis, Grauman, Feris, *BlockDrop: Dynamic Inference Paths in Residual Networks*, CVPR
  2018, https://arxiv.org/abs/1711.08393: one policy network decides on all blocks at once, learned by reward.
* Chen, Yuan, Yang, Ao, Li, Yang, *A User-Adaptive Layer Selection Framework for Very Deep Sequential Recommender
  Models* (SkipRec), AAAI 2021, https://doi.org/10.1609/aaai.v35i5.16518: a policy network decides which blocks of a
  sequential recommender are skipped for a user, learned by Gumbel-softmax or by reward.

Here the choice is among three, of which those have the second and third (a network has one set of weights there). With
z_l(u) the one-hot action of a user in block l, drawn as in `gumbel.py`, and G, Ĝ the frozen and the tuned block:

    E_l = z_l0 Ĝ_l(E_{l−1}) + z_l1 G_l(E_{l−1}) + z_l2 E_{l−1}
    L   = L_task + c · mean_l mean_u (1 − z_l2)

| symbol | attribute or variable | shape |
| --- | --- | --- |
| z | ``actions`` | (users, blocks, 3) |
| G_l, Ĝ_l | ``frozen``, ``tuned`` | (users, length, dim) → same |
| c | ``compute_weight`` | scalar |

Training computes both branches for everybody, what was not chosen without a graph: the straight-through gradient needs
its output. Evaluation computes each branch for those users alone that go through it (`mixture.py`).

Differences from the papers: as in BlockDrop, and unlike in SkipNet, all decisions of a user come at once and from the
input. BlockDrop learns by reward alone, the others by it too; here there is Gumbel-softmax alone. The price is linear
in the share of blocks, and its default ours. ``initial_skip`` is ours: a constant lowers the logit of skipping, so that
nobody skips a block before training, unless a policy starts out with an output that outweighs it. ``entropy_weight``
and ``information_weight`` (`collapse.py`) see the choice between fine-tuned and not.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from finetune_kit.backbone import Context
from finetune_kit.data.batch import Batch
from finetune_kit.policy import make_policy
from finetune_kit.positions import at_steps
from finetune_kit.strategy import Encoded, Strategy
from ftkit_uaf.branches import TwoBranchBlock, add_tuned_branches
from ftkit_uaf.collapse import collapse_loss
from ftkit_uaf.gumbel import GumbelOptions, choose_actions, idle_gumbel_options, temperature_of


class SkipOptions(GumbelOptions):
    """Options of Skip."""

    temperature: float = Field(5.0, gt=0)
    """τ of the Gumbel-softmax: the larger, the more even the gradient between the three actions."""
    compute_weight: float = Field(0.2, ge=0)
    """c: price of the share of blocks that are computed; 0 leaves it to the loss of the task what is skipped. With 300
    users of the built-in data 0.1 skipped nothing, 0.2 half of the blocks."""
    initial_skip: float = Field(0.01, gt=0, lt=1)
    """Probability with which a policy that is undecided, i.e. whose outputs are equal, skips a block."""
    evaluation: Literal["greedy", "sample"] = "greedy"
    """At evaluation: the likeliest action, or an action drawn once per user."""


class ThreeWayBlock(TwoBranchBlock):
    """A pre-trained block, its trainable copy, and the choice per user of one of them or neither."""

    def forward(self, hidden: Tensor, context: Context, gate: Tensor) -> Tensor:
        """Return z_0 Ĝ(E) + z_1 G(E) + z_2 E, the shape of ``hidden`` ``(users, length, dim)``.

        Args:
            hidden: E, ``(users, length, dim)``.
            context: The batch's.
            gate: z, ``(users, 3)``, or the share of the fine-tuned branch, ``(users,)``, the rest the frozen one's.
        """
        if gate.dim() == 1:
            gate = torch.stack([gate, 1 - gate, torch.zeros_like(gate)], dim=-1)  # (users, 3)
        return self.mix(gate, [self.tuned, self.frozen, _skipped], hidden, context)


def _skipped(hidden: Tensor, context: Context) -> Tensor:
    """Return E where the block's output is wanted."""
    return hidden if context.wanted is None else at_steps(hidden, context.given, context.wanted)


class Skip(Strategy):
    """Route or skip by block; trains the policy, the fine-tuned branches, the item embedding and the head."""

    Options = SkipOptions
    evaluation_options = frozenset({"evaluation"})
    options: SkipOptions

    @classmethod
    def idle_options(cls, options: SkipOptions) -> dict[str, str]:
        """Return which of the options have no effect, and why."""
        return idle_gumbel_options(options)

    def build(self) -> None:
        """Give each block a trainable copy and add the policy; at first both branches compute the same."""
        self.policy = make_policy(self.options.policy, self.backbone, 3, self.options.policy_options)
        self.temperature = self.options.temperature
        add_tuned_branches(self, ThreeWayBlock)

    def start_epoch(self, epoch: int) -> None:
        """Anneal the temperature, a function of the epoch alone."""
        super().start_epoch(epoch)
        self.temperature = temperature_of(self.options, epoch)

    def encode(self, batch: Batch) -> Encoded:
        """Return user vectors ``(users, dim)``, each user taken through what was chosen for them."""
        log_probabilities = self.log_probabilities(batch.sequence)  # (users, blocks, 3)
        actions = choose_actions(self, batch, log_probabilities, self.temperature)
        vectors = self.backbone.user_vectors(batch.sequence, actions, pooling=self.pooling)
        return Encoded(vectors, actions[..., 0], log_probabilities[..., 0].exp(), actions[..., 2])

    def encode_with(self, batch: Batch, gates: Tensor) -> Encoded:
        """Return user vectors under given gates ``(users, blocks)``, or shares of all three, ``(users, blocks, 3)``."""
        encoded = super().encode_with(batch, gates)
        if gates.dim() == 2:
            return encoded
        return Encoded(encoded.vectors, gates[..., 0], skipped=gates[..., 2])

    def loss(self, batch: Batch, encoded: Encoded) -> Tensor:
        """Return the task's loss, plus the price of what is computed and the terms against collapse."""
        assert encoded.gates is not None
        assert encoded.probabilities is not None
        assert encoded.skipped is not None
        loss = super().loss(batch, encoded) + collapse_loss(self.options, encoded.gates, encoded.probabilities)
        return loss + self.options.compute_weight * (1 - encoded.skipped).mean()

    def log_probabilities(self, sequence: Tensor) -> Tensor:
        """Return log π, ``(users, blocks, 3)``, of item ids ``(users, length)``."""
        initial = self.options.initial_skip
        offset = math.log(2 * initial / (1 - initial))  # equal outputs of the policy give (1 − p)/2, (1 − p)/2, p
        output = self.policy(sequence)
        return (output + output.new_tensor([0.0, 0.0, offset])).log_softmax(dim=-1)

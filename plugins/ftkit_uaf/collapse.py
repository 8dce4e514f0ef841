"""What keeps a learned policy from collapsing, i.e. from treating everybody alike or leaving a branch unused.

The paper has nothing of the kind; a reward or a straight-through gradient can push all users to the same branch within
an epoch, and what is never used never learns. Three numbers say how far that has gone, and a weight on each joins
the loss. With p_lu the probability that user u takes the fine-tuned branch of block l, and H the entropy of a
binary choice, nats:

    usage       = mean_l mean_u p_lu                                 (what UAF-RL's reward prices, Eq. 13)
    entropy     = mean_l mean_u H(p_lu)                              (how undecided the policy is)
    information = mean_l [H(mean_u p_lu) − mean_u H(p_lu)]           (how much the choice says of the user)

The information is that of a block's choice about which user of the batch it is for (their mutual information):
0 when all are treated alike, ln 2 when one half surely takes one branch and the other half the other.

All weights are 0 unless set, which is the paper.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from finetune_kit.options import Options


class LearnedPolicyOptions(Options):
    """Options of every strategy that learns a policy."""

    policy: str = "conv"
    """The policy network, by name."""
    policy_options: dict[str, Any] = Field(default_factory=dict)
    """Options of the policy network, e.g. strategy.policy_options.mask_padding=false."""
    usage_weight: float = Field(0.0, ge=0)
    """Price of fine-tuned blocks: this times their mean gate joins the loss. The paper has none (0); it pulls
    everybody towards the frozen branches, 0.03 already strongly on the built-in data."""
    entropy_weight: float = Field(0.0, ge=0)
    """Reward for staying undecided: this times the mean entropy of a choice, nats, is taken off the loss. The paper has
    none (0)."""
    information_weight: float = Field(0.0, ge=0)
    """Reward for treating users differently, each decidedly: this times the information, nats, that a choice has about
    which user of the batch it is for is taken off the loss. The paper has none (0)."""


def collapse_loss(options: LearnedPolicyOptions, gates: Tensor, probabilities: Tensor) -> Tensor | float:
    """Return what the options add to the loss; a weight of 0 adds nothing, not even a gradient of zero.

    Args:
        options: The weights.
        gates: ``(users, blocks)``, the shares of the fine-tuned branch, with a gradient.
        probabilities: ``(users, blocks)``, the policy's probabilities of the fine-tuned branch, with a gradient.
    """
    total: Tensor | float = 0.0
    if options.usage_weight:
        total = total + options.usage_weight * usage(gates)
    if options.entropy_weight:
        total = total - options.entropy_weight * entropy(probabilities)
    if options.information_weight:
        total = total - options.information_weight * information(probabilities)
    return total


def usage(probabilities: Tensor) -> Tensor:
    """Return the mean share of the fine-tuned branch over users and blocks, of ``(users, blocks)``."""
    return probabilities.mean()


def entropy(probabilities: Tensor) -> Tensor:
    """Return the mean entropy of a user's choice in a block, nats, of ``(users, blocks)``."""
    return _binary_entropy(probabilities.float()).mean()


def information(probabilities: Tensor) -> Tensor:
    """Return the mutual information of user and choice, nats, the mean over blocks of ``(users, blocks)``."""
    probabilities = probabilities.float()  # 16 bits, in mixed precision, are too few for a difference
    of_everybody = _binary_entropy(probabilities.mean(dim=0))  # (blocks,)
    return (of_everybody - _binary_entropy(probabilities).mean(dim=0)).mean()


def _binary_entropy(probability: Tensor) -> Tensor:
    """Return H(p) = −p ln p − (1 − p) ln(1 − p), elementwise; its gradient is 0 instead of infinite at 0 and 1."""
    margin = torch.finfo(probability.dtype).eps
    probability = probability.clamp(margin, 1 - margin)
    return torch.special.entr(probability) + torch.special.entr(1 - probability)

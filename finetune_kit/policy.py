"""Policies: from a user's source sequence to one decision per residual block.

A policy says nothing of how its decisions are used: hard, soft and reinforcement-learned strategies share them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from finetune_kit.backbone import Backbone
from finetune_kit.options import Options, resolve
from finetune_kit.plugins import installed


class Policy(nn.Module):
    """Maps the source sequence of each user to decisions on all residual blocks at once.

    For implementers: derive, set up modules in ``__init__`` (after ``super().__init__()``), write `forward`.

    Args:
        backbone: The pre-trained backbone; copy from it what the policy starts from, share nothing with it.
        num_outputs: Numbers wanted per block: 2 for a choice between fine-tuned and frozen, 3 for one between these and
            skipped, 1 for a gate.
    """

    Options: ClassVar[type[Options]] = Options
    """The options model."""
    options: Any
    """The filled model; Any, so that a subclass may annotate its own."""

    def __init__(self, backbone: Backbone, num_outputs: int, options: Options | None = None) -> None:
        super().__init__()
        self.num_blocks = len(backbone.blocks)
        self.num_outputs = num_outputs
        self.options = self.Options() if options is None else options

    def forward(self, sequence: Tensor) -> Tensor:
        """Return unnormalised decisions, ``(users, blocks, outputs)``, of item ids ``(users, length)``.

        Of several outputs, index 0 stands for *fine-tuned*, index 1 for *frozen*, index 2 for *skipped*.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement forward(sequence)")


def make_policy(name: str, backbone: Backbone, num_outputs: int, options: Mapping[str, Any]) -> Policy:
    """Return the installed policy of that name, set up for a backbone.

    Raises:
        UnknownNameError: When no policy has that name.
        OptionError: For options that the policy does not have.
    """
    component = installed().component("policy", name)
    policy = component.load()
    return policy(
        backbone, num_outputs, resolve(policy.Options, {**component.preset, **options}, "strategy.policy_options")
    )

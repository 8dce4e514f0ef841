"""LoRA: every weight matrix of the blocks stays as it was pre-trained and gets a trainable change of low rank.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen: *LoRA: Low-Rank Adaptation of Large Language Models*, ICLR 2022,
https://arxiv.org/abs/2106.09685, Eq. 3:

    W = W_0 + (α/r) B A

A weight with more than two dimensions (a convolution's) is taken as the matrix whose rows are its outputs.

| symbol | attribute or variable | shape |
| --- | --- | --- |
| W_0 | ``weight``, a parameter of ``block`` | (outputs, …) |
| A | ``change.A`` | (r, inputs) |
| B | ``change.B`` | (outputs, r) |
| r, α | ``options.rank``, ``options.alpha`` | |

It acts on weights and not on layers: W is computed once per forward and handed to the block in the place of W_0. So it
holds for every layer there is (dilated convolutions, recurrent ones, attention, anyone's own), and merging is exact.

Differences from the paper: it changes the attention's query and value matrices alone; here all weights of the blocks
with two or more dimensions, unless ``weights`` chooses. A starts from the authors' code's uniform distribution, B from
zero, as there. The packed weights of attention (query, key, value) and of recurrent layers (their gates) are one matrix
each, with one A for all parts. The rank is at most what the matrix has. The authors' code can put dropout before A, for
which there is no place here; the rest of the backbone is in evaluation mode in training too, dropout off.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from finetune_kit.backbone import Backbone, Context
from finetune_kit.errors import OptionError, PluginError, did_you_mean
from finetune_kit.options import Options
from finetune_kit.strategy import Strategy


class LoraOptions(Options):
    """Options of LoRA."""

    rank: int = Field(4, ge=1)
    """r: rank of each weight's change."""
    alpha: float | None = Field(None, gt=0)
    """α: each change is scaled by α/r; none takes the rank, so that the scale is 1."""
    weights: tuple[str, ...] = Field(("*",), min_length=1)
    """Which weights change: patterns over their names within a block, e.g. *conv1* or *in_proj_weight."""


class LowRankChange(nn.Module):
    """The change of one weight; starts as none at all.

    Args:
        weight: W_0, of two or more dimensions.
        rank: r.
        scale: α/r.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        num_outputs, num_inputs = weight.flatten(1).shape
        rank = min(rank, num_outputs, num_inputs)
        self.A = nn.Parameter(weight.new_empty(rank, num_inputs))
        self.B = nn.Parameter(weight.new_zeros(num_outputs, rank))
        self.scale = scale
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return W_0 + (α/r) B A (Eq. 3), the shape of ``weight`` ``(outputs, …)``."""
        return weight + self.scale * (self.B @ self.A).view_as(weight)


class LoraBlock(nn.Module):
    """A frozen block that computes with changed weights.

    Args:
        block: The pre-trained residual block.
        changes: By the name of the block's parameter.
    """

    def __init__(self, block: nn.Module, changes: Mapping[str, LowRankChange]) -> None:
        super().__init__()
        self.block = block
        self.names = tuple(changes)
        self.changes = nn.ModuleList(changes.values())
        self.reach = getattr(block, "reach", None)

    def inputs_for(self, wanted: tuple[int, ...], length: int) -> tuple[int, ...] | None:
        """Return the positions that outputs at ``wanted`` depend on, if the block can tell (`Backbone`)."""
        inputs_for = getattr(self.block, "inputs_for", None)
        return inputs_for(wanted, length) if inputs_for else None

    def weights(self) -> dict[str, Tensor]:
        """Return W by the name of the block's parameter."""
        named = zip(self.names, self.changes, strict=True)
        return {name: change(self.block.get_parameter(name)) for name, change in named}

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        """Return the shape of ``hidden`` ``(users, length, dim)``."""
        return functional_call(self.block, self.weights(), (hidden, context))

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Return a copy of the block with W for its weights."""
        block = copy.deepcopy(self.block)
        for name, weight in self.weights().items():
            block.get_parameter(name).copy_(weight)
        return block


class Lora(Strategy):
    """Train a change of low rank for the weights of every block, and the head; the backbone stays as it was."""

    Options = LoraOptions
    options: LoraOptions

    def build(self) -> None:
        """Freeze the backbone and give its blocks their changes, which are zero before the first update.

        Raises:
            OptionError: When a pattern of ``weights`` matches none.
            PluginError: When the blocks have no weights of two dimensions or more.
        """
        self.freeze(self.backbone)
        chosen = _chosen_weights(self.backbone, self.options.weights)
        self.backbone.blocks = nn.ModuleList(
            LoraBlock(block, {name: self._change(block.get_parameter(name)) for name in names}) if names else block
            for block, names in zip(self.backbone.blocks, chosen, strict=True)
        )

    def merged_backbone(self) -> Backbone:
        """Return the plain backbone with W for its blocks' weights."""
        backbone = copy.deepcopy(self.backbone)
        backbone.blocks = nn.ModuleList(
            block.merged() if isinstance(block, LoraBlock) else block for block in backbone.blocks
        )
        return backbone

    def _change(self, weight: nn.Parameter) -> LowRankChange:
        """Return a new change of one weight."""
        rank, alpha = self.options.rank, self.options.alpha
        return LowRankChange(weight, rank, 1.0 if alpha is None else alpha / rank)


def _chosen_weights(backbone: Backbone, patterns: tuple[str, ...]) -> list[list[str]]:
    """Return per block the names of the weights that change."""
    names = [[name for name, weight in block.named_parameters() if weight.dim() >= 2] for block in backbone.blocks]
    known = list(dict.fromkeys(name for of_block in names for name in of_block))
    if not known:
        raise PluginError(
            f"LoRA changes weights of two or more dimensions, and the blocks of {type(backbone).__name__} have none; "
            "use a strategy that trains other parts, e.g. bitfit"
        )
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise OptionError(
                f"strategy.weights: {pattern!r} matches no weight of the blocks.{did_you_mean(pattern, known)} "
                f"They have: {', '.join(known)}"
            )
    return [[name for name in of_block if any(fnmatchcase(name, one) for one in patterns)] for of_block in names]

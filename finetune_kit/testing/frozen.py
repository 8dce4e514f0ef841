"""What of a strategy is frozen, as its contract sees it."""

from __future__ import annotations

import torch
from torch import Tensor

from finetune_kit.strategy import Strategy


@torch.no_grad()
def leading_stages(strategy: Strategy, sequence: Tensor) -> Tensor | None:
    """Return the output of the stages that a strategy says stay frozen for all; None if it says none do."""
    backbone, num_stages = strategy.backbone, strategy.frozen_stages
    if num_stages == 0:
        return None
    hidden, context = backbone.embed(sequence), backbone.prepare(sequence)
    for block in list(backbone.blocks)[: num_stages - 1]:
        hidden = block(hidden, context)
    return hidden


def frozen_tensors(strategy: Strategy) -> set[str]:
    """Return the names of frozen parameters and of the buffers beside them."""
    frozen = {name for name, parameter in strategy.named_parameters() if not parameter.requires_grad}
    return frozen | {name for name in strategy.state_dict() if is_frozen(strategy, name.rpartition(".")[0])}


def is_frozen(strategy: Strategy, name: str) -> bool:
    """Return whether the innermost module around ``name`` that has parameters (or that itself) is frozen."""
    while True:
        trains = [parameter.requires_grad for parameter in strategy.get_submodule(name).parameters()]
        if trains:
            return not any(trains)
        name = name.rpartition(".")[0]

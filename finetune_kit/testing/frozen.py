"""What of a strategy is frozen, as its contract sees it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from finetune_kit.data.batch import Batch
from finetune_kit.strategy import Strategy
from finetune_kit.training.leading import LeadingStages


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


def cached_stages(strategy: Strategy, batches: Sequence[Batch], file: Path) -> LeadingStages:
    """Return what tells a strategy, while entered, what its still stages make of the users of some batches.

    Args:
        strategy: The strategy.
        batches: Equal in length; users' ids ascend from each to the next.
        file: Where it may be kept.
    """
    users, sequence = torch.cat([batch.user for batch in batches]).numpy(), torch.cat([b.sequence for b in batches])
    row_of = {user: row for row, user in enumerate(users.tolist())}
    return LeadingStages(
        strategy,
        users,
        lambda some: sequence[[row_of[user] for user in some.tolist()]].numpy(),
        memory=1,
        file=file,
        num_users=len(batches[0].user),  # those of a batch together, as without a cache: the same to the last bit
    )


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

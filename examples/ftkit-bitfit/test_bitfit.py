"""The strategy trains what it says, and nothing else."""

import copy

import pytest
import torch
from ftkit_bitfit import BitFit, BitFitOptions  # pyrefly: ignore[missing-import]  (a project of its own)

from finetune_kit import Batch, ItemTask
from ftkit_backbones.nextitnet import NextItNet, NextItNetOptions


@pytest.mark.parametrize("scales", [True, False])
def test_a_step_changes_the_head_the_biases_and_as_asked_the_scales(scales: bool) -> None:
    torch.manual_seed(0)
    backbone = NextItNet(20, 6, NextItNetOptions(dim=8, num_blocks=2))
    strategy = BitFit(backbone, ItemTask(8, 5), BitFitOptions(scales=scales))
    before = copy.deepcopy(strategy.state_dict())
    user = torch.arange(4)
    batch = Batch(user + 1, torch.randint(1, 21, (4, 6)), user, torch.randint(1, 5, (4,)), torch.full((4, 1), 5))
    strategy(batch).backward()
    torch.optim.SGD([p for p in strategy.parameters() if p.requires_grad], lr=0.1).step()
    after = strategy.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    wanted = {name for name in before if "bias" in name or "task" in name or (scales and "norm" in name)}
    assert changed == wanted

"""Each way in which something put into a block can go wrong, made on purpose, is found."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from finetune_kit.backbone import Backbone, Context
from finetune_kit.testing import TinyBackbone, randomise
from ftkit_adapters.probe import find_fault


class Patched(nn.Module):
    """A block with a trainable bias ``b`` behind it, put in as ``how`` says."""

    reach = 1

    def __init__(self, block: nn.Module, how: str) -> None:
        super().__init__()
        self.block, self.how = block, how
        self.b = nn.Parameter(torch.zeros(8))

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        output = self.block(hidden, context)
        if self.how == "drifts" and not torch.is_grad_enabled():
            self.block.norm.weight.mul_(1 + 1e-7)
        if self.how == "ignored" or (self.how == "slow path only" and not torch.is_grad_enabled()):
            return output
        if self.how == "vanishes":
            return output + self.b * 0
        if self.how == "no number":
            return output + self.b * torch.nan
        if self.how == "looks ahead":
            return output + (self.b * hidden).mean(dim=1, keepdim=True)
        return output + self.b


class Shifted(nn.Module):
    def __init__(self, block: nn.Module, shift: Tensor) -> None:
        super().__init__()
        self.block, self.shift = block, shift

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        return self.block(hidden, context) + self.shift


def patched(*how: str) -> Backbone:
    backbone = randomise(TinyBackbone(20, 12)).requires_grad_(False)
    backbone.blocks = nn.ModuleList(Patched(block, one) for block, one in zip(backbone.blocks, how, strict=True))
    return backbone


def merged(backbone: Backbone) -> Backbone:
    backbone = copy.deepcopy(backbone)
    backbone.blocks = nn.ModuleList(Shifted(block.block, block.b.detach()) for block in backbone.blocks)
    return backbone


def wrongly_merged(backbone: Backbone) -> Backbone:
    backbone = merged(backbone)
    backbone.blocks[1] = backbone.blocks[1].block
    return backbone


def test_what_works_is_found_to_work_and_nothing_changes() -> None:
    backbone = patched("well", "well")
    before, state = copy.deepcopy(backbone.state_dict()), torch.get_rng_state()
    assert find_fault(backbone, merged) is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("how", "merge", "fault"),
    [
        (("ignored", "ignored"), merged, "nothing of it takes part in the computation"),
        (("well", "ignored"), merged, "blocks.1.b takes no part in the computation"),
        (("vanishes", "vanishes"), merged, "it has no effect"),
        (("well", "no number"), merged, "it computes what is no number"),
        (("well", "slow path only"), merged, "without gradients the backbone computes something else than with them"),
        (("well", "well"), wrongly_merged, "merged into the weights it computes something else"),
        (("well", "drifts"), merged, "it changes blocks.1.block.norm.weight, which is frozen"),
    ],
)
def test_what_goes_wrong_is_found(how: tuple[str, str], merge: Callable[[Backbone], Backbone], fault: str) -> None:
    assert find_fault(patched(*how), merge) == fault


def test_a_position_that_sees_a_later_one_is_found_where_the_backbone_is_causal() -> None:
    backbone = patched("well", "looks ahead")
    assert find_fault(backbone, copy.deepcopy) == "with it, positions see later ones"
    backbone.is_causal = False
    assert find_fault(backbone, copy.deepcopy) is None

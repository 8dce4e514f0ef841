import torch
from finetune_kit import Context
from finetune_kit.testing import BackboneContract, StrategyContract, installed_backbone, sequences
from hypothesis import given, settings
from torch import nn

from ftkit_my_backbone.backbone import MyBackbone, MyBackboneBlock


class TestMyBackbone(BackboneContract):
    """All that a backbone promises."""

    backbone = "my-backbone"
    options = {"dim": 8, "num_blocks": 2}  # noqa: RUF012  (nobody changes it)


class TestAStrategyOnMyBackbone(StrategyContract):
    """All that a strategy promises, on this backbone: choose one that puts something into its blocks."""

    strategy = "peterrec"
    backbones = (installed_backbone("my-backbone", dim=8, num_blocks=2),)


def test_the_equations_by_hand():
    block = MyBackboneBlock(2)
    nn.init.eye_(block.linear.weight)
    nn.init.zeros_(block.linear.bias)
    hidden = torch.tensor([[[3.0, 1.0], [1.0, 5.0]]])
    # The means are (3, 1) and (2, 3). LN makes (1, -1) and (-1, 1) of them, ReLU (1, 0) and (0, 1).
    expected = torch.tensor([[[4.0, 1.0], [1.0, 6.0]]])
    torch.testing.assert_close(block(hidden, Context(torch.ones(1, 2, 1))), expected, atol=1e-4, rtol=0)


@settings(max_examples=20, deadline=None)
@given(sequence=sequences())
def test_hidden_states_have_one_vector_per_position_for_any_shape(sequence):
    backbone = MyBackbone(20, 8, MyBackbone.Options(dim=4, num_blocks=3))
    assert backbone(sequence).shape == (*sequence.shape, 4)

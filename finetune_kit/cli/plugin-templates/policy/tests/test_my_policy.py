import torch
from finetune_kit.testing import PolicyContract, StrategyContract, TinyBackbone, backbones, sequences
from hypothesis import given, settings
from torch import nn

from ftkit_my_policy.policy import MyPolicy


class TestMyPolicy(PolicyContract):
    """All that a policy promises."""

    policy = "my-policy"


class TestAStrategyWithMyPolicy(StrategyContract):
    """All that a strategy promises that leaves its decisions to this policy."""

    strategy = "uaf-hard"
    options = {"policy": "my-policy"}  # noqa: RUF012  (nobody changes it)


def test_equation_1_by_hand():
    backbone = TinyBackbone(20, 12, TinyBackbone.Options(dim=1, num_blocks=1))
    policy = MyPolicy(backbone, 1, MyPolicy.Options(latest=2))
    nn.init.constant_(policy.output.weight, 2.0)
    nn.init.constant_(policy.output.bias, 1.0)
    with torch.no_grad():
        policy.item_embedding.weight[3:6] = torch.tensor([[100.0], [5.0], [7.0]])
    # Items 4 and 5 are the latest two: 2 · (5 + 7) / 2 + 1 = 13. Of the other user, item 4 is all there is: 2 · 5 + 1.
    assert policy(torch.tensor([[3, 4, 5], [0, 0, 4]])).flatten().tolist() == [13.0, 11.0]


@settings(max_examples=20, deadline=None)
@given(backbone=backbones(), sequence=sequences())
def test_it_decides_on_every_block_for_any_shape(backbone, sequence):
    assert MyPolicy(backbone, 2)(sequence).shape == (len(sequence), len(backbone.blocks), 2)

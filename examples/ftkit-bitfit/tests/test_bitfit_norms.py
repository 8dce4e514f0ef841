import pytest
import torch
from finetune_kit import ItemTask
from finetune_kit.errors import PluginError
from finetune_kit.testing import StrategyContract, TinyBackbone, backbones, installed_backbone, random_batch
from finetune_kit.testing import tiny_backbones as tiny
from hypothesis import given, settings
from torch import nn

from ftkit_bitfit.norms import BitFitNorms

NEXTITNET = installed_backbone("nextitnet", dim=8, num_blocks=2)


class WithoutNorms(TinyBackbone):
    def __init__(self, num_items, max_length):
        super().__init__(num_items, max_length)
        for block in self.blocks:
            block.norm = nn.Identity()


class TestBitFitNorms(StrategyContract):
    strategy = "bitfit-norms"
    backbones = (*tiny(), NEXTITNET, WithoutNorms)  # the last is refused, in the words that the contract wants


class TestBitFitNormsWithScales(StrategyContract):
    strategy = "bitfit-norms"
    options = {"scales": True}  # noqa: RUF012  (nobody changes it)
    backbones = (*tiny(), NEXTITNET)


def build(backbone, **options):
    return BitFitNorms(backbone, ItemTask(backbone.dim, 9), BitFitNorms.Options(**options))


def test_equation_1_by_hand():
    strategy = build(TinyBackbone(20, 12, TinyBackbone.Options(dim=2, num_blocks=1)))
    (norm,) = (part for part in strategy.backbone.modules() if isinstance(part, nn.LayerNorm))
    assert [name for name, parameter in norm.named_parameters() if parameter.requires_grad] == ["bias"]
    nn.init.constant_(norm.bias, 5.0)
    # z = (1, 3): its mean is 2 and its deviation 1, so LN(z) = (-1, 1) + 5
    torch.testing.assert_close(norm(torch.tensor([1.0, 3.0])), torch.tensor([4.0, 6.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("scales", [True, False])
def test_a_step_changes_the_head_the_biases_and_if_asked_the_scales(scales):
    strategy = build(NEXTITNET(20, 12), scales=scales)
    before = {name: tensor.clone() for name, tensor in strategy.state_dict().items()}
    strategy(random_batch()).backward()
    torch.optim.SGD([one for one in strategy.parameters() if one.requires_grad], lr=0.1).step()
    changed = {name for name, tensor in strategy.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {
        name for name in before if name.startswith("task.") or ("norm" in name and (scales or name.endswith(".bias")))
    }


@settings(max_examples=20, deadline=None)
@given(backbone=backbones())
def test_it_trains_one_number_per_norm_and_dimension_for_any_shape(backbone):
    num_norms = sum(isinstance(part, nn.LayerNorm) for part in backbone.modules())
    head = 9 * (backbone.dim + 1)
    assert build(backbone).num_parameters()[0] == head + num_norms * backbone.dim


def test_a_backbone_without_layer_norms_is_refused():
    with pytest.raises(PluginError, match="WithoutNorms has none; use a backbone that has"):
        build(WithoutNorms(20, 12))


def test_the_biases_alone_learn_what_users_like():
    torch.manual_seed(0)
    strategy, batch = build(NEXTITNET(20, 12)), random_batch(8)
    nn.init.normal_(strategy.task.head.weight)
    strategy.task.requires_grad_(False)
    optimizer = torch.optim.Adam([one for one in strategy.parameters() if one.requires_grad], 0.05)
    strategy.train()
    first = strategy(batch).item()
    for _ in range(60):
        strategy(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert strategy(batch).item() < 0.8 * first

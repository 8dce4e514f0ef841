from pathlib import Path

import torch
from safetensors.torch import load_file

from finetune_kit.backbone import Backbone
from finetune_kit.testing import PolicyContract, TinyBackbone
from ftkit_backbones.nextitnet import NextItNet, NextItNetOptions
from ftkit_uaf.policies import ConvPolicy, ConvPolicyOptions

GOLDEN = Path(__file__).parent / "golden"


class TestConvPolicy(PolicyContract):
    policy = "conv"


class TestConvPolicyOfTheAuthors(PolicyContract):
    policy = "conv"
    options = {"mask_padding": False}  # noqa: RUF012  (as in a plugin author's test)
    ignores_padding = False


def conv(backbone: Backbone, num_outputs: int = 2, **options: bool) -> ConvPolicy:
    return ConvPolicy(backbone, num_outputs, ConvPolicyOptions(**options))


def test_the_conv_policy_computes_what_the_authors_code_computes() -> None:
    golden = load_file(GOLDEN / "policy_conv.safetensors")
    policy = conv(NextItNet(29, 12, NextItNetOptions(dim=8, num_blocks=4)), mask_padding=False)
    names = {
        "embedding.weight": "item_embedding.weight",
        "head.weight": "output.weight",
        "head.bias": "output.bias",
    }
    inner = {
        names.get(name, name): tensor for name, tensor in golden.items() if not name.startswith(("input", "output"))
    }
    policy.load_state_dict(inner)
    logits = policy(golden["input.sequence"])
    torch.testing.assert_close(logits, golden["output.logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.sigmoid(), golden["output.sigmoid"], atol=1e-5, rtol=0)


def test_the_conv_policy_starts_from_the_pretrained_item_embedding() -> None:
    backbone = TinyBackbone(20, 8)
    policy = conv(backbone)
    assert torch.equal(policy.item_embedding.weight, backbone.item_embedding.weight)
    assert policy.item_embedding.weight is not backbone.item_embedding.weight


def test_the_conv_policy_has_the_dilations_of_the_paper() -> None:
    policy = conv(TinyBackbone(20, 8))
    assert [(block.conv1.dilation[0], block.conv2.dilation[0]) for block in policy.blocks] == [(1, 2), (4, 8)]


def test_the_mean_is_over_items_not_over_padding() -> None:
    policy = conv(TinyBackbone(20, 8))
    one_item = torch.tensor([[0, 0, 0, 7]])
    assert torch.allclose(policy(one_item), policy(one_item[:, -1:]), atol=1e-6)
    assert not torch.allclose(conv(TinyBackbone(20, 8), mask_padding=False)(one_item), policy(one_item), atol=1e-3)

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from finetune_kit.backbone import Backbone
from finetune_kit.plugins import installed
from finetune_kit.policy import make_policy
from finetune_kit.testing import PolicyContract, TinyBackbone, randomise, sequences
from ftkit_backbones.nextitnet import NextItNet, NextItNetOptions
from ftkit_uaf.policies import ConvPolicy, ConvPolicyOptions, GlobalPolicy, GruPolicy

GOLDEN = Path(__file__).parent / "golden"


class TestConvPolicy(PolicyContract):
    policy = "conv"


class TestConvPolicyOfTheAuthors(PolicyContract):
    policy = "conv"
    options = {"mask_padding": False}  # noqa: RUF012  (as in a plugin author's test)
    ignores_padding = False


class TestGruPolicy(PolicyContract):
    policy = "gru"


class TestGlobalPolicy(PolicyContract):
    policy = "global"

    def test_users_with_other_histories_get_other_decisions(self, backbone_class: type[Backbone]) -> None:
        """Not kept, on purpose: it is the control that treats all users alike."""
        decisions = self.make(self.make_backbone(backbone_class))(self.sequence())
        assert torch.equal(decisions, decisions[:1].expand_as(decisions))


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


@pytest.mark.parametrize("name", ["conv", "gru"])
def test_a_policy_starts_from_the_pretrained_item_embedding(name: str) -> None:
    backbone = TinyBackbone(20, 8)
    policy = make_policy(name, backbone, 2, {})
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


def test_the_authors_preset_lets_padding_into_the_conv_policy() -> None:
    assert installed().component("policy", "conv").variants["authors"] == {"mask_padding": False}


@settings(max_examples=30, deadline=None)
@given(sequence=sequences(), num_outputs=st.integers(1, 2))
def test_the_gru_policy_is_a_slow_loop_over_each_users_items(sequence: Tensor, num_outputs: int) -> None:
    policy = randomise(GruPolicy(TinyBackbone(20, 8), num_outputs))
    [w_ih, w_hh, b_ih, b_hh] = policy.gru.parameters()
    found = policy(sequence)
    for row, own in enumerate(sequence.tolist()):
        state = torch.zeros(8)  # of users without items, too
        for item in filter(None, own):
            of_input = (w_ih @ policy.item_embedding.weight[item] + b_ih).chunk(3)
            of_state = (w_hh @ state + b_hh).chunk(3)
            reset = (of_input[0] + of_state[0]).sigmoid()
            update = (of_input[1] + of_state[1]).sigmoid()
            new = (of_input[2] + reset * of_state[2]).tanh()
            state = (1 - update) * new + update * state
        slow = (policy.output.weight @ state + policy.output.bias).view(2, num_outputs)
        torch.testing.assert_close(found[row], slow, atol=1e-5, rtol=1e-5)


def test_the_gru_policy_is_as_wide_as_the_backbone() -> None:
    policy = GruPolicy(TinyBackbone(20, 8), 2)
    assert (policy.gru.hidden_size, policy.gru.num_layers) == (8, 1)


def test_the_global_policy_starts_undecided_and_learns_one_decision_per_block() -> None:
    policy = GlobalPolicy(TinyBackbone(20, 8), 2)
    assert not policy(torch.tensor([[0, 3], [1, 2]])).any()
    assert [tuple(parameter.shape) for parameter in policy.parameters()] == [(2, 2)]

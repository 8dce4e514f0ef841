import sys

import pytest
import torch
import transformers
from backbone_trials import LENGTH, NUM_ITEMS, loss_after_learning_cycles, sites_without_effect
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune_kit.errors import OptionError, PluginError
from finetune_kit.options import resolve
from finetune_kit.testing import BackboneContract, random_sequence, randomise, sequences
from ftkit_backbones.hugging_face import ARCHITECTURES, HuggingFace, HuggingFaceOptions, make_model

ALL = sorted(ARCHITECTURES)


class TestGpt2(BackboneContract):
    backbone = "transformers"
    options = {"architecture": "gpt2", "dim": 8, "num_blocks": 2}  # noqa: RUF012  (as in a plugin author's test)


class TestLlama(BackboneContract):
    backbone = "transformers"
    options = {"architecture": "llama", "dim": 8, "num_blocks": 2}  # noqa: RUF012


class TestBert(BackboneContract):
    backbone = "transformers"
    options = {"architecture": "bert", "dim": 8, "num_blocks": 2}  # noqa: RUF012


def options_of(architecture: str, **options: object) -> HuggingFaceOptions:
    options = {"architecture": architecture, "dim": 8, "num_blocks": 2, **options}
    return resolve(HuggingFaceOptions, options, "backbone")


def small(architecture: str, **options: object) -> HuggingFace:
    return randomise(HuggingFace(NUM_ITEMS, LENGTH, options_of(architecture, **options))).eval()


@pytest.mark.parametrize("architecture", ALL)
def test_states_are_those_of_the_model_itself_on_a_users_items_alone(architecture: str) -> None:
    backbone = small(architecture)
    model = make_model(NUM_ITEMS, LENGTH, backbone.options).eval()
    own_names = {name: name for name in model.state_dict() if not name.startswith("pooler.")}
    blocks = ARCHITECTURES[architecture].blocks
    state = backbone.state_dict()
    for name in own_names:
        k, dot, rest = name.removeprefix(f"{blocks}.").partition(".")
        own_names[name] = f"blocks.{k}.block.{rest}" if name.startswith(f"{blocks}.") and dot else f"module.{name}"
    taken = {name: state[own] for name, own in own_names.items()}
    assert len(taken) == len(state) - (not backbone.is_causal)  # all of it but the mask vector
    model.load_state_dict({**model.state_dict(), **taken})
    sequence = random_sequence(6, LENGTH, NUM_ITEMS)
    found = backbone(sequence)
    for user, own in enumerate(sequence):
        items = own[own != 0].unsqueeze(0)
        expected = model(input_ids=items, attention_mask=torch.ones_like(items)).last_hidden_state
        torch.testing.assert_close(found[user, own != 0], expected[0], atol=1e-5, rtol=1e-4)


@settings(max_examples=8, deadline=None)
@given(
    architecture=st.sampled_from(ALL),
    sequence=sequences(NUM_ITEMS, max_length=LENGTH),
    num_heads=st.sampled_from([1, 2]),
)
def test_shapes_and_numbers_for_any_sequence_even_of_padding_alone(
    architecture: str, sequence: Tensor, num_heads: int
) -> None:
    backbone = small(architecture, num_blocks=1, num_heads=num_heads).train()
    hidden = backbone(sequence)
    assert hidden.shape == (*sequence.shape, 8)
    hidden.square().sum().backward()
    assert hidden.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in backbone.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("architecture", ALL)
def test_more_padding_does_not_change_a_user_without_items(architecture: str) -> None:
    backbone = small(architecture)
    short, long = (backbone.user_vectors(torch.zeros(1, length, dtype=torch.int64)) for length in (2, LENGTH))
    torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ALL)
def test_what_is_put_at_a_site_has_an_effect_in_evaluation(architecture: str) -> None:
    backbone = small(architecture)
    assert sites_without_effect(backbone, random_sequence(4, LENGTH, NUM_ITEMS)) == []
    assert {len(block.sites) for block in backbone.blocks} == {2}


@pytest.mark.parametrize("architecture", ALL)
def test_the_context_of_some_users_is_that_of_their_sequences(architecture: str) -> None:
    backbone, sequence, users = small(architecture), random_sequence(4, LENGTH, NUM_ITEMS), torch.tensor([2, 0])
    hidden, context = backbone.start(sequence)
    for block in backbone.blocks:
        torch.testing.assert_close(block(hidden[users], context.rows(users)), block(hidden, context)[users])


@pytest.mark.parametrize("architecture", ALL)
def test_padding_starts_as_zero_and_the_networks_are_four_times_as_wide(architecture: str) -> None:
    backbone = HuggingFace(NUM_ITEMS, LENGTH, options_of(architecture))
    assert not backbone.item_embedding.weight[0].any()
    assert backbone.item_embedding.weight[1:].any(dim=1).all()
    assert any(32 in parameter.shape for parameter in backbone.blocks.parameters())


def test_any_field_of_the_configuration_can_be_set_by_text() -> None:
    options = options_of("llama", config={"intermediate_size": "24", "attention_bias": "true", "hidden_act": "gelu"})
    assert options.config == {"intermediate_size": 24, "attention_bias": True, "hidden_act": "gelu"}
    block = HuggingFace(NUM_ITEMS, LENGTH, options).blocks[0].block
    assert block.mlp.up_proj.out_features == 24
    assert block.self_attn.q_proj.bias is not None
    assert block.mlp.act_fn(torch.tensor(-1.0)).item() == pytest.approx(-0.158655, abs=1e-5)  # of silu -0.268941


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"resid_pdrp": 0.1},
            r"backbone: config has no field 'resid_pdrp'\. Did you mean 'resid_pdrop'\? Fields of GPT2C",
        ),
        ({"summary_type": "first"}, r"config has no field 'summary_type'\."),
        ({"n_embd": 8}, r"config\.n_embd follows from the data and the other options of the backbone"),
        ({"hidden_size": 8}, r"config\.hidden_size follows from"),
        ({"use_cache": True}, r"config\.use_cache follows from"),
        ({"resid_pdrop": "much"}, r"config does not fit GPT2Config: .*resid_pdrop.*'much'"),
    ],
)
def test_what_the_configuration_does_not_have_or_take_is_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        options_of("gpt2", config=config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"architecture": "gpt3"}, {"num_heads": 3}, {"n_embd": 8}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        options_of(**{"architecture": "gpt2", **options})


def test_without_transformers_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PluginError, match=r"pip install 'finetune-kit\[transformers\]'") as caught:
        HuggingFace(NUM_ITEMS, LENGTH)
    assert "\n" not in str(caught.value)


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("asked for something to download")

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    small("gpt2", num_blocks=1)


def test_it_learns_to_look_three_items_back() -> None:
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    options = options_of("gpt2", dim=32, num_blocks=1, config=off)
    loss = loss_after_learning_cycles(lambda: HuggingFace(NUM_ITEMS, LENGTH, options))
    assert loss < 1.1  # guessing costs log 12 = 2.48; the first two can't be known

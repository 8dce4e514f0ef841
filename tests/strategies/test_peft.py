import runpy
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers_of_all_kinds import AttentionBackbone, DilatedBackbone, EncoderBackbone, GruBackbone
from torch import nn

import ftkit_adapters.peft
from finetune_kit.backbone import Backbone
from finetune_kit.errors import OptionError, PluginError
from finetune_kit.options import resolve
from finetune_kit.plugins import installed
from finetune_kit.task import ItemTask
from finetune_kit.testing import (
    StrategyContract,
    TinyBackbone,
    random_batch,
    random_sequence,
    randomise,
    tiny_backbones,
)
from ftkit_adapters import PEFT_METHODS
from ftkit_adapters.peft import Peft, PeftOptions
from ftkit_backbones.hugging_face import HuggingFace
from ftkit_backbones.nextitnet import NextItNet
from ftkit_backbones.sasrec import SasRec

pytest.importorskip("peft")

SMALL = {"hra": {"r": 2}, "oft": {"oft_block_size": 4}}
"""Fields that a method needs on layers eight wide."""


class TestLoraOfPeft(StrategyContract):
    strategy = "peft:lora"


def build(backbone: Backbone | type[Backbone] = TinyBackbone, method: str = "lora", **options: object) -> Peft:
    torch.manual_seed(0)
    backbone = backbone if isinstance(backbone, Backbone) else randomise(backbone(20, 12))
    options = {"method": method, "config": SMALL.get(method, {}), **options}
    return Peft(backbone, ItemTask(backbone.dim, 9), resolve(PeftOptions, options, "strategy"))


def train(strategy: Peft, num_steps: int = 3) -> None:
    """Train on one batch after another, and leave it in evaluation mode."""
    optimizer = torch.optim.Adam([p for p in strategy.parameters() if p.requires_grad], 0.02)
    strategy.train()
    for seed in range(num_steps):
        strategy(random_batch(seed=seed)).backward()
        optimizer.step()
        optimizer.zero_grad()
    strategy.eval()


def test_lora_computes_w_plus_the_scaled_product_by_hand() -> None:
    backbone = TinyBackbone(20, 12, TinyBackbone.Options(dim=1, num_blocks=1))
    backbone.blocks[0].norm = nn.Identity()  # a LayerNorm over one number is zero
    strategy = build(randomise(backbone), config={"r": 1, "lora_alpha": 2}, target_modules="mix.here")
    layer = strategy.backbone.blocks[0].mix.here
    for part, value in ((layer.base_layer, 1.0), (layer.lora_A.default, 3.0), (layer.lora_B.default, 0.5)):
        nn.init.constant_(part.weight, value)
    nn.init.zeros_(layer.base_layer.bias)
    assert layer(torch.ones(1, 1, 1)).item() == 4.0  # 1 + 2/1 · 0.5 · 3
    assert strategy.merged_backbone().blocks[0].mix.here.weight.item() == 4.0


@pytest.mark.parametrize("method", PEFT_METHODS)
@pytest.mark.parametrize("backbone_class", [*tiny_backbones(), AttentionBackbone, SasRec], ids=lambda one: one.__name__)
def test_every_method_offered_trains_its_own_parts_and_merges(method: str, backbone_class: type[Backbone]) -> None:
    plain, sequence = randomise(backbone_class(20, 12)).eval(), random_sequence(4, 7, 20)
    strategy = build(backbone_class, method)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    torch.testing.assert_close(strategy.eval().backbone(sequence), plain(sequence), atol=1e-5, rtol=1e-5)
    train(strategy)
    found = strategy.backbone(sequence)
    assert not torch.allclose(found, plain(sequence), atol=1e-3)
    merged = strategy.merged_backbone()
    assert merged.state_dict().keys() == before.keys()
    torch.testing.assert_close(merged(sequence), found, atol=1e-5, rtol=1e-5)
    frozen = {name.replace("base_layer.", ""): tensor for name, tensor in strategy.backbone.state_dict().items()}
    assert all(torch.equal(frozen[name], tensor) for name, tensor in before.items())
    assert not any("base_layer" in name for name in strategy.trained_state())


def test_every_method_offered_is_listed_with_what_it_trains() -> None:
    for method in PEFT_METHODS:
        assert installed().component("strategy", f"peft:{method}").preset == {"method": method}


@settings(max_examples=8, deadline=None)
@given(dim=st.integers(1, 9), num_blocks=st.integers(1, 3), rank=st.integers(1, 4))
def test_lora_trains_as_many_parameters_as_the_formula_says_for_any_shape(dim: int, num_blocks: int, rank: int) -> None:
    backbone = randomise(TinyBackbone(20, 12, TinyBackbone.Options(dim=dim, num_blocks=num_blocks)))
    backbone.blocks[0].norm = nn.Identity()  # over one number a LayerNorm is zero
    strategy = build(backbone, config={"r": rank}, target_modules="mix.before")
    assert strategy.num_parameters()[0] == num_blocks * rank * 2 * dim + 9 * (dim + 1)


def test_dropout_of_peft_is_on_in_training_and_off_in_evaluation() -> None:
    strategy, batch = build(config={"lora_dropout": "0.5"}), random_batch()
    train(strategy)
    assert torch.equal(strategy.encode(batch).vectors, strategy.encode(batch).vectors)
    strategy.train()
    assert not torch.equal(strategy.encode(batch).vectors, strategy.encode(batch).vectors)


def test_fields_given_as_text_get_their_types() -> None:
    layer = build(config={"r": "2", "use_dora": "true"}).backbone.blocks[0].mix.here
    assert (layer.r["default"], layer.use_dora["default"]) == (2, True)


def test_trying_it_out_leaves_no_trace() -> None:
    backbone, task, sequence = randomise(TinyBackbone(20, 12)).eval(), ItemTask(8, 9), random_sequence(4, 7, 20)
    expected = backbone(sequence)
    strategy = Peft(backbone, task, PeftOptions(method="ia3")).eval()
    torch.testing.assert_close(strategy.backbone(sequence), expected, atol=1e-6, rtol=1e-6)
    assert all(parameter.grad is None for parameter in strategy.parameters())


@pytest.mark.parametrize(
    ("backbone_class", "method", "reason"),
    [
        (NextItNet, "lora", "it fails with TypeError: CausalConv1d"),
        (NextItNet, "ia3", "it fails with ValueError: Target module CausalConv1d"),
        (DilatedBackbone, "lora", "merged into the weights it computes something else"),
        (
            HuggingFace,
            "loha",
            "it fails with TypeError: Target module of type <class 'transformers.pyto",
        ),
        (EncoderBackbone, "lora", "nothing of it takes part in the computation"),
    ],
)
def test_blocks_on_which_it_goes_wrong_are_refused_saying_why(
    backbone_class: type[Backbone], method: str, reason: str
) -> None:
    with pytest.raises(PluginError) as caught:
        build(backbone_class, method)
    message = str(caught.value)
    assert message.startswith(f"PEFT's {method} does not work on the blocks of {backbone_class.__name__}: {reason}")
    assert message.endswith("or use the strategy lora, which acts on the weights of any layer")
    assert "\n" not in message


def test_lora_knows_gpt2s_transposed_layers_without_a_word() -> None:
    strategy, sequence = build(HuggingFace), random_sequence(4, 7, 20)
    train(strategy)
    torch.testing.assert_close(strategy.merged_backbone()(sequence), strategy.backbone(sequence), atol=1e-5, rtol=1e-5)


def test_blocks_without_layers_that_peft_knows_are_refused() -> None:
    with pytest.raises(PluginError, match="the blocks of GruBackbone have none; use the strategy lora"):
        build(GruBackbone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "lra"},
            r"no method of PEFT that .* Did you mean 'lora'\? Those are: .*oft",
        ),
        ({"method": "vera"}, "'vera' is no method of PEFT that can be put on single layers"),
        ({"method": "adalora"}, "'adalora' is no method"),
        ({"config": {"lora_alhpa": 2}}, r"no option strategy\.config\.lora_alhpa\. Did you mean 'lora_alpha'"),
        ({"config": {"target_modules": "all"}}, r"no option strategy\.config\.target_modules"),
        ({"config": {"r": "many"}}, r"strategy\.config\.r = 'many': Input should be a valid integer"),
        ({"config": {"layers_to_transform": [0]}}, "strategy.config does not fit LoraConfig"),
        ({"target_modules": "mix.her"}, r"'mix\.her' matches no layer .* Did you mean 'mix\.here'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build(**options)


def test_without_peft_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("peft", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PluginError, match=r"install it with: pip install 'finetune-kit\[peft\]'"):
        build()


def test_the_strategy_is_described_without_importing_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("peft", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it is an ImportError now
    assert "PeftOptions" in runpy.run_path(ftkit_adapters.peft.__file__)


def test_its_adapters_alone_learn_what_users_like() -> None:
    strategy, batch = build(), random_batch(8)
    randomise(strategy.task).requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in strategy.parameters() if p.requires_grad], 0.02)
    strategy.train()
    first = strategy(batch).item()
    for _ in range(100):
        strategy(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert strategy(batch).item() < 0.3 * first

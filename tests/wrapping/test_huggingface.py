"""Models of Hugging Face transformers, from small configurations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from foreign_models import DIM, HEADS, MAX_LENGTH, NUM_ITEMS
from torch import Tensor, nn

from finetune_kit.backbone import Backbone
from finetune_kit.errors import PluginError
from finetune_kit.testing import BackboneContract, StrategyContract, random_sequence, random_windows, randomise
from finetune_kit.wrapping import WrappedBackbone, wrap

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": NUM_ITEMS + 1, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
LAYERS = {"hidden_size": DIM, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": HEADS}


def gpt2(kind: str = "GPT2Model", **options: Any) -> nn.Module:
    config = transformers.GPT2Config(**SIZES, n_positions=MAX_LENGTH, n_embd=DIM, n_layer=2, n_head=HEADS, **options)
    return randomise(getattr(transformers, kind)(config)).eval()


def llama(kind: str = "LlamaModel", **options: Any) -> nn.Module:
    config = transformers.LlamaConfig(**SIZES, **LAYERS, max_position_embeddings=MAX_LENGTH, **options)
    return randomise(getattr(transformers, kind)(config)).eval()


def bert(**options: Any) -> nn.Module:
    config = transformers.BertConfig(**SIZES, **LAYERS, max_position_embeddings=MAX_LENGTH, **options)
    return randomise(transformers.BertModel(config)).eval()


def masked(ids: Tensor) -> dict[str, Any]:
    """Return the arguments of a model that needs only be told what is padding."""
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "use_cache": False}


def placed(ids: Tensor) -> dict[str, Any]:
    """Return arguments with positions that count items, so that padding on the left changes nothing."""
    return {**masked(ids), "position_ids": (ids != 0).long().cumsum(1).sub(1).clamp(min=0)}


GPT2 = {"embedding": "wte", "blocks": "h", "finish": "ln_f", "inputs": placed, "max_length": MAX_LENGTH}
LLAMA = {**GPT2, "embedding": "embed_tokens", "blocks": "layers", "finish": "norm"}
BERT = {
    "embedding": "embeddings.word_embeddings",
    "blocks": "encoder.layer",
    "inputs": lambda ids: {"input_ids": ids, "attention_mask": (ids != 0).long()},
    "padding": "right",
    "is_causal": False,
    "max_length": MAX_LENGTH,
}
SDPA, EAGER = ({"attn_implementation": name} for name in ("sdpa", "eager"))


@pytest.mark.parametrize("attention", [SDPA, EAGER], ids=["sdpa", "eager"])
@pytest.mark.parametrize(("make", "how"), [(gpt2, GPT2), (llama, LLAMA)], ids=["gpt2", "llama"])
def test_a_decoder_computes_what_it_did(make: Callable[..., nn.Module], how: dict[str, Any], attention: dict) -> None:
    module, sequence = make(**attention), random_sequence(5, 11, NUM_ITEMS)
    expected = module(**placed(sequence)).last_hidden_state
    found = wrap(module, **how)(sequence)
    torch.testing.assert_close(found[sequence != 0], expected[sequence != 0], atol=1e-6, rtol=1e-5)


def test_a_decoder_without_padding_is_handed_no_mask_and_that_is_fine() -> None:
    for module, how in ((gpt2(), GPT2), (llama(), LLAMA)):
        backbone, sequence = wrap(module, **how), random_sequence(6, 11, NUM_ITEMS).clamp(min=1)
        torch.testing.assert_close(backbone(sequence), module(**placed(sequence)).last_hidden_state)
        hidden, context = backbone.start(sequence)
        users = torch.tensor([4, 0])
        some = backbone.blocks[0](hidden[users], context.rows(users))
        torch.testing.assert_close(some, backbone.blocks[0](hidden, context)[users], atol=1e-6, rtol=1e-5)


def test_bert_computes_what_it_did_and_leaves_its_pooler_out() -> None:
    module, sequence = bert(), random_sequence(5, 11, NUM_ITEMS)
    backbone = wrap(module, **BERT)
    for user, found in zip(sequence, backbone(sequence), strict=True):
        own = user[user != 0].unsqueeze(0)
        torch.testing.assert_close(found[user != 0], module(own).last_hidden_state[0], atol=1e-5, rtol=1e-5)
    assert not [name for name in backbone.state_dict() if "pooler" in name]
    windows = backbone.source_task(random_windows(3, 9, NUM_ITEMS), None)
    backbone(windows.inputs).sum().backward()
    assert backbone.mask_vector.grad.any()


class TestGpt2(BackboneContract):
    def make(self) -> Backbone:
        return randomise(wrap(gpt2(), **GPT2)).eval()


class TestBert(BackboneContract):
    def make(self) -> Backbone:
        return randomise(wrap(bert(), **BERT)).eval()


class WrappedLlama(WrappedBackbone):
    def __init__(self, num_items: int, max_length: int, options: Any = None) -> None:
        super().__init__(llama(), **{**LLAMA, "max_length": max_length}, sites=["mlp"], options=options)


class LlamaContract(StrategyContract):
    backbones = [WrappedLlama]  # noqa: RUF012


class TestUafHardOnLlama(LlamaContract):
    strategy = "uaf-hard"


class TestPeterRecOnLlama(LlamaContract):
    strategy = "peterrec"


def test_a_language_model_s_head_is_left_out_tied_or_not() -> None:
    parts = {"embedding": "transformer.wte", "blocks": "transformer.h", "finish": "transformer.ln_f"}
    for is_tied in (True, False):
        module = gpt2("GPT2LMHeadModel", tie_word_embeddings=is_tied)
        backbone = wrap(module, **{**GPT2, **parts}, output=lambda model, hidden, ids: model.lm_head(hidden))
        assert not [name for name in backbone.state_dict() if "lm_head" in name]
        sequence = random_sequence(4, 9, NUM_ITEMS)
        expected = module(**placed(sequence)).logits
        torch.testing.assert_close(module.lm_head(backbone(sequence))[sequence != 0], expected[sequence != 0])


def test_a_cache_is_refused_with_the_way_out() -> None:
    for inputs in (None, lambda ids: {"input_ids": ids, "attention_mask": (ids != 0).long()}):
        with pytest.raises(PluginError, match=r"block 0 remembers how it was called before: .* use_cache=False"):
            wrap(gpt2(), **{**GPT2, "inputs": inputs, "padding": "right"})


def test_positions_that_count_padding_are_refused() -> None:
    with pytest.raises(PluginError, match="padding changes a user's vector"):
        wrap(gpt2(), **{**GPT2, "inputs": masked})


def test_activation_checkpointing_changes_no_gradient() -> None:
    sequence, gradients, calls = random_sequence(4, 9, NUM_ITEMS), [], []
    for checkpoint in (False, True):
        module = llama()
        if checkpoint:
            newer = getattr(module, "activation_checkpointing_enable", None)
            (newer or module.gradient_checkpointing_enable)()
        backbone = wrap(module, **LLAMA).train()
        backbone.blocks[0].block.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
        backbone.user_vectors(sequence).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in backbone.named_parameters()})
    assert len(calls) == 1 + 2, "the second backward pass computes the block again"
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_the_model_itself_works_on_after_many_runs_that_end_early() -> None:
    module, sequence = gpt2(), random_sequence(4, 9, NUM_ITEMS)
    expected = module(**placed(sequence), output_hidden_states=True)
    backbone = wrap(module, **GPT2)
    for _ in range(3):
        backbone.prepare(sequence)
    found = module(**placed(sequence), output_hidden_states=True)
    assert len(found.hidden_states) == 3
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)

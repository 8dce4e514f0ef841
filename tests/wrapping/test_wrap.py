import copy
import gc
import weakref
from contextlib import contextmanager

import pytest
import torch
from foreign_models import (
    DIM,
    MAX_LENGTH,
    NUM_ITEMS,
    Bidirectional,
    Foreign,
    KeywordHidden,
    MaskPerUser,
    Rotated,
    Tupled,
    TwoStacks,
)
from safetensors.torch import load_file
from torch import nn

import finetune_kit
from finetune_kit.backbone import Backbone
from finetune_kit.errors import CheckpointError
from finetune_kit.files import write_tensors
from finetune_kit.layers import rolled
from finetune_kit.testing import BackboneContract, random_sequence, random_windows, randomise
from finetune_kit.wrapping import WrappedBackbone, wrap

STYLES = [Foreign, MaskPerUser, KeywordHidden, Rotated, Tupled, TwoStacks]


def model(style: type[nn.Module]) -> nn.Module:
    return randomise(style()).eval()


def wrapped(module: nn.Module, **how: object) -> WrappedBackbone:
    blocks = ["lower", "upper", "last"] if isinstance(module, TwoStacks) else "blocks"
    how = {"is_causal": not isinstance(module, Bidirectional), "finish": "norm", "max_length": MAX_LENGTH, **how}
    return wrap(module, embedding="items", blocks=blocks, **how).eval()


def main(output: object) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def counting(module: nn.Module):
    calls: list[str] = []
    names = {part: name for name, part in module.named_modules()}
    handles = [part.register_forward_pre_hook(lambda part, _: calls.append(names[part])) for part in names]
    yield calls
    for handle in handles:
        handle.remove()


class ForeignContract(BackboneContract):
    style: type[nn.Module]
    padding = "left"

    def make(self) -> Backbone:
        return randomise(wrapped(self.style(), padding=self.padding)).eval()


class TestMaskPerHead(ForeignContract):
    style = Foreign


class TestRotatedWithPaddingOnTheRight(ForeignContract):
    style = Rotated
    padding = "right"


class TestTwoStacks(ForeignContract):
    style = TwoStacks


class TestBidirectional(ForeignContract):
    style = Bidirectional


def test_it_is_a_name_of_the_package() -> None:
    assert finetune_kit.wrap is wrap
    assert finetune_kit.WrappedBackbone is WrappedBackbone


@pytest.mark.parametrize("style", [*STYLES, Bidirectional])
def test_it_computes_what_the_model_computes(style: type[nn.Module]) -> None:
    module, sequence = model(style), random_sequence(5, 11, NUM_ITEMS)
    assert torch.equal(wrapped(module)(sequence), main(module(sequence)))


@pytest.mark.parametrize("style", STYLES)
def test_padding_may_be_wanted_on_the_right(style: type[nn.Module]) -> None:
    module, sequence = model(style), random_sequence(5, 11, NUM_ITEMS)
    num_padding = (sequence == 0).sum(dim=1)
    expected = main(module(rolled(sequence, num_padding)))
    found = wrapped(module, padding="right")(sequence)
    for user, padding in enumerate(num_padding.tolist()):
        torch.testing.assert_close(found[user, padding:], expected[user, : 11 - padding], atol=1e-6, rtol=0)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("padding", "num_users"), [("left", 8), ("right", 8), ("left", 4)])
def test_the_context_of_some_users_is_theirs(style: type[nn.Module], padding: str, num_users: int) -> None:
    backbone = wrapped(model(style), padding=padding)
    # As many users as positions, and half as many: a table for all has as many rows as one for each, or two for each.
    sequence, users = random_sequence(num_users, 8, NUM_ITEMS), torch.tensor([3, 1, 2])
    hidden, context = backbone.start(sequence)
    some, theirs = hidden[users], context.rows(users)
    for block in backbone.blocks:
        hidden, some = block(hidden, context), block(some, theirs)
        torch.testing.assert_close(some, hidden[users], atol=1e-6, rtol=0)
    finished = backbone.finish(hidden, context)
    torch.testing.assert_close(backbone.finish(some, theirs), finished[users], atol=1e-6, rtol=0)
    assert torch.equal(theirs.mask, context.mask[users])


def test_the_model_stays_as_it_is() -> None:
    module = model(Foreign).train()
    before = copy.deepcopy(module.state_dict())
    backbone = wrapped(module)
    nn.init.zeros_(backbone.item_embedding.weight)
    assert module.training
    assert not backbone.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert type(module.blocks[0]) is Foreign.block


def test_the_weights_are_the_models_to_the_last_bit() -> None:
    module = model(Foreign)
    weights = {value.sum().item() for value in wrapped(module).state_dict().values()}
    assert weights == {value.sum().item() for name, value in module.state_dict().items() if "pooler" not in name}


def test_wrapping_draws_no_random_numbers() -> None:
    module = model(Foreign).train()
    before = torch.get_rng_state()
    wrapped(module)
    assert torch.equal(torch.get_rng_state(), before)


def test_layers_that_take_no_part_are_left_out() -> None:
    names = wrapped(model(Foreign)).state_dict().keys()
    assert not [name for name in names if "pooler" in name]
    assert "module.norm.weight" in names


def test_a_layer_that_the_model_only_looks_at_is_kept() -> None:
    class Looking(Foreign):
        def forward(self, ids):
            return super().forward(ids).to(self.pooler.weight.dtype)

        def place(self, ids):
            return super().place(ids) + 0 * int(self.pooler.weight.dtype.is_floating_point)

    assert "module.pooler.weight" in wrapped(model(Looking)).state_dict()


def test_an_output_layer_tied_to_the_embedding_is_saved_once(tmp_path) -> None:
    class Tied(Foreign):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(DIM, NUM_ITEMS + 1, bias=False)
            self.head.weight = self.items.weight

        def forward(self, ids):
            return self.head(super().forward(ids))

    module = model(Tied)
    backbone = wrapped(module, output=lambda model, hidden, ids: model.head(hidden))
    sequence = random_sequence(4, 9, NUM_ITEMS)
    torch.testing.assert_close(module.head(backbone(sequence)), module(sequence))
    state = backbone.state_dict()
    assert len({value.data_ptr() for value in state.values()}) == len(state)
    write_tensors(tmp_path / "model.safetensors", state)
    other = randomise(wrapped(Tied(), output=lambda model, hidden, ids: model.head(hidden)), seed=1)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other(sequence), backbone(sequence))


@pytest.mark.parametrize("style", [Foreign, TwoStacks, Bidirectional])
def test_weights_of_the_model_are_loaded_by_its_own_names(style: type[nn.Module]) -> None:
    module, backbone, sequence = model(style), wrapped(style()), random_sequence(4, 9, NUM_ITEMS)
    assert not torch.allclose(backbone(sequence), module(sequence))
    backbone.load_original(module.state_dict())  # the pooler's are passed over
    assert torch.equal(backbone(sequence), module(sequence))


def test_weights_of_another_model_are_refused() -> None:
    backbone, state = wrapped(model(Foreign)), model(Foreign).state_dict()
    norm = state.pop("norm.weight")
    with pytest.raises(
        CheckpointError, match=r"another model's: 1 names .* 'module\.norm\.weight', which the model alone"
    ):
        backbone.load_original(state)
    with pytest.raises(CheckpointError, match=r"'module\.nrom', which they alone have"):
        backbone.load_original({**state, "norm.weight": norm, "nrom": norm})
    with pytest.raises(
        CheckpointError, match=r"'module\.norm\.weight' is \(7,\) in the weights given and \(8,\) in the"
    ):
        backbone.load_original({**state, "norm.weight": norm[:-1]})


def test_a_new_item_embedding_takes_the_place_of_the_models() -> None:
    backbone, sequence = wrapped(model(Foreign)), random_sequence(4, 9, NUM_ITEMS)
    before, num_weights = backbone(sequence), len(backbone.state_dict())
    backbone.item_embedding = randomise(nn.Embedding(NUM_ITEMS + 1, DIM), seed=1)
    assert not torch.allclose(backbone(sequence), before)
    assert len(backbone.state_dict()) == num_weights


def test_a_recurrent_layer_is_a_block_too() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items, self.gru = nn.Embedding(NUM_ITEMS + 1, DIM), nn.GRU(DIM, DIM, batch_first=True)

        def forward(self, ids):
            return self.gru(self.items(ids))[0]

    module, sequence = randomise(Recurrent()).eval(), random_sequence(4, 9, NUM_ITEMS)
    backbone = wrap(module, embedding="items", blocks="gru", padding="right", max_length=MAX_LENGTH)
    for user, found in zip(sequence, backbone(sequence), strict=True):
        torch.testing.assert_close(found[user != 0], module(user[user != 0].unsqueeze(0))[0], atol=1e-6, rtol=1e-5)


def test_rows_behind_the_items_are_no_items() -> None:
    module = randomise(Foreign(num_items=NUM_ITEMS + 3))
    assert wrapped(module).num_items == NUM_ITEMS + 3
    backbone = wrapped(module, num_items=NUM_ITEMS)
    assert backbone.num_items == NUM_ITEMS
    assert len(backbone.item_embedding.weight) == NUM_ITEMS + 4


def test_a_hidden_item_is_the_mask_vector() -> None:
    backbone = wrapped(model(Bidirectional))
    windows = random_windows(4, 9, NUM_ITEMS)
    hidden = backbone.source_task(windows, None).inputs
    assert (hidden == NUM_ITEMS + 1).any()
    before = backbone(hidden)
    with torch.no_grad():
        backbone.mask_vector += 1
    assert not torch.allclose(backbone(hidden), before)
    as_item_1 = hidden.masked_fill(hidden == NUM_ITEMS + 1, 1)
    with torch.no_grad():
        backbone.mask_vector.copy_(backbone.item_embedding.weight[1])
    assert torch.equal(backbone(hidden), backbone(as_item_1))


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_each_layer_is_called_once(pooling: str) -> None:
    backbone = wrapped(model(Foreign))
    with counting(backbone) as calls:
        backbone.user_vectors(random_sequence(4, 9, NUM_ITEMS), pooling=pooling)
    once = ["module.items", "module.norm", *(f"blocks.{k}.block.{part}" for k in (0, 1) for part in ("norm", "linear"))]
    assert [calls.count(name) for name in once] == [1] * len(once)


def test_what_stands_before_the_blocks_needs_no_block() -> None:
    backbone = wrapped(model(Foreign))
    with counting(backbone.blocks) as calls:
        backbone.prepare(random_sequence(4, 9, NUM_ITEMS))
    assert not calls


def test_a_copy_computes_the_same_and_is_independent() -> None:
    backbone, sequence = wrapped(model(Foreign)), random_sequence(4, 9, NUM_ITEMS)
    expected = backbone(sequence)
    other = copy.deepcopy(backbone)
    randomise(backbone, seed=1)
    assert not torch.allclose(backbone(sequence), expected)
    assert torch.equal(other(sequence), expected)
    ours = {value.data_ptr() for value in backbone.parameters()}
    assert not ours & {value.data_ptr() for value in other.parameters()}


def test_nothing_holds_on_to_blocks_that_were_replaced() -> None:
    backbone = wrapped(model(Foreign))
    old = [weakref.ref(block.block) for block in backbone.blocks]
    backbone.blocks = nn.ModuleList(nn.Identity() for _ in backbone.blocks)
    gc.collect()
    assert [block() for block in old] == [None, None]


def test_blocks_may_be_fewer_than_the_model_has() -> None:
    backbone, sequence = wrapped(model(Foreign)), random_sequence(4, 9, NUM_ITEMS)
    backbone.blocks = backbone.blocks[:1]
    hidden, context = backbone.start(sequence)
    assert torch.equal(backbone(sequence), backbone.finish(backbone.blocks[0](hidden, context), context))


@pytest.mark.parametrize("frozen", ["", "blocks.1", "norm"])
def test_a_model_that_was_frozen_is_wrapped_and_stays_frozen(frozen: str) -> None:
    module = model(Foreign)
    module.get_submodule(frozen).requires_grad_(False)
    backbone, free = wrapped(module), wrapped(model(Foreign))
    assert backbone.state_dict().keys() == free.state_dict().keys()
    trains = {backbone._own_name(name): weight.requires_grad for name, weight in module.named_parameters()}
    found = {name: weight.requires_grad for name, weight in backbone.named_parameters()}
    assert found.items() <= trains.items()
    assert not all(found.values())

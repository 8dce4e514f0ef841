"""What wrap says of a model that was not described rightly: one sentence."""

from __future__ import annotations

import re

import pytest
import torch
from foreign_models import DIM, HEADS, MAX_LENGTH, NUM_ITEMS, Attention, Bidirectional, Foreign
from torch import nn

from finetune_kit.errors import PluginError
from finetune_kit.testing import random_sequence
from finetune_kit.wrapping import WrappedBackbone, wrap


def refusal(module: nn.Module, **how: object) -> str:
    """Return what wrap says; it must be one line."""
    how = {"embedding": "items", "blocks": "blocks", "finish": "norm", "max_length": MAX_LENGTH, **how}
    with pytest.raises(PluginError) as caught:
        wrap(module, **how)
    assert "\n" not in str(caught.value).split(": ", 1)[0]
    return str(caught.value)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"embedding": "itmes"}, "embedding='itmes' leads nowhere: the model has no 'itmes'; it has 'items', 'places'"),
        ({"embedding": "norm"}, "embedding='norm' is a LayerNorm; name the items' nn.Embedding"),
        ({"blocks": "blocks.0.atention"}, "blocks='blocks.0.atention' leads nowhere: 'blocks.0' has no 'atention'; it"),
        ({"blocks": []}, "blocks=[] holds no blocks"),
        ({"finish": ["norm", "head"]}, "finish='head' leads nowhere: the model has no 'head'"),
        ({"num_items": NUM_ITEMS + 1}, "embedding='items' has 21 rows, which is too few for padding and 21 items"),
        ({"sites": ["liner"]}, "no site 'liner' in the blocks; there are 'attention'"),
        (
            {"sites": ["attention"]},
            "site 'attention' of block 0 makes () of (3, 8, 8); a patch needs a submodule that is given",
        ),
        ({"sites": ["attention.out_proj"]}, "site 'attention.out_proj' of block 0 is not called"),
    ],
)
def test_names_that_lead_nowhere_are_refused(how: dict[str, object], said: str) -> None:
    assert said in refusal(Foreign(), **how)


def test_blocks_must_be_named_in_the_order_in_which_they_are_called() -> None:
    said = refusal(Foreign(), blocks=["blocks.1", "blocks.0"])
    assert "the model called its blocks in the order ['blocks.0', 'blocks.1'], not each once as ['blocks.1'" in said


def test_blocks_that_are_called_twice_are_refused() -> None:
    class Twice(Foreign):
        def forward(self, ids):
            return self.norm(self.step(self.blocks[0], super().forward(ids), ids))

    assert "in the order ['blocks.0', 'blocks.1', 'blocks.0'], not each once" in refusal(Twice())


def test_a_block_that_is_not_named_is_missed() -> None:
    assert "the wrapped model's output differs from the original's by up to" in refusal(Foreign(), blocks="blocks.0")


def test_a_block_that_drops_out_in_training_is_named() -> None:
    class Dropping(Foreign):
        def step(self, block, hidden, ids):
            return hidden if self.training and block is self.blocks[0] else super().step(block, hidden, ids)

    backbone = wrap(Dropping(), embedding="items", blocks="blocks", finish="norm", max_length=MAX_LENGTH)
    with pytest.raises(PluginError, match=r"block 1 was called after 0 others; .* in training too \(no layer drop\)"):
        backbone.train()(random_sequence(4, 8, NUM_ITEMS))


def test_a_model_that_stops_calling_its_blocks_is_refused() -> None:
    class Stopping(Foreign):
        def forward(self, ids):
            return super().forward(ids) if not self.training else self.items(ids)

    backbone = wrap(Stopping(), embedding="items", blocks="blocks", finish="norm", max_length=MAX_LENGTH)
    with pytest.raises(PluginError, match="the model called 0 of its 2 blocks"):
        backbone.train()(random_sequence(4, 8, NUM_ITEMS))


def test_a_last_norm_that_was_not_named_is_missed_even_while_it_does_next_to_nothing() -> None:
    class Normed(Foreign):
        def __init__(self):
            super().__init__()
            self.first = nn.LayerNorm(DIM)

        def forward(self, ids):
            return self.norm(self.first(super().forward(ids)))  # twice the same, as long as it is new

    assert "neither among blocks= nor in finish=" in refusal(Normed())


def test_what_happens_between_blocks_is_missed() -> None:
    class Scaling(Foreign):
        def step(self, block, hidden, ids):
            return super().step(block, hidden, ids) * 0.9

    assert "something that it computes between or after its blocks" in refusal(Scaling())


def test_a_context_that_comes_from_hidden_states_is_noticed() -> None:
    class Looking(Foreign):
        class block(Attention):
            def forward(self, hidden, mask, scale):
                return super().forward(hidden * scale, mask)

        def step(self, block, hidden, ids):
            mask = self.mask(ids).repeat_interleave(HEADS, dim=0)
            return block(hidden, mask, hidden.abs().mean(dim=-1, keepdim=True))

    assert "the wrapped model's output differs from the original's" in refusal(Looking())


def test_a_block_that_changes_the_shape_is_named() -> None:
    class Widening(Attention):
        def forward(self, hidden, mask=None):
            return torch.cat([hidden, hidden], dim=-1)

    class Wide(Foreign):
        def __init__(self):
            super().__init__()
            self.blocks[1] = Widening()
            self.norm = nn.LayerNorm(2 * DIM)

    assert "block 1 returned (3, 8, 16) for an input of (3, 8, 8); a residual block must keep its shape" in refusal(
        Wide()
    )


@pytest.mark.parametrize(("returned", "kind"), [({"hidden": 1}, "dict"), ([], "list"), ((None, 1), "NoneType")])
def test_a_block_that_returns_something_else_is_named(returned: object, kind: str) -> None:
    class Odd(Foreign):
        class block(Attention):
            def forward(self, hidden, mask=None):
                return returned

        def step(self, block, hidden, ids):
            super().step(block, hidden, ids)
            return hidden

    assert f"block 0 returned a {kind}; hidden states come alone or first in a tuple" in refusal(Odd())


def test_a_block_that_is_not_causal_is_named() -> None:
    class Peeking(Foreign):
        def step(self, block, hidden, ids):
            mask = None if block is self.blocks[1] else self.mask(ids).repeat_interleave(HEADS, dim=0)
            return block(hidden, mask)

    said = refusal(Peeking(), ignores_padding=False)
    assert "block 1 is not causal: changing the last 2 items changed earlier positions by up to" in said
    assert said.endswith("give it a causal mask, or say is_causal=False")


def test_what_stands_around_the_blocks_must_be_causal_too() -> None:
    class Before(Foreign):
        def place(self, ids):
            return super().place(ids).flip(1)

        def forward(self, ids):
            hidden = self.items(ids) + self.items(ids).mean(dim=1, keepdim=True)
            for block in self.blocks:
                hidden = self.step(block, hidden, ids)
            return self.norm(hidden)

    assert "what comes before the blocks is not causal" in refusal(Before())

    class After(Foreign):
        def forward(self, ids):
            return super().forward(ids).cumsum(1).flip(1)

    said = refusal(After(), finish=lambda model, hidden: model.norm(hidden).cumsum(1).flip(1), ignores_padding=False)
    assert "what comes after the blocks is not causal" in said


def test_a_model_that_sees_later_items_can_say_so() -> None:
    assert "block 0 is not causal" in refusal(Bidirectional())
    how = {"embedding": "items", "blocks": "blocks", "finish": "norm", "max_length": MAX_LENGTH}
    assert wrap(Bidirectional(), is_causal=False, **how).mask_vector.shape == (DIM,)


class CountedFromTheLeft(Foreign):
    def place(self, ids):
        return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)


def test_padding_that_matters_is_refused_and_can_be_accepted() -> None:
    module, how = CountedFromTheLeft(), {"embedding": "items", "blocks": "blocks", "finish": "norm"}
    said = refusal(module)
    assert "padding changes a user's vector by up to" in said
    assert "try padding='right'" in said
    assert isinstance(wrap(module, padding="right", max_length=MAX_LENGTH, **how), WrappedBackbone)
    assert isinstance(wrap(module, ignores_padding=False, max_length=MAX_LENGTH, **how), WrappedBackbone)


def test_padding_without_anything_to_look_at_is_not_finite() -> None:
    class Blind(Foreign):
        def mask(self, ids):
            length = ids.shape[1]
            return torch.ones(length, length, dtype=torch.bool).triu(1) | (ids == 0).unsqueeze(1)

    said = refusal(Blind())
    assert "hidden states are not finite where there is padding" in said
    assert "padding='right'" in said


def test_users_must_be_the_first_dimension() -> None:
    class LengthFirst(Foreign):
        def forward(self, ids):
            return super().forward(ids).transpose(0, 1)

        def step(self, block, hidden, ids):
            return block(hidden.transpose(0, 1)).transpose(0, 1)

    said = refusal(LengthFirst())
    assert "block 0 is given 0: (8, 3, 8), none of them hidden states (users, length, dim) = (3, 8, 8)" in said
    assert "batch_first=True?" in said


def test_users_must_not_see_one_another() -> None:
    class Social(Foreign):
        class block(Attention):
            def forward(self, hidden, mask):
                return super().forward(hidden, mask) + hidden.mean(dim=0, keepdim=True)

    assert "the users of a batch change one another's vectors by up to" in refusal(Social())


def test_an_embedding_of_another_width_is_refused() -> None:
    class Projected(Foreign):
        def __init__(self):
            super().__init__()
            self.items, self.wide = nn.Embedding(NUM_ITEMS + 1, 4), nn.Linear(4, DIM)

        def forward(self, ids):
            hidden = self.wide(self.items(ids))
            for block in self.blocks:
                hidden = self.step(block, hidden, ids)
            return self.norm(hidden)

    assert "and the embedding as wide as the blocks" in refusal(Projected())


class Scoring(Foreign):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(DIM, NUM_ITEMS)

    def forward(self, ids):
        return self.head(super().forward(ids))


def test_a_model_that_returns_scores_must_say_how() -> None:
    said = refusal(Scoring())
    assert "the model returns (3, 8, 20), not hidden states (3, 8, 8)" in said
    assert "output=lambda model, hidden, ids: model.head(hidden)" in said
    said = refusal(Scoring(), output=lambda model, hidden, ids: hidden)
    assert "output= returned (3, 8, 8), but the model returns (3, 8, 20)" in said
    said = refusal(Scoring(), output=lambda model, hidden, ids: model.head(-hidden))
    assert "the wrapped model's output differs from the original's" in said
    how = {"embedding": "items", "blocks": "blocks", "finish": "norm", "max_length": MAX_LENGTH}
    backbone = wrap(Scoring(), output=lambda model, hidden, ids: model.head(hidden), **how)
    assert not [name for name in backbone.state_dict() if "head" in name]


def test_finish_must_return_hidden_states() -> None:
    said = refusal(Foreign(), finish=lambda model, hidden: hidden[:, -1])
    assert "finish= returned (3, 8) for hidden states (3, 8, 8)" in said
    assert "finish= returned tuple for" in refusal(Foreign(), finish=lambda model, hidden: (hidden, None))


def test_a_model_that_takes_something_else_must_say_so() -> None:
    class Asking(Foreign):
        def forward(self, ids, lengths):
            return super().forward(ids) + 0 * lengths.sum()

    said = refusal(Asking())
    assert said.startswith("the model can't be called with item ids (3, 8): TypeError: ")
    assert said.endswith("tell what it is called with by inputs=")
    how = {"embedding": "items", "blocks": "blocks", "finish": "norm", "max_length": MAX_LENGTH}
    wrap(Asking(), inputs=lambda ids: {"ids": ids, "lengths": (ids != 0).sum(dim=1)}, **how)


def test_a_model_that_needs_what_its_blocks_return_beside_is_refused() -> None:
    class Threading(Foreign):
        class block(Attention):
            def forward(self, hidden, mask):
                return super().forward(hidden, mask), hidden.abs()

        def step(self, block, hidden, ids):
            hidden, beside = super().step(block, hidden, ids)
            return hidden + beside.mean()

    said = refusal(Threading())
    assert said.startswith("the model fails when its blocks are called from outside: AttributeError")


def test_a_cache_that_blocks_fill_is_noticed() -> None:
    class Remembering(Foreign):
        class block(Attention):
            def forward(self, hidden, cache):
                cache.append(hidden)
                return hidden + self.linear(cache[0])  # what came first, as keys that were cached do

        def step(self, block, hidden, ids):
            return block(hidden, [])

    assert "block 0 remembers how it was called before" in refusal(Remembering())
    assert "use_cache=False" in refusal(Remembering())


def test_a_length_that_the_model_can_not_take_is_refused() -> None:
    said = refusal(CountedFromTheLeft(), padding="right", max_length=MAX_LENGTH + 2)
    assert said.startswith("the model takes no sequence of max_length=18 items: IndexError")


def test_every_sentence_is_one_line() -> None:
    assert re.fullmatch(r"[^\n]+", refusal(Foreign(), blocks="block"))

import pytest
import torch
import torch.nn.functional as F
from backbone_trials import LENGTH, NUM_ITEMS, loss_after_learning_cycles, sites_without_effect
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune_kit.errors import OptionError
from finetune_kit.options import resolve
from finetune_kit.testing import BackboneContract, random_sequence, randomise, sequences
from ftkit_backbones.attention import AttentionOptions, visible_positions
from ftkit_backbones.sasrec import SasRec


class TestSasRec(BackboneContract):
    backbone = "sasrec"
    options = {"dim": 8, "num_blocks": 2}  # noqa: RUF012  (as in a plugin author's test)


def small(**options: object) -> SasRec:
    options = {"dim": 8, "num_blocks": 2, **options}
    return randomise(SasRec(NUM_ITEMS, LENGTH, resolve(AttentionOptions, options, "backbone"))).eval()


def slow_last_state(backbone: SasRec, items: list[int]) -> Tensor:
    """The last state of a user without padding, one position, head and item to look at at a time."""
    dim, num_heads = backbone.dim, backbone.options.num_heads
    positions = reversed(range(len(items)))
    hidden = [
        backbone.item_embedding.weight[item] * dim**0.5 + backbone.position_embedding.weight[position]
        for item, position in zip(items, positions, strict=True)
    ]
    for block in backbone.blocks:
        normal = [block.norm1(state) for state in hidden]
        for t in range(len(items)):
            heads = []
            for own in range(num_heads):
                part = slice(own * dim // num_heads, (own + 1) * dim // num_heads)
                query = block.attention.query(normal[t])[part]
                scores = [query @ block.attention.key(normal[s])[part] for s in range(t + 1)]
                weights = (torch.stack(scores) / (dim / num_heads) ** 0.5).softmax(0)
                heads.append(sum(weights[s] * block.attention.value(normal[s])[part] for s in range(t + 1)))
            hidden[t] = hidden[t] + block.attention.output(torch.cat(heads))
            first, _, last = block.feed_forward
            hidden[t] = hidden[t] + last(first(block.norm2(hidden[t])).relu())
    return backbone.norm(hidden[-1])


@settings(max_examples=25, deadline=None)
@given(sequence=sequences(NUM_ITEMS, max_length=LENGTH, min_items=1), num_heads=st.sampled_from([1, 2, 4]))
def test_a_users_vector_is_what_a_plain_reading_of_the_equations_gives(sequence: Tensor, num_heads: int) -> None:
    backbone = small(num_heads=num_heads)
    expected = torch.stack([slow_last_state(backbone, [item for item in user if item]) for user in sequence.tolist()])
    torch.testing.assert_close(backbone.user_vectors(sequence), expected, atol=1e-5, rtol=1e-4)


def test_attention_is_that_of_torch() -> None:
    backbone, sequence = small(), random_sequence(4, LENGTH, NUM_ITEMS)
    own, reference = backbone.blocks[0].attention, torch.nn.MultiheadAttention(8, 2, batch_first=True)
    parts = (own.query, own.key, own.value)
    reference.in_proj_weight.data = torch.cat([part.weight for part in parts])
    reference.in_proj_bias.data = torch.cat([part.bias for part in parts])
    reference.out_proj.load_state_dict(own.output.state_dict())
    hidden, visible = torch.randn(4, LENGTH, 8), visible_positions(sequence, is_causal=True)
    blocked = ~visible.expand(-1, 2, -1, -1).flatten(0, 1)  # (users · heads, length, length)
    expected, _ = reference(hidden, hidden, hidden, attn_mask=blocked)
    torch.testing.assert_close(own(hidden, visible), expected, atol=1e-6, rtol=1e-5)


def test_attention_by_hand() -> None:
    attention = SasRec(3, 2, AttentionOptions(dim=1, num_blocks=1, num_heads=1)).blocks[0].attention.eval()
    for part, weight in ((attention.query, 1.0), (attention.key, 1.0), (attention.value, 3.0), (attention.output, 0.5)):
        torch.nn.init.constant_(part.weight, weight)
        torch.nn.init.zeros_(part.bias)
    hidden, visible = torch.tensor([[[0.0], [1.0]]]), visible_positions(torch.tensor([[1, 2]]), is_causal=True)
    # position 1: scores 1 · 0 and 1 · 1, weights 1/(1 + e) = 0.268941 and 0.731059; 0.5 · 3 · 0.731059 = 1.096588
    assert attention(hidden, visible).flatten().tolist() == pytest.approx([0.0, 1.096588], abs=1e-6)


def test_who_may_look_at_whom() -> None:
    causal = visible_positions(torch.tensor([[0, 4, 5]]), is_causal=True)
    assert causal.int().tolist() == [[[[1, 0, 0], [0, 1, 0], [0, 1, 1]]]]
    both_ways = visible_positions(torch.tensor([[0, 4, 5]]), is_causal=False)
    assert both_ways.int().tolist() == [[[[1, 1, 1], [0, 1, 1], [0, 1, 1]]]]


def test_padding_alone_gives_numbers_and_gradients_that_are_finite() -> None:
    backbone = small().train()
    sequence = torch.tensor([[0, 0, 0], [0, 0, 3]])
    backbone(sequence).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in backbone.parameters())
    hidden = backbone.eval()(sequence)
    assert hidden.isfinite().all()
    longer = backbone(F.pad(sequence, (2, 0)))
    torch.testing.assert_close(longer[:, -1], hidden[:, -1])


def test_padding_is_no_item_however_the_embedding_of_0_looks() -> None:
    backbone, sequence = small(), torch.tensor([[0, 0, 3, 4, 5]])
    before = backbone(sequence)
    backbone.item_embedding.weight.data[0] = 7.0
    assert torch.equal(backbone(sequence), before)


def test_the_order_of_items_matters_by_their_positions_alone() -> None:
    backbone, one, other = small(), torch.tensor([[1, 2, 3]]), torch.tensor([[2, 1, 3]])
    assert not torch.allclose(backbone.user_vectors(one), backbone.user_vectors(other), atol=1e-3)
    torch.nn.init.zeros_(backbone.position_embedding.weight)
    backbone.blocks = backbone.blocks[:1]  # with two, the second sees who came before whom by the causal mask
    torch.testing.assert_close(backbone.user_vectors(one), backbone.user_vectors(other), atol=1e-5, rtol=1e-5)


def test_the_context_of_some_positions_or_users_is_that_of_their_sequences() -> None:
    backbone, sequence = small(), random_sequence(4, LENGTH, NUM_ITEMS)
    context, users = backbone.prepare(sequence), torch.tensor([2, 0])
    for part, expected in (
        (context.trailing(4), backbone.prepare(sequence[:, -4:])),
        (context.rows(users), backbone.prepare(sequence[users])),
    ):
        assert torch.equal(part.mask, expected.mask)
        assert torch.equal(part.visible, expected.visible)


def test_what_is_put_at_a_site_has_an_effect_in_evaluation() -> None:
    assert sites_without_effect(small(), random_sequence(4, LENGTH, NUM_ITEMS)) == []


def test_dropout_acts_in_training_alone() -> None:
    backbone, sequence = small(dropout=0.5), random_sequence(4, LENGTH, NUM_ITEMS)
    assert torch.equal(backbone(sequence), backbone(sequence))
    backbone.train()
    assert not torch.equal(backbone(sequence), backbone(sequence))
    quiet = small(dropout=0)
    torch.testing.assert_close(quiet.train()(sequence), backbone.eval()(sequence))


def test_it_learns_to_look_three_items_back() -> None:
    options = AttentionOptions(dim=16, num_blocks=2, dropout=0)
    loss = loss_after_learning_cycles(lambda: SasRec(NUM_ITEMS, LENGTH, options))
    assert loss < 1.1  # guessing costs log 12 = 2.48; the first two can't be known


@pytest.mark.parametrize("options", [{"num_heads": 3}, {"dropout": 1}, {"num_blocks": 0}, {"dropuot": 0.1}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        small(**options)

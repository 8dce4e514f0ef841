import pytest
import torch
import torch.nn.functional as F
from backbone_trials import LENGTH, NUM_ITEMS, loss_after_learning_cycles, sites_without_effect
from hypothesis import given, settings
from torch import Tensor, nn

from finetune_kit.errors import OptionError
from finetune_kit.options import resolve
from finetune_kit.testing import BackboneContract, random_sequence, random_windows, randomise, sequences
from ftkit_backbones import attention
from ftkit_backbones.attention import AttentionOptions
from ftkit_backbones.bert4rec import Bert4Rec

HIDDEN = NUM_ITEMS + 1


class TestBert4Rec(BackboneContract):
    backbone = "bert4rec"
    options = {"dim": 8, "num_blocks": 2}  # noqa: RUF012  (as in a plugin author's test)


def small(**options: object) -> Bert4Rec:
    options = {"dim": 8, "num_blocks": 2, **options}
    return randomise(Bert4Rec(NUM_ITEMS, LENGTH, resolve(AttentionOptions, options, "backbone"))).eval()


def torchs_layer(backbone: Bert4Rec, k: int) -> nn.TransformerEncoderLayer:
    """Return a block as PyTorch's own encoder layer, with the block's weights."""
    block = backbone.blocks[k]
    layer = nn.TransformerEncoderLayer(8, 2, 32, activation="gelu", layer_norm_eps=1e-12, batch_first=True)
    parts = (block.attention.query, block.attention.key, block.attention.value)
    state = {
        "self_attn.in_proj_weight": torch.cat([part.weight for part in parts]),
        "self_attn.in_proj_bias": torch.cat([part.bias for part in parts]),
    }
    for name, part in (
        ("self_attn.out_proj", block.attention.output),
        ("linear1", block.feed_forward[0]),
        ("linear2", block.feed_forward[2]),
        ("norm1", block.norm1),
        ("norm2", block.norm2),
    ):
        state |= {f"{name}.{key}": tensor for key, tensor in part.state_dict().items()}
    layer.load_state_dict(state)
    return layer.eval()


@settings(max_examples=30, deadline=None)
@given(sequence=sequences(HIDDEN, max_length=LENGTH, min_items=1))
def test_states_are_those_of_torchs_encoder_on_a_users_items_alone(sequence: Tensor) -> None:
    backbone = small()
    layers = [torchs_layer(backbone, k) for k in range(2)]
    table = torch.cat([backbone.item_embedding.weight, backbone.mask_vector.unsqueeze(0)])
    found = backbone(sequence)
    for user, own in enumerate(sequence):
        items = own[own != 0]
        hidden = (table[items] + backbone.position_embedding.weight[: len(items)].flip(0)).unsqueeze(0)
        for layer in layers:
            hidden = layer(hidden)
        torch.testing.assert_close(found[user, own != 0], hidden[0], atol=1e-5, rtol=1e-4)


def test_every_position_sees_every_item_and_no_padding() -> None:
    backbone, sequence = small(), torch.tensor([[0, 3, 4, 5]])
    hidden, context = backbone.start(sequence)
    hidden = hidden.detach().requires_grad_()
    for position in (1, 3):
        output = backbone.blocks[0](hidden, context)[0, position].square().sum()
        (gradient,) = torch.autograd.grad(output, hidden)
        assert gradient[0].any(dim=-1).tolist() == [False, True, True, True]


def test_hidden_items_are_all_alike_and_learned_from() -> None:
    backbone = small()
    windows = random_windows(5, LENGTH, NUM_ITEMS)
    task = backbone.source_task(windows, torch.Generator().manual_seed(0))
    assert (task.inputs[task.labels != 0] == HIDDEN).all()
    embedded = backbone.embed(torch.full((1, 3), HIDDEN)) - backbone.positions(torch.ones(1, 3))
    torch.testing.assert_close(embedded, backbone.mask_vector.expand(1, 3, 8))
    backbone(task.inputs)[task.labels != 0].square().sum().backward()
    assert backbone.mask_vector.grad.any()


def test_padding_alone_gives_numbers_and_gradients_that_are_finite() -> None:
    backbone = small().train()
    sequence = torch.tensor([[0, 0, 0], [0, 0, 3]])
    backbone(sequence).square().sum().backward()
    assert all(p.grad.isfinite().all() for name, p in backbone.named_parameters())
    hidden = backbone.eval()(sequence)
    assert hidden.isfinite().all()
    torch.testing.assert_close(backbone(F.pad(sequence, (2, 0)))[:, -1], hidden[:, -1])


def test_what_is_put_at_a_site_has_an_effect_in_evaluation() -> None:
    assert sites_without_effect(small(), random_sequence(4, LENGTH, NUM_ITEMS)) == []


def test_weights_start_small() -> None:
    backbone = Bert4Rec(NUM_ITEMS, LENGTH, AttentionOptions(dim=32, num_blocks=1))
    linear = [part for part in backbone.blocks.modules() if isinstance(part, nn.Linear)]
    assert len(linear) == 6
    for part in linear:
        assert part.weight.abs().max() <= 0.02
        assert part.weight.std().item() == pytest.approx(0.0108, rel=0.15)  # of N(0, 0.02²) within one deviation
        assert not part.bias.any()


def test_it_learns_what_stands_at_a_hidden_place_from_both_sides() -> None:
    options = AttentionOptions(dim=64, num_blocks=1, num_heads=4, dropout=0)
    loss = loss_after_learning_cycles(lambda: Bert4Rec(NUM_ITEMS, LENGTH, options), learning_rate=5e-3)
    assert loss < 0.3  # guessing costs log 12 = 2.48


@pytest.mark.parametrize("options", [{"num_heads": 3}, {"append_mask": True}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        small(**options)


def test_the_mean_of_positions_takes_no_second_table_of_who_may_look_at_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    tables, visible_positions = [], attention.visible_positions
    monkeypatch.setattr(
        attention, "visible_positions", lambda *args, **how: tables.append(1) or visible_positions(*args, **how)
    )
    Bert4Rec(NUM_ITEMS, LENGTH).user_vectors(random_sequence(3, LENGTH, NUM_ITEMS), pooling="mean")
    assert len(tables) == 1

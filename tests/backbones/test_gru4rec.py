import math

import pytest
import torch
import torch.nn.functional as F
from backbone_trials import LENGTH, NUM_ITEMS, loss_after_learning_cycles, sites_without_effect
from hypothesis import given, settings
from torch import Tensor, nn

from finetune_kit.errors import OptionError
from finetune_kit.options import resolve
from finetune_kit.testing import BackboneContract, random_sequence, randomise, sequences
from ftkit_backbones.gru4rec import Gru4Rec, Gru4RecOptions, Recurrence


class TestGru4Rec(BackboneContract):
    backbone = "gru4rec"
    options = {"dim": 8, "num_blocks": 2, "dropout": 0.2}  # noqa: RUF012  (as in a plugin author's test)


def small(**options: object) -> Gru4Rec:
    options = {"dim": 8, "num_blocks": 2, **options}
    return randomise(Gru4Rec(NUM_ITEMS, LENGTH, resolve(Gru4RecOptions, options, "backbone"))).eval()


@settings(max_examples=40, deadline=None)
@given(sequence=sequences(NUM_ITEMS, max_length=LENGTH, min_items=1))
def test_states_are_those_of_torchs_gru_on_a_users_items_alone(sequence: Tensor) -> None:
    backbone = small()
    found = backbone(sequence)
    for user, own in enumerate(sequence):
        hidden = backbone.item_embedding(own[own != 0])  # (items, dim): no padding at all
        for block in backbone.blocks:
            gru = nn.GRU(8, 8)
            gru.load_state_dict(block.recurrence.state_dict())
            hidden = hidden + gru(block.norm(hidden))[0]
        torch.testing.assert_close(found[user, own != 0], hidden, atol=1e-5, rtol=1e-4)


def test_the_equations_by_hand() -> None:
    recurrence = Recurrence(1)
    for name, values in (
        ("weight_ih_l0", [0.0, 0.0, 1.0]),  # W_r, torch's 1 − z, W
        ("weight_hh_l0", [0.0, 0.0, 2.0]),
        ("bias_ih_l0", [0.0, 0.0, 0.0]),
        ("bias_hh_l0", [0.0, 0.0, 0.0]),
    ):
        getattr(recurrence, name).data = torch.tensor(values).reshape(getattr(recurrence, name).shape)
    # r = z = σ(0) = ½; h_1 = ½ tanh(1); h_2 = ½ h_1 + ½ tanh(1 + ½ · 2 h_1)
    first = 0.5 * math.tanh(1)
    second = 0.5 * first + 0.5 * math.tanh(1 + first)
    assert recurrence(torch.ones(1, 2, 1)).flatten().tolist() == pytest.approx([first, second], abs=1e-6)


def test_a_frozen_layer_on_cuda_would_keep_all_flags_of_cudnn_but_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn, seen = torch.backends.cudnn, []
    names = ("enabled", "deterministic", "benchmark", "allow_tf32")
    forward = nn.GRU.forward
    monkeypatch.setattr(
        nn.GRU, "forward", lambda *args: seen.append([getattr(cudnn, name) for name in names]) or forward(*args)
    )
    before = [getattr(cudnn, name) for name in names]
    for set_to in (True, False):
        with cudnn.flags(enabled=True, deterministic=set_to, benchmark=set_to, allow_tf32=set_to):
            recurrence = Recurrence(2).eval()
            recurrence(torch.ones(1, 2, 2))
            recurrence.train()(torch.ones(1, 2, 2))
        assert seen[-2:] == [[False, *3 * [set_to]], [True, *3 * [set_to]]]
    assert [getattr(cudnn, name) for name in names] == before


def test_padding_keeps_zeros_and_has_finite_gradients() -> None:
    backbone = small().train()
    sequence = torch.tensor([[0, 0, 0], [0, 0, 3]])
    backbone(sequence).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in backbone.parameters())
    assert not backbone.item_embedding.weight.grad[0].any()
    hidden = backbone.eval()(sequence)
    assert not hidden[sequence == 0].any()
    assert torch.equal(backbone(F.pad(sequence, (2, 0)))[:, -1], hidden[:, -1])


def test_what_is_put_at_a_site_has_an_effect_in_evaluation() -> None:
    assert sites_without_effect(small(), random_sequence(4, LENGTH, NUM_ITEMS)) == []


def test_dropout_acts_in_training_alone() -> None:
    backbone, sequence = small(dropout=0.5), random_sequence(4, LENGTH, NUM_ITEMS)
    assert torch.equal(backbone(sequence), backbone(sequence))
    backbone.train()
    assert not torch.equal(backbone(sequence), backbone(sequence))


def test_it_learns_to_remember_three_items() -> None:
    options = Gru4RecOptions(dim=32, num_blocks=1)
    loss = loss_after_learning_cycles(lambda: Gru4Rec(NUM_ITEMS, LENGTH, options))
    assert loss < 1.1  # guessing costs log 12 = 2.48; the first two can't be known


@pytest.mark.parametrize("options", [{"dropout": 1}, {"num_blocks": 0}, {"num_heads": 2}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        small(**options)

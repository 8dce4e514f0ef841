"""What blocks compute while they are traced is what they compute otherwise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_kit.backbone import Context
from finetune_kit.convolution import norm_relu
from finetune_kit.data.batch import Batch
from finetune_kit.exporting.served import best_of_fixed_shape
from finetune_kit.layers import CausalConv1d
from finetune_kit.options import resolve
from finetune_kit.plugins import installed
from finetune_kit.recommendation.answers import best
from finetune_kit.task import ItemTask
from finetune_kit.testing import random_sequence, randomise
from ftkit_uaf.mixture import mixture, selected_mixture
from matrix import BACKBONES, usual_backbone

NUM_USERS, LENGTH, NUM_ITEMS = 9, 8, 20


@torch.no_grad()
def in_both_forms(compute):
    """Return what a function computes while blocks take themselves for traced, and what otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_exporting", lambda: True)
        traced = compute()
    return traced, compute()


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(1, 4), st.integers(1, 4), st.integers(1, 9))
def test_a_convolution_is_the_same_at_all_positions_and_at_single_ones(data, dilation, kernel_size, length):
    torch.manual_seed(0)
    layer, input = CausalConv1d(3, dilation, kernel_size), torch.randn(2, length, 3)
    torch.testing.assert_close(*in_both_forms(lambda: layer(input)))
    wanted = tuple(sorted(data.draw(st.sets(st.integers(0, length - 1), min_size=1)), reverse=True))
    stands = layer.inputs_for(wanted, length)
    given_ = input[:, [-1 - step for step in stands]]
    plain, whole = in_both_forms(lambda: layer.at(given_, stands, wanted))
    torch.testing.assert_close(plain, whole)
    torch.testing.assert_close(plain, layer(input).detach()[:, [-1 - step for step in wanted]])


@pytest.mark.parametrize("is_masked", [True, False])
def test_a_norm_and_relu_is_the_same(is_masked):
    torch.manual_seed(0)
    input, weight, bias = torch.randn(4, 5, 3), torch.randn(3), torch.randn(3)
    mask = (torch.rand(4, 5, 1) < 0.5).float() if is_masked else None
    torch.testing.assert_close(*in_both_forms(lambda: norm_relu(input, weight, bias, 1e-8, mask)))


SHARES = st.lists(st.sampled_from([(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.2, 0.8, 0.0)]), min_size=1)


@settings(deadline=None)
@given(SHARES)
def test_selecting_among_branches_is_computing_those_that_count(shares):
    torch.manual_seed(0)
    hidden, z = torch.randn(len(shares), 2, 3), torch.tensor(shares)
    branches = [lambda x, _: x + 1, lambda x, _: x.tanh(), lambda x, _: 2 * x]
    with torch.no_grad():
        selected, grouped = (form(z, branches, hidden, Context(None)) for form in (selected_mixture, mixture))
    torch.testing.assert_close(selected, grouped, rtol=0, atol=0 if 0.2 not in z else 1e-6)


def test_a_branch_that_is_not_taken_may_be_no_number():
    branches = [lambda x, _: x, lambda x, _: x / 0]
    found = selected_mixture(torch.tensor([[1.0, 0.0]]), branches, torch.ones(1, 2, 3), Context(None))
    assert torch.equal(found, torch.ones(1, 2, 3))


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=4), st.integers(1, 5))
def test_the_best_are_the_same_ones_and_of_equal_ones_the_first(rows, num):
    scores = torch.tensor(rows, dtype=torch.float32)
    for one, other in zip(best_of_fixed_shape(scores, num), best(scores, num), strict=True):
        assert torch.equal(one, other)


def strategy_on(name: str, backbone: str, **options):
    component = installed().component("strategy", name)
    strategy = component.load()
    torch.manual_seed(0)
    made = next(one for one in BACKBONES if one.name == backbone)(NUM_ITEMS, LENGTH)
    filled = resolve(strategy.Options, {**component.preset, **options}, "strategy")
    return randomise(strategy(made, ItemTask(8, 6), filled)).eval()


def users_with_few_and_many_items() -> Batch:
    sequence = random_sequence(NUM_USERS, LENGTH, NUM_ITEMS)
    sequence[0] = 0
    none = torch.empty(0, dtype=torch.int64)
    return Batch(torch.arange(1, NUM_USERS + 1), sequence, none, none, none.view(0, 0))


def assert_same_when_traced(strategy) -> None:
    batch = users_with_few_and_many_items()
    traced, whole = in_both_forms(lambda: strategy.encode(batch))
    torch.testing.assert_close(traced.vectors, whole.vectors)
    for one, other in ((traced.gates, whole.gates), (traced.skipped, whole.skipped)):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("name", installed().components("strategy"))
def test_every_strategy_encodes_users_as_it_does_otherwise(name):
    assert_same_when_traced(strategy_on(name, usual_backbone(name)))


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda backbone: backbone.name)
def test_a_policy_chooses_among_the_blocks_of_any_backbone(backbone):
    strategy = strategy_on("uaf-hard", backbone.name)
    with torch.no_grad():
        strategy.policy.output.bias.zero_()
        assert 0 < strategy.encode(users_with_few_and_many_items()).gates.mean() < 1
    assert_same_when_traced(strategy)


@pytest.mark.parametrize("evaluation", ["greedy", "sample", "expected"])
@pytest.mark.parametrize("policy", ["conv", "gru", "global"])
def test_every_policy_and_use_of_it_is_the_same(policy, evaluation):
    assert_same_when_traced(strategy_on("uaf-hard", "nextitnet", policy=policy, evaluation=evaluation))


def test_of_two_equal_actions_the_frozen_one_is_taken_in_both_forms():
    strategy = strategy_on("uaf-hard", "nextitnet", policy="global")
    with torch.no_grad():
        strategy.policy.logits.zero_()
    for encoded in in_both_forms(lambda: strategy.encode(users_with_few_and_many_items())):
        assert not encoded.gates.any()

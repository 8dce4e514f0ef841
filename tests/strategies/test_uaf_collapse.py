import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune_kit.options import resolve
from finetune_kit.plugins import installed
from finetune_kit.strategy import Strategy
from finetune_kit.task import ItemTask
from finetune_kit.testing import TinyBackbone, random_batch, randomise
from ftkit_uaf.collapse import LearnedPolicyOptions, collapse_loss, entropy, information, usage

LEARNED = ["uaf-hard", "uaf-soft", "uaf-rl", "spottune", "skip"]


def build(name: str, **options: object) -> Strategy:
    torch.manual_seed(0)
    backbone = randomise(TinyBackbone(20, 12))
    strategy = installed().component("strategy", name).load()
    return strategy(backbone, ItemTask(backbone.dim, 9), resolve(strategy.Options, options, "strategy"))


def tables(elements: st.SearchStrategy[float]) -> st.SearchStrategy[list[list[float]]]:
    """Draw ``(users, blocks)`` as lists."""
    return st.integers(1, 4).flatmap(
        lambda num_blocks: st.lists(
            st.lists(elements, min_size=num_blocks, max_size=num_blocks), min_size=1, max_size=5
        )
    )


def test_the_three_numbers_by_hand() -> None:
    # Two users, three blocks: they differ and are sure; they agree and are sure; both are undecided.
    p = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 0.5]])
    assert usage(p).item() == pytest.approx((0.5 + 0 + 0.5) / 3)
    assert entropy(p).item() == pytest.approx((0 + 0 + math.log(2)) / 3, abs=1e-5)
    assert information(p).item() == pytest.approx((math.log(2) + 0 + 0) / 3, abs=1e-5)


def slow_binary_entropy(p: float) -> float:
    return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)


@given(tables(st.floats(0, 1)))
def test_they_are_what_slow_loops_compute(table: list[list[float]]) -> None:
    users, blocks = range(len(table)), range(len(table[0]))
    cells = len(users) * len(blocks)
    slow_usage = sum(table[u][k] for u in users for k in blocks) / cells
    slow_entropy = sum(slow_binary_entropy(table[u][k]) for u in users for k in blocks) / cells
    slow_information = 0.0
    for k in blocks:
        of_everybody = slow_binary_entropy(sum(table[u][k] for u in users) / len(users))
        of_each = sum(slow_binary_entropy(table[u][k]) for u in users) / len(users)
        slow_information += (of_everybody - of_each) / len(blocks)
    p = torch.tensor(table)
    assert usage(p).item() == pytest.approx(slow_usage, abs=1e-5)
    assert entropy(p).item() == pytest.approx(slow_entropy, abs=1e-5)
    assert information(p).item() == pytest.approx(slow_information, abs=1e-5)


@given(tables(st.floats(0, 1)))
def test_the_information_of_a_binary_choice_is_at_most_ln_2_and_none_without_differences(
    table: list[list[float]],
) -> None:
    assert -1e-5 <= information(torch.tensor(table)).item() <= math.log(2) + 1e-5
    assert information(torch.tensor([table[0]] * 3)).item() == pytest.approx(0, abs=1e-5)


@given(tables(st.sampled_from([0.0, 1e-30, 0.5, 1 - 2**-24, 1.0])))
def test_a_policy_that_is_sure_has_finite_gradients(table: list[list[float]]) -> None:
    p = torch.tensor(table, requires_grad=True)
    (entropy(p) + information(p)).backward()
    assert p.grad is not None
    assert p.grad.isfinite().all()


def test_in_16_bits_they_are_computed_in_32() -> None:
    p = torch.rand(64, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert entropy(p).item() == entropy(p.float()).item()
    assert information(p).item() == information(p.float()).item()


@pytest.mark.parametrize("name", LEARNED)
def test_each_weight_moves_the_loss_by_its_number(name: str) -> None:
    batch = random_batch()
    plain = build(name).train()
    encoded = plain.encode(batch)
    assert encoded.gates is not None
    probabilities = encoded.gates if encoded.probabilities is None else encoded.probabilities
    used = probabilities if name == "uaf-rl" else encoded.gates  # a reinforced policy's actions have no gradient
    weighted = build(name, usage_weight=0.1, entropy_weight=0.2, information_weight=0.3).train()
    expected = 0.1 * usage(used) - 0.2 * entropy(probabilities) - 0.3 * information(probabilities)
    found = weighted.loss(batch, encoded) - plain.loss(batch, encoded)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert found.abs() > 1e-3


@pytest.mark.parametrize("name", LEARNED)
def test_by_default_there_is_nothing_against_collapse(name: str) -> None:
    strategy = build(name)
    p = torch.rand(3, 2, requires_grad=True)
    assert collapse_loss(strategy.options, p, p) == 0.0


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize(
    ("option", "weight", "measured"),
    [("usage_weight", 5.0, usage), ("entropy_weight", -5.0, entropy), ("information_weight", -5.0, information)],
)
def test_each_weight_moves_the_policy_its_way(name: str, option: str, weight: float, measured: object) -> None:
    strategy, batch = build(name, **{option: abs(weight)}), random_batch(12)
    policy = [parameter for key, parameter in strategy.named_parameters() if key.startswith("policy.")]
    optimizer = torch.optim.Adam(policy, 0.01)
    values = []
    for _ in range(15):
        encoded = strategy.train().encode(batch)
        p = encoded.gates if encoded.probabilities is None else encoded.probabilities
        values.append(measured(p).item())
        optimizer.zero_grad()
        strategy.loss(batch, encoded).backward()
        optimizer.step()
    assert (values[-1] - values[0]) * math.copysign(1, weight) < -0.01 * abs(values[0])


def test_the_options_are_the_same_in_all_strategies_that_learn_a_policy() -> None:
    for name in LEARNED:
        options = installed().component("strategy", name).load().Options
        assert issubclass(options, LearnedPolicyOptions)
    assert not issubclass(installed().component("strategy", "uaf-random").load().Options, LearnedPolicyOptions)

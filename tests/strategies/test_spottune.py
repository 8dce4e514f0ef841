import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune_kit.data.batch import Batch
from finetune_kit.errors import OptionError
from finetune_kit.options import resolve
from finetune_kit.plugins import installed
from finetune_kit.task import ItemTask
from finetune_kit.testing import StrategyContract, TinyBackbone, batches, random_batch, randomise
from ftkit_backbones.nextitnet import NextItNet
from ftkit_uaf.spottune import SpotTune, SpotTuneOptions, certainty_loss, count_loss, largest


class TestSpotTune(StrategyContract):
    strategy = "spottune"
    backbones = (*StrategyContract.backbones, NextItNet)


class TestSpotTuneInOneBlock(StrategyContract):
    strategy = "spottune"
    options = {"k": 1}  # noqa: RUF012  (as in a plugin author's test)
    backbones = StrategyContract.backbones[:2]


class TestSpotTuneAsTheAuthorsEvaluateIt(StrategyContract):
    strategy = "spottune"
    options = {"evaluation": "sample", "policy": "gru"}  # noqa: RUF012
    backbones = StrategyContract.backbones[:1]


def build(num_blocks: int = 3, **options: object) -> SpotTune:
    torch.manual_seed(0)
    backbone = randomise(TinyBackbone(20, 12, TinyBackbone.Options(num_blocks=num_blocks)))
    return SpotTune(backbone, ItemTask(backbone.dim, 9), resolve(SpotTuneOptions, options, "strategy"))


def gates(strategy: SpotTune, batch: Batch) -> Tensor:
    found = strategy.encode(batch).gates
    assert found is not None
    return found


def test_the_two_losses_by_hand() -> None:
    shares = torch.tensor([0.5, 1.0, 0.0])
    assert count_loss(shares, 1).item() == 0.25  # (0.5 + 1 + 0 − 1)²
    assert certainty_loss(shares).item() == pytest.approx(-0.5 * math.log(0.5), abs=1e-5)  # 0.5 ln 2 + 0 + 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(0, 6))
def test_the_losses_are_what_slow_loops_compute(shares: list[float], k: int) -> None:
    slow = sum(-v * math.log(v) for v in shares if v > 0)
    assert count_loss(torch.tensor(shares), k).item() == pytest.approx((sum(shares) - k) ** 2, abs=1e-4)
    assert certainty_loss(torch.tensor(shares)).item() == pytest.approx(slow, abs=1e-4)


def test_a_share_is_pushed_away_from_1_over_e_and_rests_at_0() -> None:
    shares = torch.tensor([0.0, 0.2, 0.6, 1.0], requires_grad=True)
    certainty_loss(shares).backward()
    assert shares.grad is not None
    # d/dv (−v ln v) = −ln v − 1
    assert shares.grad.tolist() == pytest.approx([0, -math.log(0.2) - 1, -math.log(0.6) - 1, -1], abs=1e-5)
    assert shares.grad[1] > 0 > shares.grad[2]


def test_the_loss_is_the_tasks_plus_both_by_their_weights() -> None:
    batch, strategy = random_batch(), build(k=1, lambda_1=0.3, lambda_2=0.2).train()
    encoded = strategy.encode(batch)
    assert encoded.gates is not None
    shares = [sum(column) / len(batch.user) for column in zip(*encoded.gates.tolist(), strict=True)]
    expected = 0.3 * (sum(shares) - 1) ** 2 - 0.2 * sum(v * math.log(v) for v in shares if v)
    added = strategy.loss(batch, encoded) - strategy.task.loss(encoded.vectors, batch)
    assert added.item() == pytest.approx(expected, abs=1e-5)
    assert expected > 1e-3


def test_without_k_there_is_the_loss_of_the_task_alone() -> None:
    batch, strategy = random_batch(), build().train()
    encoded = strategy.encode(batch)
    assert torch.equal(strategy.loss(batch, encoded), strategy.task.loss(encoded.vectors, batch))
    assert "shares" not in strategy.state_dict()


def test_the_policy_is_pushed_by_both_losses() -> None:
    batch, strategy = random_batch(), build(k=0, lambda_2=0, policy="global").train()
    encoded = strategy.encode(batch)
    (strategy.loss(batch, encoded) - strategy.task.loss(encoded.vectors, batch)).backward()
    gradient = strategy.policy.logits.grad
    assert (gradient[:, 0] > 0).all()  # less of the fine-tuned branch, everywhere: there are more than 0 of them
    assert (gradient[:, 1] < 0).all()


def test_the_running_mean_of_the_shares_by_hand() -> None:
    batch, strategy = random_batch(), build(k=1)
    first = strategy.train().encode(batch)
    strategy.loss(batch, first)
    assert first.gates is not None
    expected = 0.9 * 0.5 + 0.1 * first.gates.mean(dim=0)
    torch.testing.assert_close(strategy.shares, expected)
    strategy.eval()(batch)
    torch.testing.assert_close(strategy.shares, expected)  # evaluation leaves it
    assert not strategy.shares.requires_grad


@given(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=1, max_size=6), st.integers(0, 6))
def test_the_largest_shares_are_those_that_a_slow_loop_finds(shares: list[float], k: int) -> None:
    k = min(k, len(shares))
    order = sorted(range(len(shares)), key=lambda block: (-shares[block], block))
    assert largest(torch.tensor(shares), k).tolist() == [block in order[:k] for block in range(len(shares))]


@settings(max_examples=20, deadline=None)
@given(
    batch=batches(),
    shares=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    k=st.integers(0, 3),
    evaluation=st.sampled_from(["greedy", "sample", "expected"]),
)
def test_at_evaluation_nobody_is_fine_tuned_outside_of_k_blocks(
    batch: Batch, shares: list[float], k: int, evaluation: str
) -> None:
    free, bound = build(evaluation=evaluation).eval(), build(k=k, evaluation=evaluation).eval()
    bound.shares.copy_(torch.tensor(shares))
    chosen = largest(bound.shares, k)
    found, probabilities = gates(bound, batch), bound.encode(batch).probabilities
    assert probabilities is not None
    assert not probabilities[:, ~chosen].any()
    assert (probabilities[:, chosen] > 0).all()
    assert chosen.sum() == k
    assert not found[:, ~chosen].any()
    assert torch.equal(found[:, chosen], gates(free, batch)[:, chosen])  # within them the policy decides per user


def test_training_may_try_every_block() -> None:
    tried = gates(build(k=1).train(), random_batch(64)).mean(dim=0)
    assert (tried > 0.1).all()


def test_the_global_variant_ends_decided_in_k_blocks() -> None:
    # From a batch of many users; their shares move away from a half, k of them to 1.
    strategy, batch = build(k=1, temperature=1.0), random_batch(32, num_negatives=4)
    optimizer = torch.optim.Adam([p for p in strategy.parameters() if p.requires_grad], 0.02)
    losses = []
    for _ in range(60):
        loss = strategy.train()(batch)
        losses.append(strategy.task.loss(strategy.encode(batch).vectors, batch).item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sorted(strategy.shares.tolist()) == pytest.approx([0, 0, 1], abs=0.1)
    assert gates(strategy.eval(), batch).mean(dim=0).tolist() == largest(strategy.shares, 1).float().tolist()
    assert losses[-1] < losses[0] / 2


def test_it_learns_what_users_like() -> None:
    strategy, batch = build(), random_batch(8, num_negatives=4)
    optimizer = torch.optim.Adam([p for p in strategy.parameters() if p.requires_grad], 0.02)
    strategy.train()
    losses = []
    for _ in range(40):
        loss = strategy(batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 4


def test_an_annealed_temperature_is_the_one_in_use() -> None:
    strategy = build(temperature=8.0, final_temperature=2.0, annealing_epochs=2)
    temperatures = []
    for epoch in (1, 2, 3, 10):
        strategy.start_epoch(epoch)
        temperatures.append(strategy.temperature)
    assert temperatures == pytest.approx([8, 4, 2, 2])


def test_the_authors_preset_keeps_the_noise_on_at_evaluation() -> None:
    assert installed().component("strategy", "spottune").variants["authors"] == {"evaluation": "sample"}


def test_more_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(OptionError, match=r"strategy.k = 4, but the backbone has 3 blocks; set it to fewer"):
        build(k=4)
    with pytest.raises(OptionError, match=r"strategy.k = -1"):
        build(k=-1)

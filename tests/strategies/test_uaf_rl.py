import itertools
import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune_kit.data.batch import Batch
from finetune_kit.errors import OptionError
from finetune_kit.options import resolve
from finetune_kit.plugins import installed
from finetune_kit.seeding import generator
from finetune_kit.strategy import Encoded
from finetune_kit.task import ItemTask, LabelTask
from finetune_kit.testing import StrategyContract, TinyBackbone, batches, random_batch, randomise
from ftkit_backbones.nextitnet import NextItNet
from ftkit_uaf.rl import UafRl, UafRlOptions, reward, self_critical

# One epoch of the curriculum, one in which the policy learns. Among five candidates, most positives are hits.
SHORT = {"curriculum_epochs": 1, "num_candidates": 5}


class TestUafRl(StrategyContract):
    strategy = "uaf-rl"
    options = SHORT
    num_epochs = 2
    backbones = (*StrategyContract.backbones, NextItNet)


class TestUafRlGru(StrategyContract):
    strategy = "uaf-rl"
    options = {**SHORT, "policy": "gru"}  # noqa: RUF012  (as in a plugin author's test)
    backbones = StrategyContract.backbones[:1]


def build(num_answers: int = 9, num_blocks: int = 2, **options: object) -> UafRl:
    torch.manual_seed(0)
    backbone = randomise(TinyBackbone(20, 12, TinyBackbone.Options(num_blocks=num_blocks)))
    options = {"num_candidates": 5, "curriculum_epochs": 0, **options}
    strategy = UafRl(backbone, ItemTask(backbone.dim, num_answers), resolve(UafRlOptions, options, "strategy"))
    return strategy.train()


def apart(strategy: UafRl) -> UafRl:
    """Give a strategy branches, a head and a policy that lead to differing ranks and actions."""
    for block in strategy.backbone.blocks:
        randomise(block.tuned, seed=1)
    randomise(strategy.task, seed=2)
    randomise(strategy.policy, seed=3)
    return strategy


def gates(strategy: UafRl, batch: Batch) -> Tensor:
    found = strategy.encode(batch).gates
    assert found is not None
    return found


# Eq. 13


def test_equation_13_by_hand() -> None:
    actions = torch.tensor([[1.0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    is_hit = torch.tensor([True, False, True, True])
    # 1 − (1/4)² = 15/16; a miss; nothing fine-tuned; all fine-tuned
    assert reward(actions, is_hit, gamma=2.0, kind="paper").tolist() == [15 / 16, -2, 1, 0]
    # 1 − 2 (3/4)² = −1/8; a miss; 1 − 2 · 1; 1
    assert reward(actions, is_hit, gamma=2.0, kind="authors").tolist() == [-1 / 8, -2, -1, 1]


def slow_reward(actions: list[float], is_hit: bool, gamma: float, kind: str) -> float:
    if not is_hit:
        return -gamma
    share = sum(actions) / len(actions)
    return 1 - share**2 if kind == "paper" else 1 - gamma * (1 - share) ** 2


@st.composite
def decisions(draw: st.DrawFn) -> tuple[list[list[float]], list[list[float]], list[int], list[float], list[bool]]:
    """Draw probabilities and actions ``(users, blocks)``; rows, advantages and hits of instances."""
    num_users, num_blocks = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    cell = st.tuples(st.floats(0.01, 0.99), st.sampled_from([0.0, 1.0]))
    own = st.lists(cell, min_size=num_blocks, max_size=num_blocks)
    table = draw(st.lists(own, min_size=num_users, max_size=num_users))
    instance = st.tuples(st.integers(0, num_users - 1), st.floats(-3, 3), st.booleans())
    row, advantage, is_hit = zip(*draw(st.lists(instance, min_size=1, max_size=8)), strict=True)
    probabilities = [[p for p, _ in user] for user in table]
    actions = [[action for _, action in user] for user in table]
    return probabilities, actions, list(row), list(advantage), list(is_hit)


@given(decisions(), st.floats(0, 3), st.sampled_from(["paper", "authors"]))
def test_the_reward_is_what_a_slow_loop_computes(drawn, gamma: float, kind: Literal["paper", "authors"]) -> None:
    _, actions, row, _, is_hit = drawn
    found = reward(torch.tensor(actions)[torch.tensor(row)], torch.tensor(is_hit), gamma, kind)
    slow = [slow_reward(actions[user], hit, gamma, kind) for user, hit in zip(row, is_hit, strict=True)]
    assert found.tolist() == pytest.approx(slow, abs=1e-5)


# Eq. 14


def test_equation_14_by_hand() -> None:
    probabilities, actions = torch.tensor([[0.8, 0.3], [0.5, 0.5]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    loss = self_critical(probabilities, actions, torch.tensor([0.5, -1.0]), row=torch.tensor([0, 0]))
    # user 0 alone: −(ln 0.8 + ln 0.7) = 0.5798; times 0.5 and −1, the mean of two
    assert loss.item() == pytest.approx(0.5798 * (0.5 - 1.0) / 2, abs=1e-4)


@given(decisions())
def test_the_self_critical_loss_is_what_a_slow_loop_computes(drawn) -> None:
    probabilities, actions, row, advantage, _ = drawn
    slow = 0.0
    for user, better in zip(row, advantage, strict=True):
        for p, action in zip(probabilities[user], actions[user], strict=True):
            slow -= math.log(p if action else 1 - p) * better / len(row)
    found = self_critical(
        torch.tensor(probabilities), torch.tensor(actions), torch.tensor(advantage), torch.tensor(row)
    )
    assert found.item() == pytest.approx(slow, abs=1e-3)


def test_its_gradient_is_on_average_that_of_the_expected_reward() -> None:
    values = torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(0))  # a reward for each way to act
    baseline = 0.7
    row = torch.zeros(1, dtype=torch.int64)
    expected_reward, average_loss = torch.zeros(()), torch.zeros(())
    logits = torch.tensor([[0.3, -0.8, 1.1]], requires_grad=True)
    p = logits.sigmoid()
    for way in itertools.product([0, 1], repeat=3):
        actions = torch.tensor([way], dtype=torch.float32)
        chance = torch.where(actions == 1, p, 1 - p).prod()
        expected_reward = expected_reward + chance * values[way]
        average_loss = average_loss + chance.detach() * self_critical(p, actions, values[way][None] - baseline, row)
    [ascent] = torch.autograd.grad(expected_reward, logits, retain_graph=True)
    [descent] = torch.autograd.grad(average_loss, logits)
    torch.testing.assert_close(descent, -ascent)


def test_a_policy_that_is_sure_has_a_finite_loss() -> None:
    probabilities = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = self_critical(probabilities, torch.tensor([[1.0, 0.0]]), torch.tensor([0.5]), torch.tensor([0]))
    loss.backward()
    assert loss.item() == 0
    assert probabilities.grad is not None
    assert probabilities.grad.isfinite().all()


# Eq. 15: the parts together


@settings(max_examples=25, deadline=None)
@given(batch=batches(), kind=st.sampled_from(["paper", "authors"]))
def test_the_advantage_is_what_a_slow_loop_over_instances_computes(batch: Batch, kind: str) -> None:
    strategy = apart(build(gamma=0.5, reward=kind))
    encoded = strategy.encode(batch)
    assert encoded.gates is not None
    assert encoded.probabilities is not None
    strategy.noise = generator(1)
    found = strategy.advantage(batch, encoded)
    candidates = strategy.task.draw_candidates(batch, 5, generator(1)).tolist()
    for instance, row in enumerate(batch.row.tolist()):
        rewards = []
        for actions in (encoded.gates[row].tolist(), [float(p > 0.5) for p in encoded.probabilities[row]]):
            vector = strategy.backbone.user_vectors(batch.sequence[row : row + 1], torch.tensor([actions]))
            scores = [float("nan"), *strategy.task.scores(vector)[0].tolist()]
            own, rank = scores[batch.positive[instance]], 1.0
            for rival in candidates[instance]:
                rank += 1.0 if scores[rival] > own + 1e-6 else 0.5 if abs(scores[rival] - own) <= 1e-6 else 0.0
            rewards.append(slow_reward(actions, rank <= 5, 0.5, kind))
        assert found[instance].item() == pytest.approx(rewards[0] - rewards[1], abs=1e-5)


def test_the_loss_is_the_tasks_plus_beta_times_the_self_critical_one() -> None:
    strategy, batch = apart(build(beta=0.25)), random_batch()
    encoded = strategy.encode(batch)
    assert encoded.gates is not None
    assert encoded.probabilities is not None
    strategy.noise = generator(1)
    found = strategy.loss(batch, encoded)
    strategy.noise = generator(1)
    advantage = strategy.advantage(batch, encoded)
    assert advantage.any()
    task = strategy.task.loss(encoded.vectors, batch)
    rl = self_critical(encoded.probabilities, encoded.gates, advantage, batch.row)
    torch.testing.assert_close(found, task + 0.25 * rl)


def test_the_greedy_actions_have_no_advantage() -> None:
    strategy, batch = apart(build()), random_batch(20)
    greedy = strategy.eval().encode(batch)
    assert strategy.advantage(batch, greedy).tolist() == [0.0] * len(batch)


def test_for_a_label_a_hit_is_the_right_class() -> None:
    strategy, batch = apart(build()), random_batch(20, num_target_items=3)
    strategy.task = randomise(LabelTask(strategy.backbone.dim, 3), seed=2)
    encoded = strategy.encode(batch)
    assert encoded.gates is not None
    assert encoded.probabilities is not None
    expected = torch.zeros(len(batch))
    for sign, actions in ((1, encoded.gates), (-1, (encoded.probabilities > 0.5).float())):
        scores = strategy.task.scores(strategy.backbone.user_vectors(batch.sequence, actions))
        is_right = scores.argmax(dim=1)[batch.row] + 1 == batch.positive
        expected += sign * reward(actions[batch.row], is_right, 1.0, "paper")
    torch.testing.assert_close(strategy.advantage(batch, encoded), expected)
    assert expected.any()


# Actions


def test_in_the_curriculum_actions_are_greedy_and_the_policy_rests() -> None:
    strategy, batch = apart(build(curriculum_epochs=2)), random_batch()
    for epoch in (1, 2):
        strategy.start_epoch(epoch)
        encoded = strategy.encode(batch)
        assert encoded.gates is not None
        assert encoded.probabilities is not None
        assert torch.equal(encoded.gates, (encoded.probabilities > 0.5).float())
        loss = strategy(batch)
        torch.testing.assert_close(loss, strategy.task.loss(encoded.vectors, batch))
        loss.backward()
        assert [parameter.grad for parameter in strategy.policy.parameters()].count(None) == len(
            list(strategy.policy.parameters())
        )
    strategy.start_epoch(3)
    strategy(batch).backward()
    assert all(parameter.grad is not None for parameter in strategy.policy.parameters())


def test_at_evaluation_the_loss_is_the_tasks() -> None:
    strategy, batch = apart(build()).eval(), random_batch(20)
    encoded = strategy.encode(batch)
    sampled = Encoded(encoded.vectors, 1 - gates(strategy, batch), encoded.probabilities)
    assert torch.equal(strategy.loss(batch, sampled), strategy.task.loss(encoded.vectors, batch))
    assert strategy.train().loss(batch, sampled) != strategy.task.loss(encoded.vectors, batch)


def test_a_strategy_with_a_curriculum_does_not_explore_before_its_first_epoch() -> None:
    assert not build(curriculum_epochs=1).is_exploring
    assert build(curriculum_epochs=0).is_exploring


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_an_action_is_drawn_as_often_as_its_probability_says(share: float) -> None:
    strategy, batch = build(policy="global"), random_batch(5000, length=2)
    with torch.no_grad():
        strategy.policy.logits.copy_(torch.tensor([share, 1 - share]).log())
    mean = gates(strategy, batch).mean().item()
    assert mean == pytest.approx(share, abs=4 * (share * (1 - share) / 10_000) ** 0.5)


@settings(max_examples=25, deadline=None)
@given(batch=batches(), epoch=st.integers(1, 9))
def test_training_gates_are_what_a_slow_loop_computes(batch: Batch, epoch: int) -> None:
    strategy = apart(build())
    strategy.start_epoch(epoch)
    found = gates(strategy, batch)
    draws = torch.rand(found.shape, generator=generator(0, "noise", epoch)).tolist()
    for row, sequence in enumerate(batch.sequence):
        for k, (tuned, frozen) in enumerate(strategy.policy(sequence.unsqueeze(0))[0].tolist()):
            p = math.exp(tuned) / (math.exp(tuned) + math.exp(frozen))
            if abs(draws[row][k] - p) > 1e-5:
                assert found[row, k].item() == (1.0 if draws[row][k] < p else 0.0)


def test_at_evaluation_actions_are_greedy_drawn_once_per_user_or_expected() -> None:
    batch = random_batch(64)
    strategy = {kind: apart(build(evaluation=kind)).eval() for kind in ("greedy", "sample", "expected")}
    p = strategy["greedy"].encode(batch).probabilities
    assert p is not None
    assert torch.equal(gates(strategy["greedy"], batch), (p > 0.5).float())
    assert torch.equal(gates(strategy["expected"], batch), p)
    sampled = gates(strategy["sample"], batch)
    assert set(sampled.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(sampled, (p > 0.5).float())
    assert torch.equal(sampled, gates(strategy["sample"], batch))


def test_of_two_equal_actions_the_greedy_one_is_frozen() -> None:
    assert not gates(build(policy="global").eval(), random_batch()).any()


# Training


@pytest.mark.parametrize(("kind", "learned"), [("paper", 0.0), ("authors", 1.0)])
def test_it_learns_to_fine_tune_as_much_as_is_rewarded(kind: str, learned: float) -> None:
    # With four answers every positive is a hit, so that the reward is of the number of fine-tuned blocks alone.
    strategy, batch = build(num_answers=4, reward=kind), random_batch(8, num_target_items=4)
    optimizer = torch.optim.Adam([p for p in strategy.parameters() if p.requires_grad], 0.02)
    losses = []
    for _ in range(60):
        loss = strategy(batch)
        losses.append(strategy.task.loss(strategy.encode(batch).vectors, batch).item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert gates(strategy.eval(), batch).mean().item() == learned
    assert losses[-1] < losses[0] / 2


def test_the_authors_preset_turns_the_reward_round() -> None:
    assert installed().component("strategy", "uaf-rl").variants["authors"] == {"reward": "authors"}


def test_wrong_options_are_refused() -> None:
    with pytest.raises(OptionError, match="curriculum_epochs"):
        build(curriculum_epochs=-1)
    with pytest.raises(OptionError, match="reward"):
        build(reward="sparse")


def test_a_best_epoch_within_the_curriculum_is_told() -> None:
    made = build(curriculum_epochs=5)
    assert made.remarks(6) == []
    assert made.remarks(5) == ["the best epoch, 5, lies in the curriculum of 5 epochs: the policy has not learned yet"]

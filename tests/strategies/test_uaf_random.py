import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune_kit.data.batch import Batch
from finetune_kit.errors import OptionError
from finetune_kit.options import resolve
from finetune_kit.seeding import uniform_per_user
from finetune_kit.task import ItemTask
from finetune_kit.testing import StrategyContract, TinyBackbone, random_batch, randomise
from ftkit_backbones.nextitnet import NextItNet
from ftkit_uaf.random import UafRandom, UafRandomOptions


class TestUafRandom(StrategyContract):
    strategy = "uaf-random"
    backbones = (*StrategyContract.backbones, NextItNet)


class TestUafRandomUnderAnotherSeedAtEvaluation(StrategyContract):
    strategy = "uaf-random"
    options = {"evaluation_seed": 1}  # noqa: RUF012  (as in a plugin author's test)
    backbones = StrategyContract.backbones[:1]


def build(seed: int = 0, num_blocks: int = 2, **options: object) -> UafRandom:
    torch.manual_seed(0)
    backbone = randomise(TinyBackbone(20, 12, TinyBackbone.Options(num_blocks=num_blocks)))
    return UafRandom(backbone, ItemTask(backbone.dim, 9), resolve(UafRandomOptions, options, "strategy"), seed=seed)


def gates(strategy: UafRandom, batch: Batch) -> Tensor:
    found = strategy.encode(batch).gates
    assert found is not None
    return found


def test_the_toss_by_hand() -> None:
    draws = uniform_per_user(torch.tensor([1, 4]), 2, seed=0)
    below = draws[0, 1].item() + 1e-6  # user 1 takes the fine-tuned branch of block 1, and whoever draws less
    expected = [[float(draw < below) for draw in own] for own in draws.tolist()]
    assert gates(build(share=below), random_batch(2)).tolist() == expected
    assert expected[0][1] == 1.0


@settings(max_examples=25, deadline=None)
@given(
    users=st.lists(st.integers(1, 10**9), min_size=1, max_size=5, unique=True),
    seed=st.integers(0, 100),
    share=st.floats(0, 1),
)
def test_gates_are_what_a_slow_loop_over_users_computes(users: list[int], seed: int, share: float) -> None:
    found = build(seed, num_blocks=3, share=share).gates(torch.tensor(users))
    for row, user in enumerate(users):
        [draws] = uniform_per_user(torch.tensor([user]), 3, seed).tolist()
        assert found[row].tolist() == [1.0 if draw < share else 0.0 for draw in draws]


def test_a_user_keeps_the_gates_in_any_batch_and_in_training_and_evaluation() -> None:
    strategy = build(num_blocks=4)
    strategy.train().start_epoch(1)
    training = strategy.gates(torch.arange(100))
    strategy.start_epoch(2)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(strategy.gates(order), training[order])
    assert torch.equal(strategy.eval().gates(torch.arange(100)), training)
    assert torch.equal(strategy.gates(torch.tensor([17])), training[17:18])


def test_the_users_history_plays_no_part() -> None:
    strategy, batch = build(), random_batch(20)
    other = Batch(batch.user, batch.sequence.flip(0), batch.row, batch.positive, batch.negative)
    assert torch.equal(gates(strategy, batch), gates(strategy, other))


def test_another_seed_tosses_otherwise() -> None:
    users = torch.arange(100)
    assert not torch.equal(build(0).gates(users), build(1).gates(users))


def test_an_evaluation_seed_changes_gates_at_evaluation_alone() -> None:
    users = torch.arange(100)
    plain, other = build(0), build(0, evaluation_seed=7)
    assert torch.equal(plain.train().gates(users), other.train().gates(users))
    assert not torch.equal(plain.eval().gates(users), other.eval().gates(users))
    assert torch.equal(other.gates(users), build(7).gates(users))


def test_an_evaluation_seed_of_zero_is_one() -> None:
    users = torch.arange(100)
    assert torch.equal(build(3, evaluation_seed=0).eval().gates(users), build(0).gates(users))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_fine_tuned_branch_comes_as_often_as_its_share(share: float) -> None:
    mean = build(num_blocks=4, share=share).gates(torch.arange(5000)).mean().item()
    assert mean == pytest.approx(share, abs=4 * (share * (1 - share) / 20_000) ** 0.5)


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


def test_a_share_beyond_one_is_refused() -> None:
    with pytest.raises(OptionError, match="share"):
        build(share=1.5)

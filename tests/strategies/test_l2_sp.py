from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_kit.errors import OptionError
from finetune_kit.options import resolve
from finetune_kit.task import ItemTask
from finetune_kit.testing import StrategyContract, TinyBackbone, random_batch, randomise
from ftkit_backbones.nextitnet import NextItNet
from ftkit_baselines.finetune import FinetuneAll
from ftkit_schedules.l2_sp import L2SP, L2SPOptions


class TestL2SP(StrategyContract):
    strategy = "l2-sp"
    backbones = (*StrategyContract.backbones, NextItNet)


def tiny(dim: int = 8, num_blocks: int = 2) -> TinyBackbone:
    return randomise(TinyBackbone(20, 12, TinyBackbone.Options(dim=dim, num_blocks=num_blocks)))


def build(backbone: TinyBackbone | None = None, **options: object) -> L2SP:
    torch.manual_seed(0)
    backbone = backbone or tiny()
    return L2SP(backbone, ItemTask(backbone.dim, 9), resolve(L2SPOptions, options, "strategy"))


def train(strategy: FinetuneAll | L2SP, steps: int = 60) -> float:
    """Train on one batch; return the last loss."""
    batch, optimizer = random_batch(8), torch.optim.Adam(strategy.parameters(), 0.02)
    strategy.train()
    for _ in range(steps):
        strategy(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return strategy.task.loss(strategy.eval().encode(batch).vectors, batch).item()


@torch.no_grad()
def test_the_penalty_by_hand() -> None:
    strategy = build(alpha=0.1, beta=0.4)
    torch.nn.init.zeros_(strategy.task.head.weight)
    strategy.task.head.bias[2] = 3.0
    strategy.backbone.item_embedding.weight[5, 1] += 2.0
    strategy.backbone.blocks[1].norm.bias[0] -= 1.0
    # α/2 · (2² + 1²) + β/2 · 3² = 0.05 · 5 + 0.2 · 9
    assert strategy.penalty().item() == pytest.approx(2.05)


@torch.no_grad()
def test_the_loss_is_the_tasks_plus_the_penalty() -> None:
    strategy, batch = build(alpha=0.1, beta=0.4), random_batch()
    strategy.backbone.item_embedding.weight[5, 1] += 2.0
    expected = strategy.task.loss(strategy.encode(batch).vectors, batch) + strategy.penalty()
    assert strategy(batch).item() == pytest.approx(expected.item())
    assert strategy.penalty() > 0.2


@settings(max_examples=30, deadline=None)
@given(
    dim=st.integers(1, 9),
    num_blocks=st.integers(1, 3),
    alpha=st.sampled_from([0.0, 0.01, 2.0]),
    moved=st.sampled_from([0.0, 0.5, -3.0]),
)
def test_the_backbones_part_is_its_squared_distance_for_any_shape(
    dim: int, num_blocks: int, alpha: float, moved: float
) -> None:
    strategy = build(tiny(dim, num_blocks), alpha=alpha, beta=0)
    with torch.no_grad():
        for parameter in strategy.backbone.parameters():
            parameter += moved
    num_moved = sum(parameter.numel() for parameter in strategy.backbone.parameters())
    assert strategy.penalty().item() == pytest.approx(alpha / 2 * num_moved * moved**2, rel=1e-4)


def test_the_start_is_not_saved_and_moves_with_the_strategy() -> None:
    strategy = build()
    assert strategy.state_dict().keys() == strategy.trained_state().keys()
    assert not any("start" in name for name in strategy.state_dict())
    assert strategy.to(torch.float64).penalty().dtype == torch.float64


def test_without_penalties_it_is_finetune_all() -> None:
    strategy = build(alpha=0, beta=0)
    torch.manual_seed(0)
    other = FinetuneAll(tiny(), ItemTask(8, 9))
    train(strategy), train(other)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in strategy.state_dict().items())


def test_it_learns_and_the_larger_the_pull_the_nearer_the_backbone_stays() -> None:
    distances = []
    for alpha in (0.0, 0.1, 10.0):
        strategy = build(alpha=alpha)
        assert train(strategy) < 0.3  # from 0.7
        moved = [w - strategy.start[name] for name, w in strategy.backbone.named_parameters()]
        distances.append(sum(tensor.square().sum().item() for tensor in moved))
    assert all(far > 3 * near for far, near in pairwise(distances))


def test_the_head_decays() -> None:
    norms = []
    for beta in (0.0, 1.0):
        strategy = build(beta=beta)
        train(strategy)
        norms.append(strategy.task.head.weight.norm().item())
    assert norms[1] < 0.5 * norms[0]


@pytest.mark.parametrize("options", [{"alpha": -1}, {"beta": -1}, {"alhpa": 1}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        build(**options)

import math

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from finetune_kit.data.batch import Batch
from finetune_kit.errors import OptionError
from finetune_kit.options import resolve
from finetune_kit.task import ItemTask
from finetune_kit.testing import StrategyContract, TinyBackbone, batches, random_batch, randomise
from ftkit_backbones.nextitnet import NextItNet
from ftkit_uaf.soft import UafSoft, UafSoftOptions


class TestUafSoft(StrategyContract):
    strategy = "uaf-soft"
    backbones = (*StrategyContract.backbones, NextItNet)


class TestUafSoftGru(StrategyContract):
    strategy = "uaf-soft"
    options = {"policy": "gru"}  # noqa: RUF012  (as in a plugin author's test)
    backbones = StrategyContract.backbones[:1]


class TestUafSoftOneForAll(StrategyContract):
    strategy = "uaf-soft"
    options = {"policy": "global"}  # noqa: RUF012
    backbones = StrategyContract.backbones[:1]


def build(**options: object) -> UafSoft:
    torch.manual_seed(0)
    backbone = randomise(TinyBackbone(20, 12))
    return UafSoft(backbone, ItemTask(backbone.dim, 9), resolve(UafSoftOptions, options, "strategy"))


def gates(strategy: UafSoft, batch: Batch) -> Tensor:
    found = strategy.encode(batch).gates
    assert found is not None
    return found


def test_equations_11_and_12_by_hand() -> None:
    strategy, batch = build(), random_batch(2)
    with torch.no_grad():
        strategy.policy.output.weight.zero_()  # v = b_p
        strategy.policy.output.bias.copy_(torch.tensor([0.0, -math.log(3)]))
    # σ(0) = 1/2; σ(−ln 3) = 1 / (1 + 3) = 1/4
    assert gates(strategy, batch).tolist() == [pytest.approx([0.5, 0.25])] * 2


@settings(max_examples=25, deadline=None)
@given(batch=batches())
def test_gates_are_what_a_slow_loop_computes(batch: Batch) -> None:
    strategy = build()
    found = gates(strategy, batch)
    for row, sequence in enumerate(batch.sequence):
        [decisions] = strategy.policy(sequence.unsqueeze(0)).tolist()
        slow = [1 / (1 + math.exp(-v)) for [v] in decisions]
        assert found[row].tolist() == pytest.approx(slow, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(batch=batches())
def test_a_user_gets_the_mixture_of_the_branches_block_by_block(batch: Batch) -> None:
    strategy = build()
    for block in strategy.backbone.blocks:
        randomise(block.tuned, seed=1)
    encoded, backbone = strategy.encode(batch), strategy.backbone
    assert encoded.gates is not None
    for row, sequence in enumerate(batch.sequence):
        context = backbone.prepare(sequence.unsqueeze(0))
        hidden = backbone.embed(sequence.unsqueeze(0))
        for k, block in enumerate(backbone.blocks):
            share = encoded.gates[row, k].item()
            hidden = share * block.tuned(hidden, context) + (1 - share) * block.frozen(hidden, context)  # Eq. 6
        torch.testing.assert_close(encoded.vectors[row], hidden[0, -1], atol=1e-5, rtol=1e-5)


def test_training_and_evaluation_take_the_same_gates() -> None:
    strategy, batch = build(), random_batch()
    strategy.train().start_epoch(1)
    assert torch.equal(gates(strategy, batch), gates(strategy.eval(), batch))


def test_the_policy_has_one_output_per_block() -> None:
    strategy = build()
    assert strategy.policy(random_batch().sequence).shape == (6, 2, 1)


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


def test_what_belongs_to_other_strategies_is_refused() -> None:
    with pytest.raises(OptionError, match="temperature"):
        build(temperature=1)

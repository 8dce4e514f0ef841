import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_kit.data.batch import Batch, Windows
from finetune_kit.errors import OptionError
from finetune_kit.options import resolve
from finetune_kit.task import ItemTask
from finetune_kit.testing import StrategyContract, TinyBackbone, batches, random_batch, randomise
from ftkit_backbones.nextitnet import NextItNet
from ftkit_baselines.mtl import Mtl, MtlOptions


class TestMtl(StrategyContract):
    strategy = "mtl"
    backbones = (*StrategyContract.backbones, NextItNet)


def build(**options: object) -> Mtl:
    torch.manual_seed(0)
    backbone = randomise(TinyBackbone(20, 12))
    return Mtl(backbone, ItemTask(backbone.dim, 9), resolve(MtlOptions, options, "strategy"))


@torch.no_grad()
def slow_loss(strategy: Mtl, batch: Batch, source_weight: float) -> float:
    """L_target + λ L_source, one instance and one position at a time."""
    vectors = strategy.backbone.user_vectors(batch.sequence)
    target = []
    for row, positive, negatives in zip(batch.row, batch.positive, batch.negative, strict=True):
        scores = strategy.task.head(vectors[row])
        target += [math.log1p(math.exp(scores[negative - 1] - scores[positive - 1])) for negative in negatives]
    source = []
    for inputs, labels in zip(batch.source.inputs, batch.source.labels, strict=True):
        for hidden, label in zip(strategy.backbone(inputs.unsqueeze(0))[0], labels, strict=True):
            if label != 0:
                source.append(-strategy.source_output(hidden).softmax(0)[label - 1].log().item())
    return sum(target) / len(target) + source_weight * sum(source) / len(source)


@settings(max_examples=40, deadline=None)
@given(batch=batches(max_windows=3), source_weight=st.sampled_from([0.0, 0.5, 1.0, 3.0]))
def test_the_loss_is_the_targets_plus_the_weighted_sources(batch: Batch, source_weight: float) -> None:
    strategy = randomise(build(source_weight=source_weight)).train()
    assert strategy(batch).item() == pytest.approx(slow_loss(strategy, batch, source_weight), rel=1e-4)


def test_the_sum_of_two_losses_by_hand() -> None:
    strategy = build(source_weight=2.0).train()
    for parameter in [*strategy.task.parameters(), *strategy.source_output.parameters()]:
        torch.nn.init.zeros_(parameter)
    # all scores are equal: −log σ(0) = log 2, and the next of 20 items costs log 20
    assert strategy(random_batch(num_windows=3)).item() == pytest.approx(math.log(2) + 2 * math.log(20))


def test_both_domains_train_the_one_backbone() -> None:
    strategy = build().train()
    target = replace(random_batch(1, length=3), sequence=torch.tensor([[0, 3, 4]]))
    source = Windows(torch.tensor([[0, 19, 20]]), torch.tensor([[0, 20, 5]]))
    strategy(replace(target, source=source)).backward()
    gradient = strategy.backbone.item_embedding.weight.grad
    assert gradient is not None
    assert {3, 4, 19, 20} == set(gradient.any(dim=1).nonzero().flatten().tolist()) - {0}  # 5 is a label alone


def test_everything_trains_from_random_weights() -> None:
    strategy = build()
    assert not Mtl.needs_pretrained
    assert Mtl.needs_source_batches
    assert strategy.trained_state().keys() == strategy.state_dict().keys()
    assert strategy.source_output.weight.shape == (20, strategy.backbone.dim)


def test_evaluation_needs_no_source_windows_and_training_says_that_it_does() -> None:
    strategy, batch = build().eval(), random_batch()
    expected = strategy.task.loss(strategy.encode(batch).vectors, batch)
    assert torch.equal(strategy(batch), expected)
    assert torch.equal(strategy(random_batch(num_windows=2)), expected)
    with pytest.raises(AssertionError, match="mtl trains on batches with source windows"):
        strategy.train()(batch)


def test_it_learns_both_domains() -> None:
    strategy, batch = build().train(), random_batch(8)
    steps = (torch.arange(8) + torch.arange(4).unsqueeze(1)) % 20 + 1  # item i is followed by item i + 1
    batch = replace(batch, source=Windows(steps[:, :-1], steps[:, 1:]))
    optimizer = torch.optim.Adam(strategy.parameters(), 0.02)
    first = strategy(batch).item()  # about log 2 + log 20
    for _ in range(100):
        strategy(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    source = strategy.source_output(strategy.backbone(batch.source.inputs))
    assert (source.argmax(-1) + 1 == batch.source.labels).float().mean() > 0.95
    assert strategy.eval()(batch) < 0.3
    assert strategy.train()(batch) < 0.1 * first


@pytest.mark.parametrize("options", [{"source_weight": -1}, {"source_wieght": 1}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        build(**options)

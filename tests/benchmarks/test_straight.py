"""Everything that makes the toolkit fast computes what the straight reading of the paper computes."""

import json

import numpy as np
import page
import pytest
import torch
from rows_evaluation import straight_ranks
from sizes import Shape, make_up, straight_of
from steps import gigaflops, straight_step
from straight import Straight, StraightNextItem, StraightUafHard
from timing import Row
from torch import Tensor, nn

from finetune_kit.data.batch import Batch
from finetune_kit.data.dataset import Dataset
from finetune_kit.strategy import Strategy
from finetune_kit.testing import random_batch, random_windows, randomise
from finetune_kit.training.assemble import build_backbone
from finetune_kit.training.device import make_fabric
from finetune_kit.training.experiment import Experiment
from finetune_kit.training.pretrain import NextItem

SHAPE = Shape(users=9, length=21, dim=8, blocks=4, source_items=40, target_items=15)
"""The first block reaches past the beginning of the sequence, the last ones do not."""
WITHOUT_POLICY = ("finetune-cls", "finetune-last1", "finetune-all")


def pair(name: str, seed: int = 0) -> tuple[Strategy, Straight]:
    """Return a strategy with random weights, both branches different, and its straight reading."""
    strategy = randomise(SHAPE.strategy(name), seed).train()
    return strategy, straight_of(strategy)


def batch(seed: int = 0) -> Batch:
    """Return a batch in which some users have two instances."""
    return random_batch(SHAPE.users, SHAPE.length, SHAPE.source_items, SHAPE.target_items, seed=seed)


def noise_of(strategy: Strategy, of: Batch) -> Tensor:
    """Return the noise that a strategy is about to draw, a row per instance."""
    copy = torch.Generator()
    copy.set_state(strategy.noise.get_state())
    return torch.rand(len(of.user), SHAPE.blocks, 2, generator=copy)[of.row]


def rows(of: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return sequence, positive and negative, a row per instance."""
    return of.sequence[of.row], of.positive, of.negative[:, 0]


def same_gradients(one: nn.Module, other: nn.Module) -> None:
    """Check that every parameter has the same gradient, or none in both."""
    straight = dict(other.named_parameters())
    assert any(parameter.grad is not None for parameter in straight.values())
    for name, parameter in one.named_parameters():
        expected = straight[name].grad
        if not parameter.requires_grad:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        assert expected is not None, name
        torch.testing.assert_close(
            parameter.grad, expected, atol=2e-6, rtol=2e-4, msg=lambda text, of=name: f"{of}: {text}"
        )


@pytest.mark.parametrize("seed", range(3))  # with these, somebody takes each branch of each block
def test_loss_and_gradients_of_uaf_hard_are_those_of_both_branches_run_for_all(seed: int) -> None:
    strategy, straight = pair("uaf-hard", seed)
    given = batch(seed)
    expected = straight(*rows(given), noise_of(strategy, given))
    loss = strategy(given)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    same_gradients(strategy, straight)


@pytest.mark.parametrize("action", [0, 1])
def test_gradients_are_the_straight_ones_too_where_a_whole_batch_takes_the_same_branch(action: int) -> None:
    strategy, straight = pair("uaf-hard")
    for model in (strategy, straight):
        model.policy.output.bias.data[action::2] = 50.0
    given = batch()
    expected, loss = straight(*rows(given), noise_of(strategy, given)), strategy(given)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    same_gradients(strategy, straight)


@pytest.mark.parametrize("seed", range(4))
def test_gates_and_user_vectors_of_uaf_hard_are_the_straight_ones_in_training_and_evaluation(seed: int) -> None:
    strategy, straight = pair("uaf-hard", seed)
    assert isinstance(straight, StraightUafHard)
    given = batch(seed)
    for noise in (noise_of(strategy, given), None):
        encoded = strategy.train(noise is not None).encode(given)
        gates = straight.gates(given.sequence[given.row], noise)
        assert torch.equal(encoded.gates[given.row], gates)
        if noise is not None:
            assert {0.0, 1.0} <= set(gates.unique().tolist()), "both branches are to be taken"
        vectors = straight.vectors(given.sequence[given.row], gates)
        torch.testing.assert_close(encoded.vectors[given.row], vectors, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", WITHOUT_POLICY)
def test_loss_and_gradients_of_the_fine_tuning_of_layers_are_the_straight_ones(name: str) -> None:
    strategy, straight = pair(name)
    given = batch()
    expected, loss = straight(*rows(given)), strategy(given)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    same_gradients(strategy, straight)


@pytest.mark.parametrize("name", ["uaf-hard", "finetune-cls", "finetune-all"])
def test_some_steps_of_the_optimizer_end_at_the_same_weights(name: str) -> None:
    strategy, straight = pair(name)
    trained = [parameter for parameter in strategy.parameters() if strategy.trains(parameter)]
    adam = torch.optim.Adam(trained, lr=1e-4, fused=True)  # as the training loop has it
    noise: list[Tensor] = []
    given = batch()
    step = straight_step(straight, lambda: straight(*rows(given), *noise))
    for seed in range(3):
        given = batch(seed)
        noise[:] = [noise_of(strategy, given)] if name == "uaf-hard" else []
        step()
        strategy(given).backward()
        adam.step()
        adam.zero_grad()
    for tensor_name, tensor in straight.state_dict().items():
        # Where a gradient is next to nothing, Adam's step is as large as elsewhere and of any sign.
        difference = (strategy.state_dict()[tensor_name] - tensor).abs()
        assert difference.quantile(0.99) < 1e-5, tensor_name
        assert difference.max() < 7e-4, tensor_name


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_up(tmp_path_factory.mktemp("data") / "made-up", 60, SHAPE.source_items, SHAPE.target_items)


@pytest.mark.parametrize("name", ["uaf-hard", "finetune-all"])
def test_ranks_by_counting_are_those_of_sorting(name: str, dataset: Dataset) -> None:
    experiment = Experiment(SHAPE.config(name), dataset, make_fabric("cpu"))
    strategy = randomise(experiment.build_strategy(None))
    evaluation = experiment.evaluator(experiment.split.test).evaluate(strategy, experiment.fabric, ("full",))
    expected = straight_ranks(straight_of(strategy), experiment, evaluation.instance)
    assert evaluation.ranks["full"].tolist() == expected.tolist()
    assert len(np.unique(expected)) > 3


@pytest.mark.parametrize("num_negatives", [0, 20_000])
def test_pre_training_is_the_softmax_over_the_whole_catalogue(num_negatives: int) -> None:
    """Exactly so in the exact loss; the sampled one comes near it with many draws."""
    backbone = build_backbone(SHAPE.config("finetune-all"), SHAPE.source_items)
    frequency = 1 / torch.arange(1, SHAPE.source_items + 1)
    ours = randomise(NextItem(backbone, frequency, num_negatives))
    straight = StraightNextItem(SHAPE.source_items, SHAPE.dim, SHAPE.dilations)
    straight.load_state_dict(ours.state_dict())
    windows = random_windows(SHAPE.users, SHAPE.length, SHAPE.source_items)
    expected = straight(windows.inputs, windows.labels) / (windows.labels != 0).sum()
    loss = ours(windows)
    loss.backward()
    expected.backward()
    if num_negatives == 0:
        torch.testing.assert_close(loss, expected)
        same_gradients(ours, straight)
    else:
        assert loss.item() == pytest.approx(expected.item(), rel=0.02)
        one, other = ours.output.weight.grad, straight.output.weight.grad
        assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.99


def test_flops_are_those_of_the_formula_by_hand() -> None:
    layer = nn.Linear(5, 3)
    inputs = torch.randn(7, 5, requires_grad=True)
    assert gigaflops(lambda: layer(inputs).sum()) == pytest.approx(3 * 2 * 7 * 5 * 3 / 1e9)  # forward and two gradients


def test_the_table_of_a_page_is_replaced_by_that_of_a_file(tmp_path) -> None:
    row = Row("hard-step", "a step", [1.0, 2.0, 4.0], [4.0, 6.0, 8.0], users=10, gigaflops=(30.0, 60.0))
    machine = {"cpu": "X", "capability": "Y", "cores": 2, "threads": 2, "load": 0.5, "torch": "2", "python": "3"}
    results = {
        "date": "2026-01-01",
        "size": "small",
        "machine": machine,
        "matmul_gigaflops_per_second": {"float32": 100.0},
        "rows": [row.record()],
        "growth": [{"what": "users", "values": [1, 2, 4], "seconds": [1.0, 1.5, 3.0]}],
    }
    (tmp_path / "p.json").write_text(json.dumps(results))
    (tmp_path / "p.md").write_text(f"# Before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    page.write(tmp_path / "p.md", tmp_path / "p.json")
    text = (tmp_path / "p.md").read_text()
    assert text.startswith(f"# Before\n{page.BEGIN}\n")
    assert text.endswith(f"\n{page.END}\nafter\n")
    assert "old" not in text
    assert "| `hard-step` | a step | 2 s (1.5 – 3) | 6 s (5 – 7) | **3.00** (2.50 – 3.50) | 5 | 30 / 60 | 15% |" in text
    assert "| users | 1, 2, 4 | 1, 1.5, 3 | ×1.50, ×2.00 |" in text

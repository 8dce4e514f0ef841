from pathlib import Path

import numpy as np
import pytest
from small_runs import runner, whole_run

from finetune_kit.data.dataset import Dataset
from finetune_kit.files import read_table
from finetune_kit.strategy import Strategy
from finetune_kit.training.assemble import load_run


def test_a_profile_label_is_learned_and_measured_beside_the_commonest_class(dataset: Dataset, tmp_path: Path) -> None:
    made = runner(dataset, "uaf-hard", run={"task": "label:kind"}, finetune={"epochs": 1})
    metrics, folder = whole_run(made, tmp_path)
    assert metrics["test"].keys() == metrics["valid"].keys() == {"accuracy", "f1_macro"}
    assert metrics["references"].keys() == {"majority"}
    assert sum(shares["test"] for shares in metrics["classes"].values()) == pytest.approx(1)
    rows = read_table(folder / "instances.parquet")
    assert (rows["class"] == rows["predicted"]).mean() == pytest.approx(metrics["test"]["accuracy"])
    kinds = dataset.labels["kind"].value
    assert (rows["class"] == kinds[rows["user"] - 1]).all()
    assert len(read_table(folder / "policy.parquet")["user"]) == (kinds >= 0).sum()
    run = load_run(folder, dataset)
    assert run.dataset.raw_target_items() == list(dataset.labels["kind"].classes)
    evaluated = made.evaluator(made.split.test).evaluate(run.strategy, made.fabric)
    assert evaluated.metrics() == metrics["test"]


def test_a_run_with_gates_is_measured_beside_the_best_single_policy(dataset: Dataset, tmp_path: Path) -> None:
    metrics, folder = whole_run(runner(dataset, "uaf-random"), tmp_path)
    control, rows = metrics["control"], read_table(folder / "instances.parquet")
    hits = rows["control_rank_full"] <= 5
    assert hits.mean() == pytest.approx(control["test"]["full"]["hr@5"])
    assert len(control["gates"]) == 2
    assert "control" not in whole_run(runner(dataset, "finetune-cls"), tmp_path)[0]


def test_a_label_s_control_is_measured_too(dataset: Dataset, tmp_path: Path) -> None:
    metrics, folder = whole_run(runner(dataset, "uaf-random", run={"task": "label:kind"}), tmp_path)
    rows = read_table(folder / "instances.parquet")
    right = (rows["class"] == rows["control_predicted"]).mean()
    assert right == pytest.approx(metrics["control"]["test"]["accuracy"])


def test_a_control_that_fails_does_not_cost_the_run(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise TypeError("takes no gates")

    monkeypatch.setattr(Strategy, "encode_with", fail)
    made = runner(dataset, "uaf-random", finetune={"epochs": 1})
    metrics, _ = whole_run(made, tmp_path)
    assert metrics["control"] == {"reason": "takes no gates"}
    assert any("no single choice of blocks was measured" in line for line in made.progress.lines)


def test_what_is_skipped_is_told_beside_the_gates(dataset: Dataset, tmp_path: Path) -> None:
    options = {"initial_skip": 0.4, "evaluation": "sample"}
    made = runner(dataset, "skip", finetune={"epochs": 1, "learning_rate": 0.001}, strategy=options)
    metrics, folder = whole_run(made, tmp_path)
    policy = read_table(folder / "policy.parquet")
    skipped = np.stack([policy["skipped_0"], policy["skipped_1"]], axis=1)
    gates = np.stack([policy["gate_0"], policy["gate_1"]], axis=1)
    assert skipped.mean(axis=0).tolist() == pytest.approx(metrics["gates"]["skipped"], abs=1e-4)
    assert 0 < skipped.mean() < 1
    choices = {(*own, *other) for own, other in zip(gates.tolist(), skipped.tolist(), strict=True)}
    assert metrics["gates"]["distinct"] == len(choices) > len({*map(tuple, gates.tolist())})
    control = metrics["control"]
    assert sum(control["skipped"]) == np.floor(skipped.sum(axis=1).mean() + 0.5)
    assert not np.multiply(control["gates"], control["skipped"]).any()
    assert "skipped" not in whole_run(runner(dataset, "uaf-random"), tmp_path)[0]["gates"]


def test_what_is_skipped_is_told_for_a_label_too(dataset: Dataset, tmp_path: Path) -> None:
    made = runner(dataset, "skip", run={"task": "label:kind"}, finetune={"epochs": 1})
    metrics, folder = whole_run(made, tmp_path)
    policy = read_table(folder / "policy.parquet")
    assert [policy[f"skipped_{k}"].mean() for k in range(2)] == pytest.approx(metrics["gates"]["skipped"], abs=1e-4)
    whole = made.evaluator(made.split.test).evaluate(load_run(folder, dataset).strategy, made.fabric)
    assert whole.skipped is not None
    assert whole.of(np.array([1, 0])).skipped.tolist() == whole.skipped[[1, 0]].tolist()

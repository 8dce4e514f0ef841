import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from small_runs import runner, whole_run, without_times

from finetune_kit.checkpoint import file_hash, load_model
from finetune_kit.data.dataset import Dataset
from finetune_kit.errors import CheckpointError, DataError
from finetune_kit.files import read_table
from finetune_kit.plugins import installed
from finetune_kit.pretend import pretend_device, pretend_fabric
from finetune_kit.training.assemble import load_run
from finetune_kit.training.device import make_fabric
from finetune_kit.training.run import Runner
from ftkit_datasets.synthetic import Synthetic, SyntheticOptions


def evaluate_again(folder: Path, dataset: Dataset, made: Runner) -> dict[str, dict[str, float]]:
    """Load a run and measure it on the test part."""
    strategy = load_run(folder, dataset).strategy
    made.fabric.setup_module(strategy)
    evaluation = made.evaluator(made.split.test).evaluate(strategy, made.fabric)
    return evaluation.metrics(made.config.evaluation.cutoffs)


@pytest.mark.parametrize("strategy", installed().components("strategy"))
def test_a_run_on_an_accelerator_gives_the_numbers_of_the_cpu(
    strategy: str, dataset: Dataset, bases: Path, tmp_path: Path
) -> None:
    on_cpu, _ = whole_run(runner(dataset, strategy), tmp_path / "cpu", bases / "cpu")
    with pretend_device():
        made = runner(dataset, strategy, pretend_fabric())
        metrics, folder = whole_run(made, tmp_path / "device", bases / "device")
        assert evaluate_again(folder, dataset, made) == metrics["test"]
    assert without_times(metrics) == without_times(on_cpu)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("strategy", installed().components("strategy"))
def test_a_run_on_a_gpu_gives_about_the_numbers_of_the_cpu(
    strategy: str, dataset: Dataset, bases: Path, tmp_path: Path
) -> None:
    on_cpu, _ = whole_run(runner(dataset, strategy), tmp_path / "cpu", bases / "cpu")
    made = runner(dataset, strategy, make_fabric("cuda"))
    metrics, folder = whole_run(made, tmp_path / "gpu", bases / "gpu")
    assert evaluate_again(folder, dataset, made)["full"] == pytest.approx(metrics["test"]["full"], abs=0.05)
    assert metrics["test"]["full"] == pytest.approx(on_cpu["test"]["full"], abs=0.1)
    assert metrics["trainable_parameters"] == on_cpu["trainable_parameters"]


def test_the_sampled_softmax_runs_on_an_accelerator(dataset: Dataset, tmp_path: Path) -> None:
    sections = {
        "pretrain": {"loss": "sampled-softmax", "num_negatives": 20},
        "finetune": {"loss": "softmax", "pooling": "mean"},
    }
    on_cpu, _ = whole_run(runner(dataset, **sections), tmp_path / "cpu")
    with pretend_device():
        metrics, _ = whole_run(runner(dataset, fabric=pretend_fabric(), **sections), tmp_path / "device")
    assert without_times(metrics) == without_times(on_cpu)


@pytest.mark.parametrize("strategy", ["uaf-hard", "finetune-zero"])
def test_one_seed_writes_identical_weights_and_metrics(strategy: str, dataset: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(1)
    one, first = whole_run(runner(dataset, strategy), tmp_path / "one")
    torch.manual_seed(2)  # the caller's generator has no say
    same, second = whole_run(runner(dataset, strategy), tmp_path / "two")
    other, third = whole_run(runner(dataset, strategy, run={"strategy": strategy, "seed": 1}), tmp_path / "three")
    assert without_times(one) == without_times(same)
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert (first / "model.safetensors").read_bytes() != (third / "model.safetensors").read_bytes()
    assert without_times(one) != without_times(other)
    bases = [sorted(path.parent.glob("nextitnet-*/model.safetensors")) for path in (first, second)]
    assert [path.read_bytes() for path in bases[0]] == [path.read_bytes() for path in bases[1]]


@pytest.mark.parametrize("strategy", installed().components("strategy"))
def test_a_run_in_mixed_precision_is_close_to_one_in_full(strategy: str, dataset: Dataset, tmp_path: Path) -> None:
    runs = {}
    for precision in ("32", "bf16-mixed"):
        made = runner(dataset, strategy, make_fabric("cpu", precision), run={"precision": precision})
        runs[precision] = whole_run(made, tmp_path / precision)[1]
    full, mixed = (load_model(runs[precision])[0] for precision in ("32", "bf16-mixed"))
    assert all(tensor.dtype == torch.float32 for tensor in mixed.values())
    assert any(not torch.equal(full[name], mixed[name]) for name in full), "nothing was computed in bfloat16"
    for name in full:
        torch.testing.assert_close(mixed[name], full[name], atol=0.15, rtol=0.1)


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_run_folder_has_exactly_the_promised_files(dataset: Dataset, tmp_path: Path) -> None:
    files = {
        "checksums.json",
        "config.toml",
        "history.parquet",
        "instances.parquet",
        "last/state.safetensors",
        "metrics.json",
        "log.jsonl",
    }
    files |= {"model.json", "model.safetensors", "split.parquet", "candidates.parquet"}
    made = runner(dataset, "finetune-cls")
    _, folder = whole_run(made, tmp_path)
    assert names_in(folder) == files
    _, gated = whole_run(runner(dataset, "uaf-hard"), tmp_path)
    assert names_in(gated) == files | {"policy.parquet"}
    base = made.pretrain(tmp_path)
    pretrained = files - {"instances.parquet", "split.parquet", "candidates.parquet"}
    assert names_in(base) == pretrained


def test_metrics_have_the_promised_keys(dataset: Dataset, bases: Path, tmp_path: Path) -> None:
    metrics, folder = whole_run(runner(dataset, "uaf-hard"), tmp_path, bases / "cpu")
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    promised = {
        "strategy",
        "backbone",
        "dataset",
        "seed",
        "protocol",
        "valid",
        "test",
        "remarks",
        "best_epoch",
        "epochs",
    }
    promised |= {"trainable_parameters", "total_parameters", "seconds", "instances_per_second"}
    assert promised <= set(metrics)
    assert set(metrics["seconds"]) == {"pretrain", "finetune", "evaluate", "control"}
    names = {f"{metric}@{n}" for metric in ("hr", "mrr", "ndcg") for n in (5, 10, 20)}
    for part in ("valid", "test"):
        assert {protocol: set(values) for protocol, values in metrics[part].items()} == {
            "full": names,
            "sampled": names,
        }


def test_the_tables_of_a_run_agree_with_its_metrics(dataset: Dataset, bases: Path, tmp_path: Path) -> None:
    made = runner(dataset, "uaf-hard")
    metrics, folder = whole_run(made, tmp_path, bases / "cpu")
    instances = read_table(folder / "instances.parquet")
    assert instances["user"].tolist() == dataset.target.user[made.split.test].tolist()
    assert instances["item"].tolist() == dataset.target.item[made.split.test].tolist()
    for protocol in ("full", "sampled"):
        assert np.mean(instances[f"rank_{protocol}"] <= 5) == pytest.approx(metrics["test"][protocol]["hr@5"])
    policy = read_table(folder / "policy.parquet")
    assert policy["user"].tolist() == sorted(set(dataset.target.user.tolist()))
    assert [np.mean(policy[f"gate_{k}"]) for k in range(2)] == pytest.approx(metrics["gates"]["mean"], abs=1e-4)
    history = read_table(folder / "history.parquet")
    assert history["epoch"].tolist() == [1, 2]
    assert history["mrr@5"][metrics["best_epoch"] - 1] == pytest.approx(metrics["valid"]["full"]["mrr@5"])
    split = read_table(folder / "split.parquet")
    counts = {name: int((split["part"] == name).sum()) for name in ("train", "valid", "test")}
    assert counts == metrics["instances"]


def test_only_what_the_strategy_trained_is_saved(dataset: Dataset, bases: Path, tmp_path: Path) -> None:
    _, folder = whole_run(runner(dataset, "finetune-cls"), tmp_path, bases / "cpu")
    tensors, facts = load_model(folder)
    assert set(tensors) == {"task.head.weight", "task.head.bias"}
    assert facts["hash"] == file_hash(folder / "model.safetensors")
    assert facts["base"]["hash"] == file_hash(folder / facts["base"]["path"] / "model.safetensors")


def test_a_pretrained_backbone_is_reused_until_something_that_decides_it_changes(
    dataset: Dataset, tmp_path: Path
) -> None:
    made = runner(dataset)
    base = made.pretrain(tmp_path)
    written = (base / "metrics.json").stat().st_mtime_ns
    again = runner(dataset, "uaf-hard", finetune={"epochs": 1})  # other strategy and fine-tuning: the same base
    assert again.pretrain(tmp_path) == base
    assert (base / "metrics.json").stat().st_mtime_ns == written
    assert again.progress.lines == [f"pre-trained backbone: {base} (reused)"]
    changes = [
        {"run": {"seed": 1}},
        {"backbone": {"dim": 4}},
        {"pretrain": {"learning_rate": 0.5}},
        {"data": {"max_length": 6}},
    ]
    runners = [made, *(runner(dataset, **change) for change in changes)]
    assert len({json.dumps(one._decides_pretrained(), sort_keys=True) for one in runners}) == 5


def test_a_base_that_was_not_finished_is_not_reused(dataset: Dataset, tmp_path: Path) -> None:
    base = runner(dataset).pretrain(tmp_path)
    (base / "metrics.json").unlink()
    again = runner(dataset)
    assert again.pretrain(tmp_path) == base
    assert again.progress.lines == [f"pre-trained backbone: {base}"]
    assert (base / "metrics.json").exists()


def test_loading_onto_another_base_is_refused_naming_both_hashes(dataset: Dataset, tmp_path: Path) -> None:
    _, folder = whole_run(runner(dataset), tmp_path)
    other = runner(dataset, pretrain={"learning_rate": 0.02}).pretrain(tmp_path)
    own, found = load_model(folder)[1]["base"]["hash"], load_model(other)[1]["hash"]
    assert own != found
    with pytest.raises(CheckpointError, match=f"fine-tuned from the base with hash {own}; .* has {found}"):
        load_run(folder, dataset, base=other)


def test_a_run_and_its_base_may_move_together(dataset: Dataset, tmp_path: Path) -> None:
    made = runner(dataset)
    metrics, _ = whole_run(made, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    folder = tmp_path / "there" / "finetune-last1"
    assert evaluate_again(folder, dataset, made) == metrics["test"]


def test_weights_of_other_items_are_refused_naming_both_hashes(dataset: Dataset, tmp_path: Path) -> None:
    _, folder = whole_run(runner(dataset, "finetune-zero"), tmp_path)
    Synthetic(SyntheticOptions(users=60, max_length=12, seed=5)).prepare(tmp_path / "other")
    other = Dataset.open(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"have another (num|source items)"):
        load_run(folder, other)


def test_damaged_weights_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    _, folder = whole_run(runner(dataset, "finetune-zero"), tmp_path)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: its hash is"):
        load_run(folder, dataset)


def test_a_base_is_no_run_and_a_run_is_no_base(dataset: Dataset, tmp_path: Path) -> None:
    made = runner(dataset)
    _, folder = whole_run(made, tmp_path)
    with pytest.raises(CheckpointError, match="holds a pretrained, not a fine-tuned run"):
        load_run(made.pretrain(tmp_path), dataset)
    with pytest.raises(CheckpointError, match="holds a fine-tuned run, not a pre-trained backbone"):
        made.finetune(tmp_path / "second", folder)


def unseen_counts(made: Runner, parts: Any) -> list[int]:
    item = made.dataset.target.item
    known = set(item[parts.train].tolist())
    return [sum(y not in known for y in item[part].tolist()) for part in (parts.valid, parts.test)]


def test_instances_of_items_unseen_in_training_are_kept_dropped_or_refused(dataset: Dataset) -> None:
    few = {"fraction": 0.2}
    keep, drop = (runner(dataset, data={**few, "unseen": choice}) for choice in ("keep", "drop"))
    num_valid, num_test = unseen_counts(keep, keep.split)
    assert num_valid + num_test > 0
    of_valid, of_test = f"{num_valid} of {len(keep.split.valid)}", f"{num_test} of {len(keep.split.test)}"
    words = f"{of_valid} valid instances and {of_test} test instances"
    assert keep.progress.lines == [f"warning: {words} have an item that no training instance has (data.unseen=keep)"]
    assert unseen_counts(drop, drop.split) == [0, 0]
    assert len(drop.split.test) == len(keep.split.test) - num_test
    assert np.array_equal(drop.split.train, keep.split.train)
    with pytest.raises(DataError, match=rf"{words} have an item .*; data.unseen=keep or drop"):
        _ = runner(dataset, data={**few, "unseen": "refuse"}).split


def test_dropping_all_instances_of_a_part_is_refused(dataset: Dataset) -> None:
    with pytest.raises(DataError, match=r"data.unseen=drop leaves no (valid|test) instance: .*; use keep"):
        _ = runner(dataset, data={"fraction": 0.008, "unseen": "drop"}).split


def test_users_with_one_event_each_are_refused_before_anything_trains(tmp_path: Path) -> None:
    Synthetic(SyntheticOptions(users=60, max_length=12)).prepare(tmp_path / "data")
    dataset = Dataset.open(tmp_path / "data")
    dataset.__dict__["source_lengths"] = np.ones(60, np.int64)  # as if
    for strategy in ("mtl", "finetune-cls"):
        with pytest.raises(DataError, match="0 users have two or more source events; learning the source domain needs"):
            runner(dataset, strategy).refuse_early()


def test_the_split_of_the_authors_code_warns(dataset: Dataset) -> None:
    made = runner(dataset, data={"split": "authors"})
    assert len(made.split.valid) == len(made.split.test)
    assert any("chooses the best epoch on the test part" in line for line in made.progress.lines)


def test_an_interrupted_run_goes_on_to_the_same_weights(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Exception):
        pass

    def crash(tracker: Any, stage: str, values: Any) -> None:
        raise Interrupted

    expected, whole = whole_run(runner(dataset, "uaf-hard"), tmp_path / "whole")
    made = runner(dataset, "uaf-hard")
    base = made.pretrain(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("ftkit_trackers.jsonl.JsonLines.record", crash)
        made.finetune(tmp_path / "run", base)
    assert not (tmp_path / "run" / "metrics.json").exists()
    again = runner(dataset, "uaf-hard")
    again.resume = True
    metrics = again.finetune(tmp_path / "run", base)
    assert without_times(metrics) == without_times(expected)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_tables_can_be_read_by_any_parquet_reader(dataset: Dataset, tmp_path: Path) -> None:
    _, folder = whole_run(runner(dataset, "finetune-zero"), tmp_path)
    query = f"SELECT count(*), min(rank_full) FROM read_parquet('{folder / 'instances.parquet'}')"
    count, lowest = duckdb.sql(query).fetchall()[0]
    assert count > 0
    assert lowest >= 1

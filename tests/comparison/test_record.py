from dataclasses import replace

import pytest
from made_up import made_up_run

from finetune_kit.comparison.record import Planned, Record, read_results, refuse_other_data
from finetune_kit.comparison.results import Setting
from finetune_kit.errors import CheckpointError, OptionError

RECORD = Record("made-up", "f" * 64, "items", "mrr@5", "tuning budget: two rates", {}, {}, ())


def tried(folder, strategy: str, rate: str, seed: int, rank, valid: float) -> Planned:
    """Make a run of a tuned configuration."""
    run = made_up_run(folder / rate, Setting(strategy), seed, rank, valid=valid)
    return Planned(run.setting, {"finetune.learning_rate": rate}, seed, str(run.folder.relative_to(folder)))


def test_a_record_is_read_back_as_it_was_written(tmp_path):
    planned = Planned(Setting("a", "x=1", "b", 0.1), {"finetune.epochs": "1"}, 3, "runs/a", "too hot")
    record = replace(RECORD, runs=(planned,), notes=("one",), options={"data": {"users": 5}})
    record.write(tmp_path)
    assert Record.read(tmp_path) == record


def test_validation_chooses_among_tuned_configurations_and_the_test_part_does_not(tmp_path):
    runs = [
        *(tried(tmp_path, "a", "fast", seed, [9, 9], valid=0.5) for seed in (0, 1)),
        *(tried(tmp_path, "a", "slow", seed, [1, 1], valid=0.4) for seed in (0, 1)),  # better on the test part
        *(tried(tmp_path, "b", "fast", seed, [1, 1], valid=valid) for seed, valid in enumerate((0.0, 0.7))),
        *(tried(tmp_path, "b", "slow", seed, [9, 9], valid=0.4) for seed in (0, 1)),
    ]
    replace(RECORD, runs=tuple(runs)).write(tmp_path)
    results = read_results(tmp_path)
    assert [(run.setting.strategy, run.seed, run.folder.parent.name) for run in results.runs] == [
        *(("a", 0, "fast"), ("a", 1, "fast"), ("b", 0, "slow"), ("b", 1, "slow"))
    ]
    assert results.notes == (
        "tuning budget: two rates",
        "a: validation chose finetune.learning_rate=fast",
        "b: validation chose finetune.learning_rate=slow",
    )


def test_a_configuration_that_lacks_a_seed_is_not_chosen(tmp_path):
    runs = [
        tried(tmp_path, "a", "fast", 0, [1, 1], valid=0.9),
        Planned(Setting("a"), {"finetune.learning_rate": "fast"}, 1, "nowhere", "the loss became nan"),
        *(tried(tmp_path, "a", "slow", seed, [1, 1], valid=0.4) for seed in (0, 1)),
    ]
    replace(RECORD, runs=tuple(runs)).write(tmp_path)
    results = read_results(tmp_path)
    assert {run.folder.parent.name for run in results.runs} == {"slow"}
    assert results.notes[-1] == "missing: a, finetune.learning_rate=fast, seed 1: the loss became nan"


def test_what_is_no_comparison_or_has_no_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"is no comparison: there is no comparison\.json"):
        read_results(tmp_path)
    replace(RECORD, runs=(Planned(Setting("a"), {}, 0, "nowhere", "too hot"),)).write(tmp_path)
    with pytest.raises(CheckpointError, match=r"no run of .* is finished: too hot"):
        read_results(tmp_path)


def test_a_comparison_on_another_dataset_is_refused(tmp_path):
    refuse_other_data(tmp_path, "a" * 64)  # nothing there yet
    RECORD.write(tmp_path)
    refuse_other_data(tmp_path, "f" * 64)
    with pytest.raises(OptionError, match=r"fingerprint ffffffffffff; the one given has aaaaaaaaaaaa; name another"):
        refuse_other_data(tmp_path, "a" * 64)

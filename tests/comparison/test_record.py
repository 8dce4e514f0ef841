import json
from dataclasses import replace

import pytest
from made_up import made_up_run

from finetune_kit.comparison.record import Planned, Record, read_results, refuse_foreign, refuse_other_data
from finetune_kit.comparison.results import Result, Setting
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


def test_configurations_are_compared_on_the_seeds_that_they_share(tmp_path):
    runs = [
        *(tried(tmp_path, "a", "fast", seed, [1, 1], valid) for seed, valid in ((0, 0.9), (1, 0.3))),
        *(tried(tmp_path, "a", "slow", seed, [1, 1], valid) for seed, valid in ((1, 0.4), (2, 0.4))),
    ]
    replace(RECORD, runs=tuple(runs)).write(tmp_path)
    assert {run.folder.parent.name for run in read_results(tmp_path).runs} == {"slow"}  # 0.4 against 0.3 on seed 1


def test_seeds_that_are_missing_stand_in_one_line_per_row(tmp_path):
    there = tried(tmp_path, "b", "fast", 0, [1, 1], valid=0.4)
    lost = [Planned(Setting("a"), {}, seed, f"nowhere-{seed}", "too hot") for seed in (0, 1)]
    other = [Planned(Setting("c"), {}, seed, f"no-{seed}", reason) for seed, reason in ((0, "full"), (1, ""))]
    replace(RECORD, runs=(there, *lost, *other)).write(tmp_path)
    assert read_results(tmp_path).notes[-2:] == (
        "missing: a, seeds 0, 1: too hot",
        "missing: c, seeds 0, 1: seed 0: full",
    )


def planned(folder, setting: Setting, seed: int, config: str = "", base: str = "", **metrics) -> Planned:
    """Make a run with what it recorded of the code and of its pre-trained backbone."""
    run = made_up_run(folder, setting, seed, [1, 2], **metrics)
    if config:
        (run.folder / "config.toml").write_text(config)
    if base:
        (run.folder / "model.json").write_text(json.dumps({"base": {"hash": base}}))
    return Planned(setting, {}, seed, run.folder.name)


def notes(folder, *runs: Planned) -> tuple[str, ...]:
    """Return what is noted of runs beside the budget."""
    replace(RECORD, runs=runs).write(folder)
    return read_results(folder).notes[1:]


CODE = '[versions]\nfinetune-kit = "{}"\n[git]\n'.format
GIT = 'commit = "{}"\nis_dirty = {}\n'.format


@pytest.mark.parametrize(
    ("configs", "states"),
    [
        (["", "", ""], None),
        ([CODE("1.0")] * 3, None),
        ([CODE("1.0") + GIT("a" * 40, "false")] * 3, None),
        ([CODE("1.0"), CODE("1.1"), CODE("1.1")], "version 1.1 (2 runs), version 1.0 (1 run)"),
        (
            [CODE("1.0") + GIT("a" * 40, dirty) for dirty in ("true", "false", "false")],
            "aaaaaaa (2 runs), aaaaaaa with changes (1 run)",
        ),
        ([CODE("1.0"), "", ""], "unknown (2 runs), version 1.0 (1 run)"),
    ],
)
def test_runs_made_by_several_states_of_the_code_are_noted(tmp_path, configs, states):
    runs = [planned(tmp_path, Setting("a"), seed, config) for seed, config in enumerate(configs)]
    expected = f"runs were made by 2 states of the code: {states}; delete a run's folder to make it again"
    assert notes(tmp_path, *runs) == (() if states is None else (expected,))


def test_rows_on_different_pre_trained_backbones_are_noted_unless_they_ask_for_them(tmp_path):
    runs = [
        planned(tmp_path, Setting("a"), 0, base="0" * 64),
        planned(tmp_path, Setting("b"), 0, base="1" * 64),
        planned(tmp_path, Setting("c"), 0),  # not pre-trained
        planned(tmp_path, Setting("a"), 1, base="2" * 64),
        planned(tmp_path, Setting("b"), 1, base="2" * 64),
        planned(tmp_path, Setting("a", "strategy.x=1, pretrain.epochs=3"), 1, base="3" * 64),
        planned(tmp_path, Setting("a", backbone="sasrec"), 0, base="4" * 64),
    ]
    assert notes(tmp_path, *runs) == (
        "seed 0: rows stand on 2 different pre-trained nextitnet backbones: a nextitnet on 0000000; b nextitnet on "
        "1111111",
    )


def test_a_policy_whose_single_choice_was_not_measured_is_noted(tmp_path):
    control = {"gates": {"mean": [1.0]}, "control": {"reason": "too many"}}
    runs = [planned(tmp_path, Setting("a"), seed, **control) for seed in (0, 1)]
    assert notes(tmp_path, *runs) == ("no single choice of blocks was measured beside a, seeds 0, 1: too many",)


def test_what_is_no_comparison_or_has_no_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"is no comparison: there is no comparison\.json"):
        read_results(tmp_path)
    replace(RECORD, runs=(Planned(Setting("a"), {}, 0, "nowhere", "too hot"),)).write(tmp_path)
    with pytest.raises(CheckpointError, match=r"no run of .* is finished: too hot"):
        read_results(tmp_path)


@pytest.mark.parametrize("name", ["metrics.json", "instances.parquet"])
def test_a_damaged_run_is_named(tmp_path, name):
    run = made_up_run(tmp_path, Setting("a"), 0, [1, 2])
    (run.folder / name).write_text("torn")
    with pytest.raises(CheckpointError, match=rf"{run.folder.name}' is damaged, its {name} can't be read: delete this"):
        Result.read(run.setting, 0, run.folder).refuse_damaged()
    (run.folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"its {name} is missing: delete this folder, the same command trains"):
        Result.read(run.setting, 0, run.folder).refuse_damaged()


def test_a_comparison_goes_to_a_folder_that_is_empty_or_one_already(tmp_path):
    for folder in (tmp_path, tmp_path / "new"):
        refuse_foreign(folder)
    (tmp_path / "runs").mkdir()
    refuse_foreign(tmp_path)
    (tmp_path / "tables.md").touch()
    with pytest.raises(OptionError, match=r"is not empty: it is no comparison; name another folder"):
        refuse_foreign(tmp_path)
    for path in (tmp_path / "tables.md", tmp_path / "tables.md" / "below"):
        with pytest.raises(OptionError, match=r"--output .* is a file where a folder is expected"):
            refuse_foreign(path)
    RECORD.write(tmp_path)
    refuse_foreign(tmp_path)


def test_a_comparison_on_another_dataset_is_refused(tmp_path):
    refuse_other_data(tmp_path, "a" * 64)  # nothing there yet
    RECORD.write(tmp_path)
    refuse_other_data(tmp_path, "f" * 64)
    with pytest.raises(OptionError, match=r"fingerprint ffffffffffff; the one given has aaaaaaaaaaaa; name another"):
        refuse_other_data(tmp_path, "a" * 64)

import json
from pathlib import Path

import pytest

from finetune_kit.comparison.compare import compare, prepare
from finetune_kit.comparison.plan import Comparison
from finetune_kit.comparison.record import Record, read_results
from finetune_kit.errors import CheckpointError, OptionError, PluginError
from finetune_kit.progress import Progress
from finetune_kit.strategy import Strategy
from finetune_kit.training.experiment import Experiment
from ftkit_baselines.finetune import FinetuneAll
from ftkit_datasets.synthetic import Synthetic

TINY = {
    "data": {"users": 100, "max_length": 10},
    "backbone": {"dim": 8, "num_blocks": 1},
    "pretrain": {"epochs": 1},
    "finetune": {"epochs": 1},
}
ONE_SEED = Comparison(["finetune-cls", "finetune-all"], seeds=[0], sections=TINY)
BOTH = Comparison(["finetune-cls", "finetune-all"], seeds=[0, 1], sections=TINY)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("FTKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


class Lines(Progress):
    """Keeps what it is told; on a line that begins with ``interrupt_at``, the user presses Control-C."""

    def __init__(self, interrupt_at: str = "never"):
        self.lines: list[str] = []
        self.interrupt_at = interrupt_at

    def say(self, text):
        self.lines.append(text)
        if text.startswith(self.interrupt_at):
            raise KeyboardInterrupt


def times(folder: Path) -> dict[str, int]:
    """Return when each run was finished, by its folder's name."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("runs/*/metrics.json")}


def test_a_comparison_trains_each_run_once_on_one_backbone_per_seed(tmp_path):
    results = compare(BOTH, tmp_path / "out")
    assert [(run.setting.strategy, run.seed) for run in results.runs] == [
        *(("finetune-cls", 0), ("finetune-cls", 1), ("finetune-all", 0), ("finetune-all", 1))
    ]
    assert len(list((tmp_path / "pretrained").iterdir())) == 2
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"runs", "comparison.json", "tables.md", "table.tex", "table.csv"}
    assert not list(tmp_path.glob("out/runs/*/last"))
    before = times(tmp_path / "out")
    assert len(before) == 4
    lines = Lines()
    assert compare(BOTH, tmp_path / "out", lines).notes == results.notes
    assert times(tmp_path / "out") == before
    assert lines.lines == [
        f"{k}/4 {name}, seed {seed}: there already"
        for k, (seed, name) in enumerate(((seed, name) for seed in (0, 1) for name in BOTH.strategies), start=1)
    ]


def test_only_what_is_missing_is_run_again_and_gives_the_same_numbers(tmp_path):
    first = compare(ONE_SEED, tmp_path / "out")
    before, lost = times(tmp_path / "out"), first.runs[1]
    (lost.folder / "metrics.json").unlink()
    again = compare(ONE_SEED, tmp_path / "out")
    after = times(tmp_path / "out")
    assert {name for name in after if after[name] != before[name]} == {lost.folder.name}
    assert again.runs[1].metrics["test"] == lost.metrics["test"]


def test_an_interrupted_comparison_goes_on_where_it_stopped(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        compare(BOTH, tmp_path / "out", Lines(interrupt_at="3/4"))
    before = times(tmp_path / "out")
    assert len(before) == 2
    assert len(read_results(tmp_path / "out").runs) == 2
    lines = Lines()
    compare(BOTH, tmp_path / "out", lines)
    assert sum("there already" in line for line in lines.lines) == 2
    assert before.items() <= times(tmp_path / "out").items()


def test_a_run_goes_on_after_its_last_whole_epoch(tmp_path, monkeypatch):
    comparison = Comparison(["finetune-all"], [0], sections={**TINY, "finetune": {"epochs": 3}})
    whole = compare(comparison, tmp_path / "whole" / "out").runs[0]
    start_epoch = FinetuneAll.start_epoch

    def interrupt(self, epoch):
        if epoch == 3:
            raise KeyboardInterrupt
        start_epoch(self, epoch)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(FinetuneAll, "start_epoch", interrupt)
        compare(comparison, tmp_path / "out")
    lines = Lines()
    torn = compare(comparison, tmp_path / "out", lines).runs[0]
    assert "finetune: going on after epoch 2" in lines.lines
    assert torn.metrics["test"] == whole.metrics["test"]


def test_a_wider_comparison_reuses_the_runs_of_a_narrower_one(tmp_path):
    compare(Comparison(["finetune-cls"], [0], sections=TINY), tmp_path / "out")
    before = times(tmp_path / "out")
    results = compare(BOTH, tmp_path / "out")
    assert len(results.runs) == 4
    assert before.items() <= times(tmp_path / "out").items()


def test_fractions_share_backbone_and_test_instances(tmp_path):
    comparison = Comparison(["finetune-all"], [0], fractions=[1.0, 0.5], sections=TINY)
    whole, half = compare(comparison, tmp_path / "out").runs
    assert half.metrics["instances"]["train"] == pytest.approx(whole.metrics["instances"]["train"] / 2, abs=1)
    assert half.metrics["instances"]["test"] == whole.metrics["instances"]["test"]
    assert len(list((tmp_path / "pretrained").iterdir())) == 1


def test_a_failed_run_is_recorded_and_the_others_go_on(tmp_path):
    sections = {**TINY, "finetune": {"epochs": 3, "learning_rate": "1e30,1e-3"}}
    comparison = Comparison(["finetune-all"], [0, 1], sections=sections)
    results = compare(comparison, tmp_path / "out")
    assert {run.setting.variant for run in results.runs} == {"finetune.learning_rate=1e-3"}
    missing = [note for note in results.notes if note.startswith("missing: ")]
    assert [note.partition(": ")[2].partition(":")[0] for note in missing] == [
        "finetune-all finetune.learning_rate=1e30, seeds 0, 1"
    ]
    assert "lower finetune.learning_rate" in missing[0]


def test_a_strategy_that_crashes_in_training_leaves_its_traceback(tmp_path, monkeypatch):
    def crash(self, batch, encoded):
        raise RuntimeError("out of\nmemory")

    lines = Lines()
    with monkeypatch.context() as patched:
        patched.setattr(FinetuneAll, "loss", crash)
        results = compare(ONE_SEED, tmp_path / "out", lines)
    assert {run.setting.strategy for run in results.runs} == {"finetune-cls"}
    (path,) = tmp_path.glob("out/runs/finetune-all-*-s0-*/error.txt")
    assert f"missing: finetune-all, seed 0: RuntimeError: out of memory; {path} shows where" in results.notes
    assert "in crash" in path.read_text()
    assert any(line.startswith("warning: finetune-all, seed 0 failed: RuntimeError") for line in lines.lines)
    assert len(compare(ONE_SEED, tmp_path / "out").runs) == 2
    assert not path.exists()


def test_what_can_t_be_built_is_refused_before_anything_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(FinetuneAll, "build", Strategy.build)
    with pytest.raises(PluginError, match="'finetune-all' failed in build"):
        compare(BOTH, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_split_of_every_seed_is_checked_once_before_anything_trains(tmp_path, monkeypatch):
    drawn = []
    split = Experiment.split.func

    def note(self):
        drawn.append(self.config.run.seed)
        return split(self)

    monkeypatch.setattr(Experiment, "split", property(note))
    prepare(BOTH, tmp_path / "out")
    assert set(drawn) == {0, 1}


def test_only_options_that_are_not_at_their_default_are_noted(tmp_path):
    sections = {
        **{"run": {"preset": "none"}, "data": {"users": 100, "max_length": "50"}, "backbone": {"dim": 8}},
        **{"strategy": {"temperature": 7}, "finetune": {"patience": "10", "learning_rate": "1e-3,1e-2"}},
    }
    record = prepare(Comparison(["finetune-cls", "uaf-hard"], [0], sections=sections), tmp_path / "out").record()
    assert record.notes == (
        "options that are not at their default: data.users=100, backbone.dim=8, strategy.temperature=7, "
        "finetune.learning_rate=1e-3,1e-2",
    )
    users = {"data": {"users": Synthetic.Options().users}}
    record = prepare(Comparison(["finetune-cls"], [0], sections=users), tmp_path / "other").record()
    assert record.notes == ()


def test_equal_rows_are_refused(tmp_path):
    sections = {**TINY, "finetune": {"learning_rate": ["1e-3", "0.001"]}}
    with pytest.raises(OptionError, match=r"learning_rate=1e-3, seed 0 and .*=0.001, seed 0 are the same run"):
        prepare(Comparison(["finetune-all"], [0], sections=sections), tmp_path / "out")


def test_a_folder_of_another_dataset_is_refused(tmp_path):
    compare(Comparison(["finetune-cls"], [0], sections=TINY), tmp_path / "out")
    other = {**TINY, "data": {"users": 101, "max_length": 10}}
    with pytest.raises(OptionError, match="compares on a dataset with fingerprint"):
        prepare(Comparison(["finetune-cls"], [0], sections=other), tmp_path / "out")


def test_a_run_made_under_other_defaults_is_refused(tmp_path):
    run = compare(Comparison(["finetune-cls"], [0], sections=TINY), tmp_path / "out").runs[0]
    path = run.folder / "config.toml"
    path.write_text(path.read_text().replace("patience = 10", "patience = 7"))
    with pytest.raises(OptionError, match=r"when the default of finetune.patience was 7; now it is 10"):
        prepare(Comparison(["finetune-cls"], [0], sections=TINY), tmp_path / "out")
    path.write_text(path.read_text().replace("patience = 7", "pationce = 7"))
    with pytest.raises(OptionError, match=r"is not of this version: no option finetune.pationce"):
        prepare(Comparison(["finetune-cls"], [0], sections=TINY), tmp_path / "out")


def test_a_damaged_checkpoint_fails_its_run_alone(tmp_path):
    first = compare(ONE_SEED, tmp_path / "out").runs[0]
    (first.folder / "metrics.json").unlink()
    (first.folder / "last").mkdir()
    (first.folder / "last" / "state.safetensors").write_text("torn")
    results = compare(ONE_SEED, tmp_path / "out")
    assert len(results.runs) == 1
    assert "delete it to start over" in results.notes[-1]


def test_all_runs_failing_is_an_error(tmp_path):
    sections = {**TINY, "finetune": {"learning_rate": 1e30}}
    with pytest.raises(CheckpointError, match=r"no run of .* is finished: finetune: the loss became"):
        compare(Comparison(["finetune-all"], [0], sections=sections), tmp_path / "out")


def test_the_record_says_what_the_budget_was(tmp_path):
    tune = {"finetune.learning_rate": ["1e-3", "1e-2"]}
    results = compare(Comparison(["finetune-cls"], [0], sections=TINY, tune=tune), tmp_path / "out")
    assert results.notes[0] == (
        "tuning budget: each row had 2 configurations (finetune.learning_rate=1e-3,1e-2), each trained with every "
        "seed; one is chosen for all seeds, by the mean of validation MRR@5 over the seeds; at most 1 epochs, patience "
        "10, best epoch by validation MRR@5"
    )
    record = Record.read(tmp_path / "out")
    assert record.budget == results.notes[0]
    assert [run.tuned for run in record.runs] == [{"finetune.learning_rate": rate} for rate in ("1e-3", "1e-2")]
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["tune"] == tune
    chosen = max(
        (json.loads((tmp_path / "out" / run.folder / "metrics.json").read_text()) for run in record.runs),
        key=lambda metrics: metrics["valid"]["full"]["mrr@5"],
    )
    assert results.runs[0].metrics["valid"] == chosen["valid"]


def test_the_authors_split_comes_with_a_warning(tmp_path):
    sections = {**TINY, "data": {**TINY["data"], "split": "authors"}}
    results = compare(Comparison(["finetune-cls"], [0], sections=sections), tmp_path / "out")
    assert any("so do --tune and the single choice of blocks: the num" in note for note in results.notes)

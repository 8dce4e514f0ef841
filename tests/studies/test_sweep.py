import json

import pytest
from study_runs import facts, metrics, tiny

from finetune_kit.config import read_toml, resolve_config
from finetune_kit.errors import FinetuneKitError, OptionError
from finetune_kit.evaluation.evaluate import Evaluator
from finetune_kit.files import read_table
from finetune_kit.presence import at_work
from finetune_kit.studies import trial
from finetune_kit.studies.study import Study
from finetune_kit.training.run import Runner
from ftkit_baselines.finetune import FinetuneAll

pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return a search and what it found."""
    search = tiny(tmp_path_factory.mktemp("undisturbed") / "sweep")
    return search, search.carry_out()


def test_a_search_leaves_its_trials_its_best_one_and_the_journal(undisturbed):
    search, found = undisturbed
    assert {path.name for path in search.folder.iterdir()} == {
        *("trials", "journal.log", "sweep.json", "trials.parquet", "best.toml")
    }
    assert [row.state for row in found.rows] == ["complete"] * 5
    table = read_table(search.folder / "trials.parquet")
    assert table["value"].tolist() == [row.value for row in found.rows]
    assert table["finetune.learning_rate"].tolist() == [row.values["finetune.learning_rate"] for row in found.rows]
    assert found.best is not None
    assert found.best.value == max(row.value for row in found.rows)
    assert len(list(search.folder.parent.glob("pretrained/*"))) == 1


def test_only_the_best_trial_is_measured_on_the_test_part(undisturbed):
    search, found = undisturbed
    assert [path.parent for path in search.folder.glob("trials/*/metrics.json")] == list(found.runs.values())
    assert not list(search.folder.glob("trials/*/last"))
    record = json.loads((search.folder / "sweep.json").read_text())
    assert record["best"]["test"]["0"] == metrics(found.runs[0])["test"]


def test_no_trial_ranks_the_test_part_before_the_choice(tmp_path, monkeypatch):
    search, ranked = tiny(tmp_path / "sweep", trials=2), []
    evaluate = Evaluator.evaluate

    def record(self, *arguments):
        ranked.append((len(search.board.ended), len(self.instances)))
        return evaluate(self, *arguments)

    monkeypatch.setattr(Evaluator, "evaluate", record)
    search.carry_out()
    instances = metrics(next(tmp_path.glob("sweep/trials/*/metrics.json")).parent)["instances"]
    valid, test = instances["valid"], instances["test"]
    assert valid != test
    assert {number for ended, number in ranked if ended < 2} == {valid}
    assert test in {number for ended, number in ranked if ended == 2}


def test_the_best_trial_is_a_configuration_that_gives_its_numbers_again(undisturbed, tmp_path):
    search, found = undisturbed
    config = resolve_config(read_toml(search.folder / "best.toml"))
    runner = Runner(config, search.dataset, search._runner(config).fabric)
    again = runner.finetune(tmp_path / "again", runner.pretrain(tmp_path / "pretrained"))
    assert metrics(tmp_path / "again") == metrics(found.runs[0])
    assert again["valid"]["full"]["mrr@5"] == found.best.value
    name = "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (found.runs[0] / name).read_bytes()


def test_the_same_seed_draws_the_same_trials_and_another_draws_others(undisturbed, tmp_path):
    assert facts(tiny(tmp_path / "same").carry_out()) == facts(undisturbed[1])
    other = tiny(tmp_path / "other", trials=1, seed=1).carry_out()
    assert other.rows[0].values != undisturbed[1].rows[0].values


def test_an_interrupted_search_goes_on_with_what_is_missing(undisturbed, tmp_path, monkeypatch):
    search, start_epoch, calls = tiny(tmp_path / "sweep"), FinetuneAll.start_epoch, []

    def interrupt(self, epoch):
        calls.append(epoch)
        if len(calls) == 4:  # the second epoch of the second trial
            raise KeyboardInterrupt
        start_epoch(self, epoch)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(FinetuneAll, "start_epoch", interrupt)
        search.carry_out()
    assert list(search.board.ended) == [0]
    again = tiny(tmp_path / "sweep")
    found = again.carry_out()
    assert list(again.board.ended) == [1, 2, 3, 4]
    assert facts(found) == facts(undisturbed[1])
    assert metrics(found.runs[0]) == metrics(undisturbed[1].runs[0])


def test_a_finished_search_is_read_and_a_longer_one_goes_on(undisturbed, tmp_path):
    tiny(tmp_path / "sweep", trials=3, sampler="random").carry_out()
    again = tiny(tmp_path / "sweep", trials=3, sampler="random")
    assert [row.state for row in again.carry_out().rows] == ["complete"] * 3
    assert again.board.started == 0
    longer = tiny(tmp_path / "sweep", trials=5, sampler="random")
    longer.refuse_early()
    assert facts(longer.carry_out()) == facts(undisturbed[1])  # tpe draws at random at first
    assert list(longer.board.ended) == [3, 4]


def test_another_search_in_the_folder_is_refused(undisturbed):
    search, _ = undisturbed
    other = tiny(search.folder, sections={"finetune": {"epochs": 3}})
    with pytest.raises(OptionError, match=r"holds another search: finetune.epochs was 2, now 3"):
        other.refuse_early()
    with pytest.raises(OptionError, match="is no search"):
        tiny(search.folder / "trials").refuse_early()


def test_a_grid_tries_all_combinations_in_order(tmp_path):
    search = {"finetune.learning_rate": "1e-3,1e-2", "finetune.batch_size": "64:128:64"}
    found = tiny(tmp_path / "sweep", search=search, trials=None).carry_out()
    assert [tuple(row.values.values()) for row in found.rows] == [*((0.001, 64), (0.001, 128), (0.01, 64), (0.01, 128))]


def test_a_trial_counts_by_the_mean_of_its_seeds(tmp_path):
    found = tiny(tmp_path / "sweep", trials=1, seeds=(0, 1)).carry_out()
    assert sorted(found.runs) == [0, 1]
    values = [metrics(folder)["valid"]["full"]["mrr@5"] for folder in found.runs.values()]
    assert found.best.value == pytest.approx(sum(values) / 2, abs=0)
    assert len(list(tmp_path.glob("pretrained/*"))) == 2


def test_a_trial_that_does_badly_is_ended_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("finetune_kit.studies.study.WARM_UP", 1)
    search = {"finetune.learning_rate": "1e-2,1e-7"}
    short = {"finetune": {"epochs": 4, "patience": 0}}
    found = tiny(tmp_path / "sweep", short, search=search, trials=None, pruner="median").carry_out()
    good, bad = found.rows
    assert (good.state, bad.state) == ("complete", "pruned")
    assert bad.about["epochs"] < good.about["epochs"] == 4
    assert found.best == good


def test_a_trial_that_fails_costs_itself_alone_and_is_tried_again(tmp_path, monkeypatch):
    build, bad = FinetuneAll.build, []

    def fail(self):
        bad.append(0)
        if len(bad) == 2:
            raise RuntimeError("no luck")
        build(self)

    search = tiny(tmp_path / "sweep", trials=3)
    with monkeypatch.context() as patched:
        patched.setattr(FinetuneAll, "build", fail)
        found = search.carry_out()
    assert [row.state for row in found.rows] == ["complete", "failed", "complete"]
    assert "RuntimeError: no luck" in found.rows[1].about["fault"]
    assert "no luck" in search.board.ended[1]
    again = tiny(tmp_path / "sweep", trials=3)
    after = again.carry_out()
    assert list(again.board.ended) == [1]
    assert [row.state for row in after.rows] == ["complete"] * 3
    assert after.rows[1].values == found.rows[1].values


def test_no_success_at_all_is_told(tmp_path, monkeypatch):
    def fail(self):
        raise RuntimeError("no luck")

    monkeypatch.setattr(FinetuneAll, "build", fail)
    with pytest.raises(FinetuneKitError, match=r"no trial succeeded: .*RuntimeError: no luck"):
        tiny(tmp_path / "sweep", trials=1).carry_out()


def test_two_commands_share_one_search(tmp_path):
    sweep = tiny(tmp_path / "sweep", trials=3, sampler="random").sweep
    with at_work(tmp_path / "sweep") as one, at_work(tmp_path / "sweep") as two:
        first, second = Study(sweep, tmp_path / "sweep", one), Study(sweep, tmp_path / "sweep", two)
        given = [first.next(), second.next(), first.next()]
        assert [trial.place for trial in given] == [0, 1, 2]
        assert first.next() is second.next() is None
        second.close(given[1], "failed", fault="no luck")
        assert first.next() is None, "its command is there and has seen it fail"
        assert [row.state for row in first.rows()] == ["running", "failed", "running"]
    with at_work(tmp_path / "sweep") as three:
        third = Study(sweep, tmp_path / "sweep", three)
        taken_over = [third.next() for _ in range(3)]
        assert sorted(trial.place for trial in taken_over) == [0, 1, 2]
        assert {trial.place: trial.values for trial in taken_over} == {trial.place: trial.values for trial in given}


def test_a_label_is_searched_by_its_macro_f1(tmp_path):
    task = {"run": {"strategy": "finetune-all", "task": "label:kind"}}
    found = tiny(tmp_path / "sweep", task, trials=1).carry_out()
    assert found.best.value == metrics(found.runs[0])["valid"]["f1_macro"]


def test_a_full_disk_ends_the_search(tmp_path, monkeypatch):
    def full(self):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(trial.Fitting, "carry_out", full)
    with pytest.raises(FinetuneKitError, match="somewhere: No space left on device"):
        tiny(tmp_path / "sweep").carry_out()

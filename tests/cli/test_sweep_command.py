import sys

import pytest

pytest.importorskip("optuna")
SHARED = ("--set", "data.users=100", "--max-length", "10", "--set", "backbone.dim=8", "--set", "backbone.num_blocks=1")
TINY = (*SHARED, "--set", "pretrain.epochs=1", "--epochs", "1", "--strategy", "uaf-hard")
SWEEP = ("sweep", *TINY, "--search", "finetune.learning_rate=1e-3:1e-1:log", "--output", "runs/sweep")


def test_run_takes_the_best_trial_and_gives_its_numbers(ftkit):
    found = ftkit(*SWEEP, "--trials", "2", "--json")
    assert found.code == 0
    best = found.json["best"]
    assert best["value"] == max(trial["value"] for trial in found.json["trials"])
    again = ftkit("run", "--config", best["config"], "--output", "runs/again", "--json").json
    assert again["test"] == best["runs"][0]["test"]
    assert again["valid"]["full"]["mrr@5"] == best["value"]
    assert "1/2 trial 0: finetune.learning_rate=" in found.err


def test_a_file_says_what_is_searched(ftkit, tmp_path):
    file = tmp_path / "search.toml"
    file.write_text(
        '[run]\nstrategy = "uaf-hard"\n\n[finetune]\nepochs = 1\nbatch_size = 8\n\n'
        '[sweep.search]\n"finetune.batch_size" = [64, 128]\n"strategy.temperature" = "1:3:1"\n'
    )
    planned = ftkit("sweep", "--config", str(file), "--dry-run", "--json").json
    assert (planned["sampler"], planned["trials"]) == ("grid", 6)
    assert planned["search"] == {"finetune.batch_size": "64,128", "strategy.temperature": "1:3:1"}
    drawn = ftkit("sweep", "--config", str(file), "--trials", "4", "--pruner", "median", "--dry-run")
    assert "4 trials (tpe, pruner median)" in drawn.out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (SWEEP, "a grid needs values"),
        ((*SWEEP, "--trials", "2", "--sampler", "gird"), "'grid', 'random' or 'tpe'"),
        ((*SWEEP, "--trials", "2", "--search", "finetune.lr=1:2"), "no option finetune.lr"),
        ((*SWEEP, "--trials", "2", "--epochs", "2", "--search", "finetune.epochs=1:2"), "both set and searched"),
        ((*SWEEP, "--trials", "2", "--search", "finetune.learning_rate=1:2"), "given twice"),
        ((*SWEEP, "--trials", "2", "--workers", "0"), "--workers 0: give 1 or more"),
        (("sweep", *TINY, "--trials", "2"), "nothing is searched"),
        (("sweep", "--trials", "2"), "which strategy?"),
    ],
)
def test_what_is_wrong_is_told_before_anything_trains(ftkit, tmp_path, arguments, said):
    done = ftkit(*arguments)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_optuna_that_is_missing_is_told_before_anything_trains(ftkit, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = ftkit(*SWEEP, "--trials", "2")
    assert (done.code, done.err) == (2, "ftkit: ftkit sweep needs Optuna: pip install 'finetune-kit[sweep]'\n")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", [("compare", "--strategies", "uaf-hard"), (*SWEEP, "--trials", "2")])
def test_ray_that_is_missing_is_told_before_anything_trains(ftkit, tmp_path, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = ftkit(*command, "--ray", "local")
    assert (done.code, done.err) == (2, "ftkit: --ray needs Ray: pip install 'finetune-kit[ray]'\n")
    assert not (tmp_path / "runs").exists()

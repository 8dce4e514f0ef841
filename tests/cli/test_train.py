import json
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_kit.cli import main as module
from finetune_kit.config import read_toml

TINY = [
    *("--set", "data.users=100"),
    *("--set", "data.max_length=10"),
    *("--set", "backbone.dim=8"),
    *("--set", "backbone.num_blocks=1"),
    *("--set", "pretrain.epochs=1"),
]
HARD = ["run", "--strategy", "uaf-hard", "--epochs", "1", *TINY]


def test_a_run_leaves_a_folder_that_tells_everything(ftkit):
    done = ftkit(*HARD, "--output", "out", "--json")
    assert done.code == 0
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert done.json == {"folder": "out", **metrics}
    assert metrics["strategy"] == "uaf-hard"
    assert set(metrics["test"]) == {"full", "sampled"}
    names = {path.name for path in Path("out").iterdir()}
    assert names >= {"config.toml", "metrics.json", "model.json", "model.safetensors", "history.parquet"}
    assert names >= {"instances.parquet", "policy.parquet", "split.parquet", "log.jsonl", "last"}
    assert not [name for name in names if name.endswith((".pkl", ".pt", ".partial"))]


def test_without_json_the_result_is_a_table_and_progress_goes_to_stderr(ftkit):
    done = ftkit(*HARD, "--output", "out")
    assert " uaf-hard " in done.out
    assert " popularity " in done.out
    assert done.out.splitlines()[-1] == "out"
    assert "pre-trained backbone" in done.err
    assert "pre-trained backbone" not in done.out


def test_the_pre_trained_backbone_is_reused(ftkit):
    ftkit(*HARD, "--output", "one")
    done = ftkit("run", "--strategy", "finetune-cls", "--epochs", "1", *TINY, "--output", "other")
    assert "(reused)" in done.err
    assert len(list(Path("pretrained").iterdir())) == 1


def test_runs_without_an_output_get_a_folder_of_their_own_each(ftkit):
    arguments = ["run", "--strategy", "finetune-zero", "--epochs", "1", *TINY, "--json"]
    one, other = (Path(ftkit(*arguments).json["folder"]) for _ in range(2))
    assert one.parent == other.parent == Path("runs")
    assert other.name == f"{one.name}-2"
    assert Path(ftkit(*arguments, "--resume").json["folder"]) == other


def test_a_dry_run_shows_the_plan_and_writes_nothing(ftkit, monkeypatch, tmp_path):
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "untouched"))
    done = ftkit(*HARD, "--dry-run", "--json")
    assert done.code == 0
    assert done.json["config"]["backbone"]["dim"] == 8
    assert 0 < done.json["trainable_parameters"] <= done.json["total_parameters"]
    assert "task.head.weight" in done.json["trained"]
    assert list(tmp_path.iterdir()) == []
    assert "would train" in ftkit(*HARD, "--dry-run").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategy", "peterec"], "no strategy named 'peterec'."),
        (["--stratgy", "uaf-hard"], "no such option: --stratgy"),
        ([], "which strategy? Add --strategy NAME"),
        (["--strategy", "uaf-hard", "--epochs", "many"], "invalid value for '--epochs'"),
        (
            ["--strategy", "uaf-hard", "--epochs", "0"],
            "finetune.epochs = 0: input should be greater than or equal to 1",
        ),
        (
            ["--strategy", "uaf-hard", "--set", "strategy.temprature=5"],
            "no option strategy.temprature. Did you mean 'temp",
        ),
        (
            ["--strategy", "uaf-hard", "--set", "finetune.epochs=1", "--epochs", "1"],
            "--epochs and --set finetune.epochs",
        ),
        (["--strategy", "uaf-hard", "--set", "x"], "--set 'x' is not section.option=value"),
        (
            ["--strategy", "uaf-hard", "--data", "nowhere"],
            "no dataset folder at 'nowhere', and no dataset of that name.",
        ),
        (["--strategy", "uaf-hard", "--config", "nowhere.toml"], "no configuration file 'nowhere.toml'"),
        (["--strategy", "uaf-hard", "--device", "gpu"], "--device 'gpu' is no device."),
        (
            ["--strategy", "uaf-hard", "--precision", "8"],
            "--precision '8' is none of 32, bf16-mixed, 16-mixed",
        ),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_code_2(ftkit, arguments, message):
    done = ftkit("run", *arguments, "--json")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"ftkit: {message}")
    assert done.err.count("\n") == 1


def test_a_mistake_has_a_traceback_only_when_asked_for(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ftkit", "--traceback", "run", "--strategy", "peterec"])
    with pytest.raises(ValueError, match="no strategy named 'peterec'"):
        module.main()


def test_a_misspelt_strategy_names_what_is_installed_also_from_a_shell(tmp_path):
    code = "from finetune_kit.cli.main import main; main()"
    command = [sys.executable, "-c", code, "run", "--strategy", "finetune-al"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Did you mean 'finetune-all'? Installed: " in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_stands_in_the_output_is_kept_unless_overwrite_is_given(ftkit):
    ftkit(*HARD, "--output", "out")
    before = Path("out/metrics.json").read_bytes()
    done = ftkit(*HARD, "--output", "out")
    assert done.code == 2
    assert done.err == "ftkit: --output 'out' is not empty: --resume goes on with it, --overwrite replaces it\n"
    assert Path("out/metrics.json").read_bytes() == before
    assert ftkit(*HARD, "--output", "out", "--overwrite").code == 0
    assert Path("out/metrics.json").read_bytes() != before  # other seconds


def test_overwrite_spares_what_is_no_run(ftkit):
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    done = ftkit(*HARD, "--output", "mine", "--overwrite")
    assert done.code == 2
    assert "it is no run; name another folder" in done.err
    assert Path("mine/thesis.txt").exists()


def test_the_configuration_of_a_run_makes_the_same_run_again(ftkit):
    first = ftkit(*HARD, "--output", "out", "--json").json
    again = ftkit("run", "--config", "out/config.toml", "--output", "again", "--json").json
    assert (again["test"], again["valid"]) == (first["test"], first["valid"])
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()


def test_options_on_the_command_line_override_those_of_the_file(ftkit):
    ftkit(*HARD, "--output", "out")
    done = ftkit(
        "run",
        "--config",
        "out/config.toml",
        "--set",
        "strategy.temperature=3",
        "--seed",
        "4",
        "--dry-run",
        "--json",
    )
    assert done.json["config"]["strategy"]["temperature"] == 3
    assert done.json["config"]["run"]["seed"] == 4
    assert done.json["config"]["backbone"]["dim"] == 8


def test_finetune_starts_from_a_pre_trained_backbone_or_from_a_run_of_it(ftkit):
    pretrained = ftkit("pretrain", *TINY, "--output", "bases", "--json").json["folder"]
    assert Path(pretrained).parent == Path("bases")
    one = ftkit("finetune", "--from", pretrained, "--strategy", "finetune-cls", "--epochs", "1", "--output", "one")
    assert one.code == 0
    other = ftkit("finetune", "--from", "one", "--strategy", "finetune-all", "--epochs", "1", "--output", "other")
    assert other.code == 0
    assert (
        json.loads(Path("other/model.json").read_text())["base"]["hash"]
        == (json.loads((Path(pretrained) / "model.json").read_text())["hash"])
    )
    assert read_toml(Path("other/config.toml"))["backbone"]["dim"] == 8
    assert list(Path("bases").iterdir()) == [Path(pretrained)]


def test_finetune_needs_a_folder_with_a_pre_trained_backbone_in_it(ftkit):
    done = ftkit("finetune", "--from", "nowhere", "--strategy", "finetune-cls")
    assert done.code == 2
    assert "--from 'nowhere' is no run and no pre-trained backbone" in done.err
    ftkit("run", "--strategy", "finetune-zero", "--epochs", "1", *TINY, "--output", "zero")
    done = ftkit("finetune", "--from", "zero", "--strategy", "finetune-cls")
    assert done.code == 2
    assert "--from 'zero' was not pre-trained" in done.err


def test_evaluate_gives_a_run_s_own_numbers_again_and_writes_nothing(ftkit):
    first = ftkit(*HARD, "--output", "out", "--json").json
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    again = ftkit("evaluate", "out", "--json").json
    assert (again["test"], again["valid"]) == (first["test"], first["valid"])
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before
    narrow = ftkit("evaluate", "out", "--protocol", "full", "--set", "evaluation.cutoffs=3", "--json").json
    assert set(narrow["test"]) == {"full"}
    assert "hr@3" in narrow["test"]["full"]
    assert " uaf-hard " in ftkit("evaluate", "out").out


def test_evaluate_says_what_is_wrong_with_a_folder_that_is_no_run(ftkit):
    Path("empty").mkdir()
    for folder in ("empty", "nowhere"):
        done = ftkit("evaluate", folder)
        assert (done.code, done.out) == (2, "")
        assert folder in done.err
        assert done.err.count("\n") == 1


@pytest.mark.parametrize("option", ["run.seed=1", "data.split=user", "data.fraction=0.5", "strategy.temperature=1"])
def test_evaluate_refuses_what_would_mix_training_and_test(ftkit, option):
    ftkit(*HARD, "--output", "out")
    done = ftkit("evaluate", "out", "--set", option)
    assert done.code == 2
    assert done.err.startswith(f"ftkit: {option.partition('=')[0]} decided the run's training")


def test_evaluate_may_change_what_acts_in_evaluation_alone(ftkit):
    ftkit(*HARD[:2], "uaf-random", *HARD[3:], "--output", "out")
    own = ftkit("evaluate", "out", "--json").json["gates"]["mean"]
    other = ftkit("evaluate", "out", "--json", "--set", "strategy.evaluation_seed=7").json["gates"]["mean"]
    assert own != other
    done = ftkit("evaluate", "out", "--set", "strategy.share=0.1")
    assert done.code == 2
    assert done.err == (
        "ftkit: strategy.share decided the run's training; evaluate takes evaluation.*, strategy.evaluation_seed, "
        "--device, --precision and --deterministic\n"
    )


def test_evaluate_says_what_does_not_exist_and_what_has_no_effect(ftkit):
    ftkit("run", "--strategy", "finetune-cls", "--epochs", "1", *TINY, "--task", "label:kind", "--output", "out")
    done = ftkit("evaluate", "out", "--set", "strategy.evaluation=sample")
    assert done.err == "ftkit: no option strategy.evaluation of 'finetune-cls'. Options of strategy: none\n"
    done = ftkit("evaluate", "out", "--protocol", "full")
    assert done.err == "ftkit: --protocol has no effect: 'out' tells label:kind, it ranks nothing\n"
    Path("compared").mkdir()
    Path("compared/comparison.json").touch()
    assert "there is no model.json; its runs are in 'compared/runs'" in ftkit("evaluate", "compared").err


def test_evaluate_refuses_another_dataset_naming_both_fingerprints(ftkit):
    ftkit(*HARD, "--output", "out")
    ftkit("data", "prepare", "synthetic", "--users", "70", "--output", "other")
    done = ftkit("evaluate", "out", "--data", "other")
    assert done.code == 2
    assert "was trained on the dataset with fingerprint" in done.err


def test_a_strategy_s_mistake_is_found_before_pretraining_and_loses_nothing(ftkit):
    ftkit(*HARD, "--output", "out")
    before = Path("out/metrics.json").read_bytes()
    arguments = (
        "--strategy",
        "finetune-last",
        "--set",
        "strategy.n=9",
        "--output",
        "out",
        "--overwrite",
        "--seed",
        "5",
    )
    done = ftkit("run", *HARD[3:], *arguments)
    assert done.code == 2
    assert "strategy.n = 9" in done.err
    assert "pre-trained backbone" not in done.err
    assert Path("out/metrics.json").read_bytes() == before


def test_a_dataset_that_changed_since_is_refused_by_resume_and_finetune(ftkit):
    ftkit("data", "prepare", "synthetic", "--users", "60", "--output", "made")
    run = ["run", "--strategy", "uaf-hard", "--epochs", "1", "--data", "made", *TINY[2:]]
    assert ftkit(*run, "--output", "out").code == 0
    ftkit("data", "prepare", "synthetic", "--users", "70", "--output", "made", "--overwrite")
    for again in ([*run, "--resume"], ["finetune", "--from", "out", "--strategy", "finetune-cls"]):
        done = ftkit(*again, "--output", "out" if "--resume" in again else "other")
        assert done.code == 2
        assert "was made from a dataset with fingerprint" in done.err


def test_a_run_s_configuration_finds_its_dataset_from_another_folder(ftkit, monkeypatch):
    ftkit("data", "prepare", "synthetic", "--users", "60", "--output", "made")
    ftkit("run", "--strategy", "uaf-hard", "--epochs", "1", "--data", "made", *TINY[2:], "--output", "out")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert ftkit("run", "--config", "../out/config.toml", "--dry-run").code == 0
    assert ftkit("finetune", "--from", "../out", "--strategy", "finetune-cls", "--epochs", "1").code == 0


@pytest.mark.parametrize(
    ("body", "said"), [("1 / 0", "failed in build: ZeroDivisionError"), ("self.freeze(self)", "trains nothing")]
)
def test_a_strategy_that_fails_in_build_is_said_in_one_line(ftkit, monkeypatch, body, said):
    from ftkit_baselines.finetune import FinetuneAll

    monkeypatch.setattr(FinetuneAll, "build", lambda self: eval(body))
    done = ftkit("run", "--strategy", "finetune-all", "--epochs", "1", *TINY, "--output", "out")
    assert done.code == 2
    assert said in done.err.splitlines()[-1]
    assert not Path("out").exists()


def test_one_process_is_told_that_it_divides_nothing(ftkit):
    sizes = ("--set", "backbone.dim=4", "--set", "backbone.num_blocks=1", "--set", "data.users=60")
    done = ftkit("run", "--strategy", "finetune-zero", "--epochs", "1", "--set", "run.tables=divided", *sizes)
    assert done.code == 0
    assert "warning: run.tables = divided has no effect: one process has nobody to divide them with" in done.err

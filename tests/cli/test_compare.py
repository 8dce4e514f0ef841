import csv
import importlib.util
import shlex
import sys
from pathlib import Path

import pytest

from finetune_kit.cli.comparison import _best_rows
from finetune_kit.comparison.record import read_results
from finetune_kit.comparison.results import Result, Results, Setting
from finetune_kit.comparison.statistics import CAVEAT
from finetune_kit.comparison.write import as_json

EXAMPLE = Path(__file__).parents[2] / "examples" / "03_compare.py"
TINY = [
    *("--set", "data.users=150"),
    *("--set", "data.max_length=10"),
    *("--set", "backbone.dim=8"),
    *("--set", "backbone.num_blocks=2"),
    *("--set", "pretrain.epochs=1"),
    *("--epochs", "1"),
    *("--output", "out"),
]
TWO = ["compare", "--strategies", "finetune-cls,uaf-hard", "--seeds", "0,1", "--no-report", *TINY]


def test_a_comparison_prints_its_tables_in_80_columns(ftkit):
    done = ftkit(*TWO)
    assert done.code == 0, done.err
    tables = done.out.partition("tuning budget")[0]
    assert max(len(line) for line in tables.splitlines()) <= 80
    assert tables.count(" finetune-cls ") == 4  # two protocols, one pair, one line of costs
    assert tables.count(" popularity ") == 2
    assert " minus " in tables
    assert " ".join(tables.split()).count(CAVEAT) == 2  # of pairs, of the single choice
    assert "tuning budget: each row had 1 configuration, no search; at most 1 epochs, patience 10" in done.out
    assert done.out.endswith("tables.md, table.tex, table.csv in\nout\n")
    assert "4/4 uaf-hard, seed 1" in done.err
    assert "(reused)" not in done.err
    assert sorted(path.name for path in Path().iterdir()) == ["out", "pretrained"]


def test_json_has_everything_and_the_same_command_runs_nothing_again(ftkit):
    first = ftkit(*TWO, "--json")
    again = ftkit(*TWO, "--json")
    assert first.json == again.json == {**as_json(read_results(Path("out")), Path("out")), "report": None}
    assert again.err.count("there already") == 4
    assert [row["name"] for row in again.json["rows"]] == ["finetune-cls", "uaf-hard"]
    assert {pair["metric"] for pair in again.json["pairs"]} == {"mrr@5", "hr@5"}
    with Path("out/table.csv").open() as file:
        values = [float(row["test_full_mrr@5"]) for row in csv.DictReader(file) if row["strategy"] == "uaf-hard"]
    assert again.json["rows"][1]["test"]["full"]["mrr@5"]["mean"] == pytest.approx(sum(values) / 2)


def test_a_row_without_all_seeds_is_not_the_best(tmp_path):
    def row(strategy, seed, value):
        return Result(Setting(strategy), seed, tmp_path, {"test": {"full": {"mrr@5": value}}})

    results = Results("toy", "items", (row("torn", 0, 0.9), row("whole", 0, 0.1), row("whole", 1, 0.2)))
    assert _best_rows(results) == [Setting("whole")]


def test_one_strategy_and_one_seed_make_a_table_without_pairs_and_deviations(ftkit):
    done = ftkit("compare", "--strategies", "finetune-cls", "--seeds", "3", "--no-report", *TINY)
    assert done.code == 0, done.err
    assert "minus" not in done.out
    assert "±" not in done.out
    assert "second best" not in done.out
    Path("out/report.html").touch()
    plan = ftkit("compare", "--strategies", "finetune-cls", "--seeds", "3", *TINY, "--dry-run").out
    assert "1 run, 0 to train, below out\ndataset synthetic, task items, backbone nextitnet\ntuning budget" in plan
    assert "\noptions that are not at their default: data.users=150" in plan
    again = ftkit("compare", "--strategies", "finetune-cls", "--seeds", "3", "--no-report", *TINY)
    assert "warning: report.html in out is of an earlier call, not of these tables" in again.err
    next(Path("out").glob("runs/*/history.parquet")).unlink()
    damaged = ftkit("compare", "--strategies", "finetune-cls", "--seeds", "3", "--no-report", *TINY)
    assert (damaged.code, damaged.err.count("\n")) == (2, 1)
    assert "its history.parquet is missing: delete this folder, the same command trains it again" in damaged.err


def test_variants_fractions_and_tuning_in_one_command(ftkit):
    arguments = ["--set", "strategy.policy=conv,gru", "--fraction", "1.0,0.5", "--tune", "finetune.batch_size=32,64"]
    command = ["compare", "--strategies", "finetune-cls,uaf-hard", "--seeds", "1", "--no-report", *TINY, *arguments]
    plan = ftkit(*command, "--dry-run", "--json").json
    assert len(plan["runs"]) == 3 * 2 * 2
    assert not Path("out").exists()
    assert not any(run["finished"] for run in plan["runs"])
    assert "each row had 2 configurations (finetune.batch_size=32,64)" in plan["budget"]
    text = ftkit(*command, "--dry-run").out
    assert "uaf-hard policy=gru 50% data, finetune.batch_size=64, seed 1\n" in text
    assert "12 runs, 12 to train, below out\n" in text
    done = ftkit(*command, "--fraction", "0.5", "--json")
    assert done.code == 0, done.err
    assert [(row["name"], row["fraction"]) for row in done.json["rows"]] == [
        *(("finetune-cls", 0.5), ("uaf-hard policy=conv", 0.5), ("uaf-hard policy=gru", 0.5))
    ]
    assert sum("validation chose finetune.batch_size=" in note for note in done.json["notes"]) == 3


def test_a_config_file_gives_options_but_not_its_strategy_and_seed(ftkit):
    ftkit("run", "--strategy", "uaf-hard", "--seed", "5", *TINY[:-2], "--output", "one", "--set", "data.fraction=0.5")
    arguments = ["compare", "--config", "one/config.toml", "--output", "out", "--dry-run", "--json", "--seeds", "0"]
    runs = ftkit(*arguments, "--strategies", "uaf-hard,finetune-cls", "--tune", "finetune.epochs=1,2").json["runs"]
    assert [run["run"] for run in runs] == [
        f"{name}, finetune.epochs={epochs}, seed 0" for name in ("uaf-hard", "finetune-cls") for epochs in (1, 2)
    ]
    assert all("-f0.5-s0-" in run["folder"] for run in runs)


def test_a_profile_label_is_compared_by_accuracy_and_macro_f1(ftkit):
    done = ftkit(*TWO, "--task", "label:kind", "--json")
    assert done.code == 0, done.err
    assert set(done.json["rows"][0]["test"]) == {"accuracy", "f1_macro"}
    assert [row["name"] for row in done.json["references"]] == ["majority"]
    assert "Accuracy" in ftkit(*TWO, "--task", "label:kind").out


def test_missing_runs_end_with_exit_code_2(ftkit):
    arguments = ["compare", "--strategies", "finetune-all", "--seeds", "0,1", "--no-report", *TINY]
    arguments[arguments.index("--epochs") + 1] = "3"
    done = ftkit(*arguments, "--set", "finetune.learning_rate=1e-3,1e30")
    assert done.code == 2
    assert done.out.count("missing: finetune-all finetune.learning_rate=1e30, seeds 0, 1") == 1
    assert done.err.endswith("ftkit: 2 of 4 runs failed, see above; the same command tries them again\n")


def test_an_interrupted_comparison_says_how_to_go_on(ftkit, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("finetune_kit.training.run.Runner.finetune", interrupt)
    done = ftkit(*TWO)
    command = shlex.join(["ftkit", *TWO, "--resume"])
    assert (done.code, done.err.splitlines()[-1]) == (130, f"ftkit: interrupted; go on with: {command}")


def test_resume_goes_on_with_this_comparison_alone(ftkit):
    one = ["compare", "--strategies", "finetune-cls", "--seeds", "0", "--no-report", *TINY]
    assert ftkit(*one, "--resume").code == 0
    assert "1/1 finetune-cls, seed 0: there already" in ftkit(*one, "--resume").err
    other = ["compare", "--strategies", "finetune-cls,finetune-all", "--seeds", "0,1", "--no-report", *TINY]
    done = ftkit(*other, "--resume", "--learning-rate", "0.1")
    told = (
        "strategies was ['finetune-cls'], now ['finetune-cls', 'finetune-all']; seeds was [0], now [0, 1]; "
        "finetune.learning_rate was not there, now '0.1'"
    )
    assert (done.code, done.err.splitlines()[-1]) == (
        2,
        f"ftkit: 'out' holds a comparison with other options: {told}; give those, or leave --resume out to compare "
        "this too",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which strategies? Add --strategies NAME,NAME; `ftkit strategies` lists them"),
        (["--strategies", ","], "strategies: none given"),
        (["--strategies", "uaf-hrd"], "no strategy named 'uaf-hrd'. Did you mean 'uaf-hard'?"),
        (["--strategies", "uaf-hard", "--seeds", ""], "seeds: none given"),
        (["--strategies", "uaf-hard", "--seeds", "one"], "--seeds 'one': numbers with commas between, e.g. --seeds 0"),
        (["--strategies", "uaf-hard", "--fraction", "1.0;0.1"], "--fraction '1.0;0.1': numbers with commas between"),
        (["--strategies", "uaf-hard", "--seeds", "0,-1"], "--seeds '0,-1': a seed is 0 or more, e.g. --seeds 0,1,2"),
        (["--strategies", "uaf-hard", "--fraction", "0"], "--fraction '0': a share is above 0 and at most 1"),
        (["--strategies", "uaf-hard", "--set", "data.fraction=0.1"], "give --fraction instead"),
        (["--strategies", "uaf-hard", "--set", "run.strategy=mtl"], "give --strategies instead"),
        (["--strategies", "uaf-hard", "--epochs", "1", "--set", "finetune.epochs=2"], "--epochs and --set finetune.ep"),
        (["--strategies", "uaf-hard", "--tune", "epochs=2"], "--tune 'epochs=2' is not section.option=v1,v2"),
        (["--strategies", "uaf-hard", "--tune", "finetune.epochs=2", "--epochs", "2"], "is both set and tuned"),
        (["--strategies", "uaf-hard", *["--tune", "finetune.epochs=2"] * 2], "--tune finetune.epochs is given twice"),
        (["--strategies", "uaf-hard", "--data", "nowhere"], "no dataset folder at 'nowhere'"),
        (["--strategies", "uaf-hard", "--task", "label:knd"], "no label 'knd'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(ftkit, arguments, message):
    done = ftkit("compare", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not list(Path().iterdir())


PAPER = [
    *("finetune-zero", "finetune-cls", "finetune-last1", "finetune-last2", "finetune-all"),
    *("mtl", "peterrec", "uaf-random", "uaf-hard", "uaf-soft", "uaf-rl"),
]


def test_compare_all_strategies_of_the_paper(ftkit):
    done = ftkit("compare", "--strategies", ",".join(PAPER), "--seeds", "0,1", "--no-report", "--json", *TINY)
    assert done.code == 0, done.err
    assert [row["name"] for row in done.json["rows"]] == PAPER
    assert all(len(row["runs"]) == 2 for row in done.json["rows"])
    assert len(done.json["pairs"]) == 2 * 55
    assert len(list(Path("pretrained").iterdir())) == 2


def test_the_command_and_the_example_in_python_give_the_same_numbers(ftkit, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("compare_example", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "compare_example", example)
    spec.loader.exec_module(example)
    results = example.main(steps=1, users=100, folder=Path("python"))
    assert "| finetune-all |" in capsys.readouterr().out
    done = ftkit(
        *("compare", "--strategies", "finetune-cls,finetune-all,uaf-hard", "--seeds", "0,1", "--no-report", "--json"),
        *(
            "--set",
            "data.users=100",
            "--max-length",
            "20",
            "--set",
            "backbone.dim=16",
            "--set",
            "backbone.num_blocks=2",
        ),
        *("--set", "pretrain.epochs=1", "--epochs", "1", "--learning-rate", "0.01", "--output", "shell/compare"),
    )
    assert done.code == 0, done.err
    expected = as_json(results, Path("python/compare"))
    assert done.json["pairs"] == expected["pairs"]
    assert [row["test"] for row in done.json["rows"]] == [row["test"] for row in expected["rows"]]
    assert [Path(run["folder"]).name for row in done.json["rows"] for run in row["runs"]] == [
        run.folder.name for run in results.runs
    ]

import json
import shutil
from pathlib import Path

import pytest

from finetune_kit.files import read_table

TINY = [
    *("--set", "data.users=100"),
    *("--set", "data.max_length=10"),
    *("--set", "backbone.dim=8"),
    *("--set", "backbone.num_blocks=2"),
    *("--set", "pretrain.epochs=1"),
]
HISTORY = '{"user": "somebody", "items": ["item00003", "item00004", "item00006"]}\n'


@pytest.fixture
def run(ftkit):
    assert ftkit("run", "--strategy", "finetune-last1", "--epochs", "1", *TINY, "--output", "runs/one").code == 0
    return "runs/one"


def test_a_merged_run_is_served_and_measured_without_its_base(ftkit, run):
    Path("h.jsonl").write_text(HISTORY)
    measured = ftkit("evaluate", run, "--json").json["test"]
    ftkit("recommend", run, "--input", "h.jsonl", "--output", "before.csv")
    done = ftkit("merge", run, "--output", "merged")
    assert done.out.startswith(
        "merged finetune-last1 into merged; scores of 64 made-up users differ by at most 0.0e+00"
    )
    shutil.rmtree("runs")
    assert ftkit("evaluate", "merged", "--json").json["test"] == measured
    assert ftkit("recommend", "merged", "--input", "h.jsonl", "--output", "after.csv").code == 0
    assert Path("after.csv").read_text() == Path("before.csv").read_text()
    done = ftkit("evaluate", "merged", "--set", "strategy.n=2")
    assert done.err == "ftkit: strategy.* has no effect: 'merged' is a merged run, a plain backbone with a head\n"


def test_fine_tuning_goes_on_from_it_and_never_measures_on_what_is_in_its_weights(ftkit, run):
    ftkit("merge", run, "--output", "merged")
    done = ftkit(
        "finetune", "--from", "merged", "--strategy", "peterrec", "--epochs", "1", "--seed", "7", "--output", "two"
    )
    assert done.code == 0, done.err
    assert "target instances keep the part that they had" in done.err
    one, two = (read_table(Path(folder) / "split.parquet") for folder in (run, "two"))
    parts = [
        {
            pair: part
            for *pair_, part in zip(table["user"], table["item"], table["part"], strict=True)
            for pair in [tuple(pair_)]
        }
        for table in (one, two)
    ]
    assert parts[0] == parts[1]
    assert ftkit("evaluate", "two", "--json").json["test"] == json.loads(Path("two/metrics.json").read_text())["test"]


def test_json_tells_what_was_merged(ftkit, run):
    told = ftkit("merge", run, "--output", "merged", "--json").json
    assert told["hash"] == json.loads(Path("merged/model.json").read_text())["hash"]
    assert (told["folder"], told["strategy"], told["difference"]) == ("merged", "finetune-last1", 0.0)


def test_mistakes_are_one_line_and_lose_nothing(ftkit, run):
    ftkit("merge", run, "--output", "merged")
    before = Path("merged/model.json").read_bytes()
    Path("mine").mkdir()
    Path("mine/thesis.txt").touch()
    base = next(Path("runs/pretrained").iterdir())
    for arguments, said in [
        (["nowhere", "--output", "out"], "'nowhere' holds no model"),
        ([run, "--output", "merged"], "--output 'merged' is not empty: --overwrite replaces it"),
        ([run, "--output", "mine", "--overwrite"], "it is no run; name another folder"),
        ([run, "--output", run, "--overwrite"], "is what is merged, or belongs to it"),
        ([run, "--output", str(base), "--overwrite"], "is what is merged, or belongs to it"),
        (["merged", "--output", "out"], "'merged' is merged already"),
        ([str(base), "--output", "out"], "holds a pretrained, not a fine-tuned run"),
        ([run, "--output", "h.jsonl/out"], ""),
    ]:
        Path("h.jsonl").touch()
        done = ftkit("merge", *arguments)
        assert (done.code, done.out) == (2, "")
        assert said in done.err
        assert done.err.count("\n") == 1
    assert Path("merged/model.json").read_bytes() == before
    assert not Path("out").exists()
    assert ftkit("merge", run, "--output", "merged", "--overwrite").code == 0


def test_a_strategy_that_decides_per_user_is_not_merged(ftkit):
    ftkit("run", "--strategy", "uaf-hard", "--epochs", "1", *TINY, "--output", "hard")
    done = ftkit("merge", "hard", "--output", "merged")
    assert done.code == 2
    assert done.err.startswith("ftkit: UafHard can't be merged into a plain NextItNet")
    assert not Path("merged").exists()

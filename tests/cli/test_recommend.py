import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import duckdb
import pytest
from small_run import make_runs

from finetune_kit.cli import main as module
from finetune_kit.cli import recommend as module_of_the_command


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with the runs ``items`` and ``label``, and their dataset ``made``."""
    return make_runs(tmp_path_factory.mktemp("runs"), items=[], label=["--task", "label:kind"])


@pytest.fixture
def ftkit(monkeypatch, capsys, tmp_path, runs):
    """Return a function that runs one command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["ftkit", "recommend", *arguments])
        with pytest.raises(SystemExit) as caught:
            module.main()
        return Done(caught.value.code, *capsys.readouterr())

    return run


HISTORIES = [
    {"user": "user00000003", "items": ["item00001", "item00002", "nothing"]},
    {"user": "новый", "items": ["item00007"]},
    {"user": "lost", "items": ["nothing", "like that"]},
    {"user": "empty", "items": []},
]


def write(path: str, rows=HISTORIES) -> str:
    Path(path).write_text("\n".join(json.dumps(row) for row in rows))
    return path


def rows_of(path: str) -> list[dict]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_file_of_histories_becomes_a_file_of_recommendations(ftkit, runs):
    done = ftkit(str(runs / "items"), "--input", write("in.jsonl"), "--output", "deep/out.csv", "--top", "3")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(
        "wrote 2 users × 3 items to deep/out.csv; 2 users without a usable history; "
        "3 of 6 events of unknown items skipped; "
    )
    rows = rows_of("deep/out.csv")
    assert [(row["user"], row["rank"]) for row in rows] == [
        *(("user00000003", rank) for rank in "123"),
        *(("новый", rank) for rank in "123"),
        ("lost", ""),
        ("empty", ""),
    ]
    assert [row["note"] for row in rows[5:]] == [
        "",
        "no known item in the history (2 unknown)",
        "no item in the history",
    ]
    assert all(row["item"].startswith("item") and float(row["score"]) for row in rows[:6])
    assert [path.name for path in Path("deep").iterdir()] == ["out.csv"]


def test_all_forms_of_the_same_histories_give_the_same(ftkit, runs):
    run = str(runs / "items")
    write("lists.jsonl")
    events = [
        {"u": row["user"], "i": item, "t": time}
        for row in HISTORIES
        for time, item in enumerate(row["items"] or [None])
    ]
    write("events.jsonl", events[::-1])
    Path("lists.csv").write_text(
        "user,items\n" + "".join(f"{row['user']},{' '.join(row['items'])}\n" for row in HISTORIES), encoding="utf-8"
    )
    found = []
    for path, *more in (
        ["lists.jsonl"],
        ["events.jsonl", "--user-column", "u", "--item-column", "i", "--time-column", "t"],
        ["lists.csv"],
    ):
        assert ftkit(run, "--input", path, "--output", "out.parquet", "--overwrite", *more).code == 0
        found.append(duckdb.sql("SELECT user, rank, item, score FROM 'out.parquet' ORDER BY user, rank").fetchall())
    assert [row[:3] for row in found[0]] == [row[:3] for row in found[2]]
    assert {row[:3] for row in found[0] if row[0] != "lost"} == {row[:3] for row in found[1] if row[0] != "lost"}


def test_json_has_the_totals_and_stdout_nothing_else(ftkit, runs):
    done = ftkit(str(runs / "items"), "--input", write("in.jsonl"), "--output", "out.jsonl", "--top", "9999", "--json")
    totals = json.loads(done.out)
    every = totals["top"]
    assert 9 < every < 9999
    assert totals["recommended"] == 2 * every
    assert (totals["users"], totals["without_history"], totals["all_seen"]) == (4, 2, 0)
    assert (totals["events"], totals["unknown_events"], totals["output"]) == (6, 3, "out.jsonl")
    lines = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [len(line["items"]) for line in lines] == [every, every, 0, 0]


def test_seen_items_are_left_out(ftkit, runs):
    arguments = [str(runs / "items"), "--input", write("in.jsonl"), "--output", "out.csv", "--top", "9999"]
    done = ftkit(*arguments, "--remove-seen", "--json")
    every, fewer = json.loads(done.out)["top"], json.loads(done.out)["recommended"]
    assert fewer < 2 * every
    assert "target items have the raw id of a source item and are seen where the history holds it" in done.err
    apart = ftkit(*arguments, "--remove-seen", "--separate-ids", "--overwrite", "--json")
    assert fewer < json.loads(apart.out)["recommended"] < 2 * every
    assert apart.err == ""
    said = ftkit(*arguments, "--remove-seen", "--overwrite")
    assert said.out.startswith(f"wrote 2 users × up to {every} items to out.csv; ")
    assert ftkit(*arguments, "--separate-ids").err.startswith("ftkit: --separate-ids has no effect without --remove-")


def test_a_label_s_run_gives_probabilities_of_its_classes(ftkit, runs):
    run = str(runs / "label")
    done = ftkit(run, "--input", write("in.jsonl"), "--output", "out.csv")
    assert done.out.startswith("wrote 2 users × 3 classes to out.csv; ")
    rows = rows_of("out.csv")[:3]
    assert {row["class"] for row in rows} == {"aligned", "shifted", "unrelated"}
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(1, abs=1e-5)
    done = ftkit(run, "--input", "in.jsonl", "--output", "other.csv", "--remove-seen")
    assert (done.code, done.err.partition(":")[2][:28]) == (2, " --remove-seen has no effect")


def test_what_is_doubtful_is_warned_of(ftkit, runs):
    write("in.jsonl", [{"user": 1, "item": "titles"}, {"user": 1, "item": "instead of ids"}])
    done = ftkit(str(runs / "items"), "--input", "in.jsonl", "--output", "out.csv")
    assert done.code == 0
    assert "warning: in.jsonl has no column 'time': events stand in the rows' order" in done.err
    assert "warning: the run knows none of the items in in.jsonl; are these raw ids of the source domain" in done.err
    done = ftkit(str(runs / "items"), "--input", "in.jsonl", "--output", "o.csv", "--time-column", "none")
    assert "no column 'time'" not in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--input", "in.jsonl", "--output", "out.csv"], "'nowhere' holds no model"),
        (["RUN", "--input", "in.jsonl", "--output", "out.xlsx"], "--output 'out.xlsx': can't tell its format"),
        (["RUN", "--input", "in.jsonl", "--output", "in.jsonl"], "--output 'in.jsonl' is --input"),
        (["RUN", "--input", "in.jsonl", "--output", "./in.jsonl", "--overwrite"], "--output 'in.jsonl' is --input"),
        (["RUN", "--input", "in.jsonl", "--output", "old.csv"], "--output 'old.csv' exists; --overwrite replaces it"),
        (["RUN", "--input", "in.jsonl", "--output", "dir.csv", "--overwrite"], "--output 'dir.csv' is no file"),
        (["RUN", "--input", "in.jsonl", "--output", "old.csv/out.csv"], "old.csv: "),
        (["RUN", "--input", "dir.csv", "--output", "out.csv"], "--input 'dir.csv' is a folder; name one file in it"),
        (["RUN", "--input", "none.csv", "--output", "out.csv"], "--input 'none.csv': no such file"),
        (["RUN", "--input", "torn.jsonl", "--output", "out.csv"], "torn.jsonl, line 2: no JSON"),
        (["RUN", "--input", "in.jsonl", "--output", "out.csv", "--top", "0"], "invalid value for '--top'"),
        (["RUN", "--input", "in.jsonl", "--output", "out.csv", "--data", "none"], "no dataset folder at 'none'"),
        (["RUN", "--input", "in.jsonl", "--output", "out.csv", "--device", "gpu"], "--device 'gpu' is no device"),
        (["RUN", "--output", "out.csv"], "missing option '--input'"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_leaves_no_file(ftkit, runs, arguments, message):
    write("in.jsonl")
    Path("old.csv").write_text("old")
    Path("dir.csv").mkdir()
    Path("torn.jsonl").write_text(json.dumps(HISTORIES[0]) + "\n{")
    there = sorted(path.name for path in Path().iterdir())
    done = ftkit(*(str(runs / "items") if one == "RUN" else one for one in arguments))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"ftkit: {message}")
    assert done.err.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == there
    assert Path("old.csv").read_text() == "old"


def test_overwrite_spares_the_run_and_its_dataset(ftkit, runs):
    write("in.jsonl")
    for path in (runs / "items" / "instances.parquet", runs / "made" / "users.parquet"):
        before = path.read_bytes()
        done = ftkit(str(runs / "items"), "--input", "in.jsonl", "--output", str(path), "--overwrite")
        assert (done.code, path.read_bytes()) == (2, before)
        assert "where --overwrite replaces nothing" in done.err


def test_another_dataset_and_what_is_no_run_are_refused(ftkit, runs, monkeypatch):
    write("in.jsonl")
    monkeypatch.setattr(sys, "argv", ["ftkit", "data", "prepare", "synthetic", "--users", "70", "--output", "other"])
    with pytest.raises(SystemExit):
        module.main()
    done = ftkit(str(runs / "items"), "--input", "in.jsonl", "--output", "out.csv", "--data", "other")
    assert done.code == 2
    assert "was trained on the dataset with fingerprint" in done.err
    (runs / "made").rename(runs / "moved")
    try:
        done = ftkit(str(runs / "items"), "--input", "in.jsonl", "--output", "out.csv")
        assert (done.code, "say with --data where it is" in done.err) == (2, True)
        there = str(runs / "moved")
        assert ftkit(str(runs / "items"), "--input", "in.jsonl", "--output", "out.csv", "--data", there).code == 0
    finally:
        (runs / "moved").rename(runs / "made")


def test_an_interrupted_one_leaves_nothing_behind(ftkit, runs, monkeypatch):
    from finetune_kit.recommendation import recommender

    def interrupt(*arguments):
        raise KeyboardInterrupt

    write("in.jsonl")
    monkeypatch.setattr(recommender.Recommender, "_scores", interrupt)
    for name in ("out.csv", "out.parquet"):
        assert ftkit(str(runs / "items"), "--input", "in.jsonl", "--output", name).code == 130
    assert [path.name for path in Path().iterdir()] == ["in.jsonl"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(runs, tmp_path):
    """A log of 4 million events, about 0.2 GB, and 10,000 users: the process grows by little more than the limit."""
    code = (
        "import resource, sys; from finetune_kit.cli.main import main\n"
        "try: main()\n"
        "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr)"
    )
    query = "SELECT hash(i) % {} AS user, format('item{{:05d}}', hash(i, 1) % 200) AS item, hash(i, 2) >> 32 AS time"
    peaks = []
    for users, events in ((10, 100), (10_000, 4_000_000)):
        source, output = tmp_path / f"{users}.parquet", tmp_path / f"out{users}.parquet"
        duckdb.sql(f"COPY ({query.format(users)} FROM range({events}) rows(i)) TO '{source}' (FORMAT parquet)")
        arguments = [str(runs / "items"), "--input", str(source), "--output", str(output), "--memory-limit", "150MB"]
        command = [sys.executable, "-c", code, "recommend", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stderr.split()[-1]))
        assert duckdb.sql(f"SELECT count(*) FROM '{output}'").fetchall() == [(users * 10,)]
    assert peaks[1] - peaks[0] < 300, f"{peaks} MB"


def test_help_does_not_import_torch():
    code = (
        "import sys; from finetune_kit.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: assert not {'torch', 'duckdb', 'numpy'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code, "recommend", "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert module_of_the_command.recommend.__doc__.split(",")[0] in done.stdout

import csv
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import duckdb
import fsspec
import pytest
from small_run import make_runs

from finetune_kit.cli import partitions
from finetune_kit.cli import recommend as command
from finetune_kit.data.dataset import Dataset
from finetune_kit.errors import StorageError
from finetune_kit.recommendation import folder as scoring
from finetune_kit.recommendation import job as of_worker
from finetune_kit.recommendation import recommender
from finetune_kit.recommendation.recommender import Recommender
from finetune_kit.training import assemble
from finetune_kit.training.assemble import load_run
from finetune_kit.training.device import make_fabric
from finetune_kit.workers import Here, Outcome


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    """Return the folder of a run."""
    return str(make_runs(tmp_path_factory.mktemp("runs"), run=[]) / "run")


@dataclass
class Losing:
    """Workers of this process, of whom one is lost whenever it takes on certain partitions."""

    times: dict[str, int] = field(default_factory=dict)
    """How often, by partition."""
    _lost: list = field(default_factory=list)

    def carry_out(self, prepare, tasks, answer=None):
        yield from Here().carry_out(prepare, [task for task in tasks if not self._loses(task)], answer)
        for task in self._lost:
            yield Outcome(task, fault="its worker was lost: killed by SIGKILL", is_lost=True)
        self._lost = []

    def _loses(self, task) -> bool:
        if not self.times.get(task.partition.name, 0):
            return False
        self.times[task.partition.name] -= 1
        self._lost.append(task)
        return True


@pytest.fixture(scope="module")
def loaded() -> Iterator[None]:
    """Load what is the same in all tests once; in those that are slow, workers of their own load it."""
    datasets = functools.cache(lambda folder: Dataset.open(folder.parent / "made"))
    runs = functools.cache(lambda folder: load_run(folder, datasets(folder)))
    recommenders = functools.cache(lambda folder, top: Recommender(runs(folder), make_fabric("cpu"), top=top))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "dataset_of", lambda folder, *_: datasets(folder))
        patch.setattr(of_worker, "Dataset", SimpleNamespace(open=lambda folder: None))
        for place in (assemble, of_worker):
            patch.setattr(place, "load_run", lambda folder, *_: runs(folder))
        for place in (recommender, of_worker):
            patch.setattr(place, "Recommender", lambda run, fabric, *, top, **_: recommenders(run.folder, top))
        yield


@pytest.fixture
def losing(monkeypatch, loaded) -> Losing:
    """Let this process be all workers."""
    workers = Losing()
    monkeypatch.setattr(partitions, "LocalWorkers", lambda num_workers, num_threads: workers)
    return workers


@pytest.fixture
def recommend(ftkit, run, losing):
    """Return a function that recommends for the partitions in ``in``, in the folder where we are."""

    def call(*arguments: str, source: str = "in", output: str = "out"):
        return ftkit("recommend", run, "--input", source, "--output", output, *arguments)

    return call


ROWS = {"day=1/a.csv": 6, "day=1/b.csv": 6, "day=2/a.csv": 7}
"""How many users each partition has."""


def write(name: str, users: int = 6) -> None:
    path = Path("in") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{name} {user},item{user:05d} item{user + 1:05d}\n" for user in range(users)]
    path.write_text("user,items\n" + "".join(rows))


def write_all() -> None:
    for name, users in ROWS.items():
        write(name, users)


def files(folder: str = "out") -> dict[str, bytes]:
    """Return what readers of a folder of tables see."""
    paths = (path for path in Path(folder).rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: content for name, content in found.items() if not name.startswith("_")}


def manifest() -> dict:
    return json.loads(Path("out/_manifest.json").read_text())


def test_each_partition_becomes_what_its_file_alone_would(recommend):
    write_all()
    done = recommend("--top", "3", source="in/day=*")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("wrote 19 users × 3 items to out in 3 partitions; 0 of 38 events of unknown items")
    assert done.out.rstrip().endswith(" users/s")
    assert sorted(files()) == sorted(ROWS)
    for name, content in files().items():
        assert recommend("--top", "3", source=f"in/{name}", output=f"alone/{name}").code == 0
        assert Path(f"alone/{name}").read_bytes() == content


def test_all_formats_go_side_by_side(recommend):
    Path("in").mkdir()
    duckdb.sql("COPY (SELECT 'p' AS \"user\", ['item00001'] AS items) TO 'in/p.parquet' (FORMAT parquet)")
    Path("in/j.jsonl").write_text('{"user": "j", "items": ["item00001"]}\n')
    Path("in/c.csv").write_text("user,items\nc,item00001\n")
    assert recommend("--top", "2").code == 0
    found = [
        duckdb.sql("SELECT item FROM 'out/p.parquet'").fetchall(),
        [(one["item"],) for one in json.loads(Path("out/j.jsonl").read_text())["items"]],
        [(row["item"],) for row in csv.DictReader(Path("out/c.csv").read_text().splitlines())],
    ]
    assert len(found[0]) == 2
    assert found[0] == found[1] == found[2]
    for name in ("p.parquet", "j.jsonl", "c.csv"):
        recommend("--top", "2", source=f"in/{name}", output=name)
        assert Path(name).read_bytes() == Path(f"out/{name}").read_bytes()


def test_the_manifest_sums_up_the_receipts(recommend):
    write_all()
    told = recommend("--json").json
    assert (told["users"], told["partitions"], told["partitions_before"]) == (19, 3, 0)
    assert told["users_per_second"] > 0
    assert [part["partition"] for part in manifest()["partitions"]] == sorted(ROWS)
    assert {part["partition"]: part["totals"]["users"] for part in manifest()["partitions"]} == ROWS
    assert manifest()["totals"]["recommended"] == told["recommended"] == 190
    again = recommend("--json").json
    assert (again["partitions_before"], again["users_per_second"]) == (3, 0)
    counts = ("users", "recommended", "events", "unknown_events", "without_history", "all_seen", "partitions")
    assert [again[key] for key in counts] == [told[key] for key in counts]


def test_finished_partitions_are_not_done_again_and_new_ones_are(recommend, monkeypatch):
    write_all()
    recommend()
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.csv")}
    write("new.csv", 2)
    done = recommend()
    assert done.out.startswith("wrote 21 users × 10 items to out in 4 partitions; ")
    assert "; 3 of them done before; " in done.out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(manifest()["partitions"]) == 4


def test_a_partition_that_fails_leaves_the_others_alone(recommend):
    write_all()
    broken = Path("in/day=1/b.csv")
    broken.write_text("user,items\nx,item00001\nno user of one column\n")
    done = recommend()
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines() == [
        "warning: partition day=1/b.csv: in/day=1/b.csv, line 3: columns expected: 2, found: 1; mend the file",
        "ftkit: 1 of 3 partitions failed, see above; the same command tries them again",
    ]
    assert sorted(files()) == ["day=1/a.csv", "day=2/a.csv"]
    assert not Path("out/_manifest.json").exists()
    write("day=1/b.csv")
    assert "2 of them done before" in recommend().out


def test_what_has_changed_is_told_and_done_again_where_that_is_asked_for(recommend):
    write_all()
    recommend()
    first = files()
    write("day=1/a.csv", 3)
    done = recommend()
    assert done.err.startswith("ftkit: in/day=1/a.csv has changed since it was scored; name another --output, or")
    assert recommend("--top", "3").err.startswith("ftkit: --output 'out' was made with --top 10, not 3; name another ")
    assert files() == first
    assert "2 of them done before" in recommend("--overwrite").out
    assert {name for name, content in files().items() if content != first[name]} == {"day=1/a.csv"}
    assert "done before" not in recommend("--overwrite", "--top", "3").out
    assert all(content != first[name] for name, content in files().items())
    Path("in/day=2/a.csv").unlink()
    done = recommend("--top", "3")
    assert done.err.startswith("ftkit: the partition 'day=2/a.csv' of 'out' is not in --input any more; name another")
    assert "2 of them done before" in recommend("--top", "3", "--overwrite").out
    assert sorted(files()) == ["day=1/a.csv", "day=1/b.csv"]
    assert len(manifest()["partitions"]) == 2
    Path("out/day=1/b.csv").write_text("mine")
    assert "out/day=1/b.csv has changed since it was written" in recommend("--top", "3").err
    Path("out/day=1/b.csv").unlink()
    assert "1 of them done before" in recommend("--top", "3").out
    assert len(files()) == 2


def test_an_output_is_made_with_one_run_alone(recommend, run):
    write_all()
    recommend()
    config = Path(run) / "config.toml"
    was = config.read_bytes()
    try:
        config.write_bytes(was + b"\n")
        done = recommend()
        assert done.err.startswith("ftkit: --output 'out' was made with run ")
        assert "has changed" in done.err or "not" in done.err
    finally:
        config.write_bytes(was)
    assert recommend().code == 0


def test_a_lost_worker_s_partition_is_tried_again(recommend, losing):
    write_all()
    losing.times = {"day=1/a.csv": 2, "day=2/a.csv": 1}
    Path("out/day=1/.a.csv.abc.partial").mkdir(parents=True)
    Path("out/_receipts/day=1").mkdir(parents=True)
    Path("out/_receipts/job.json").write_text("{}")
    done = recommend("--overwrite")
    assert done.code == 0
    assert done.err.count("its worker was lost: killed by SIGKILL; it is tried again at the end") == 3
    assert len(manifest()["partitions"]) == len(files()) == 3
    assert list(Path("out").rglob("*.partial")) == []


def test_a_partition_that_its_workers_are_lost_with_is_given_up(recommend, losing):
    write_all()
    losing.times = {"day=1/a.csv": scoring.TRIES}
    done = recommend()
    assert done.code == 2
    assert "warning: partition day=1/a.csv: its worker was lost: killed by SIGKILL\n" in done.err
    assert done.err.endswith("ftkit: 1 of 3 partitions failed, see above; the same command tries them again\n")
    assert len(files()) == 2
    assert recommend().code == 0
    assert len(files()) == 3


def test_a_user_whose_events_lie_in_two_files_is_found(recommend):
    Path("in").mkdir()
    for day in "ab":
        Path(f"in/{day}.csv").write_text(f"user,item,time\nboth,item00001,1\n{day},item00001,1\n")
    expected = "ftkit: user 'both' has events in 'a.csv' and in 'b.csv': two answers, each from a part of the history"
    for _ in range(2):  # when it happens, and when it is found in the receipts
        done = recommend()
        assert (done.code, done.err.startswith(expected)) == (2, True)
    assert not Path("out/_manifest.json").exists()
    Path("in/b.csv").write_text("user,item,time\nb,item00001,1\n")
    assert recommend("--overwrite").code == 0


def test_a_file_that_changes_while_it_is_read_fails(recommend, monkeypatch):
    write_all()

    def change(*arguments):
        totals = of_worker_recommends(*arguments)
        with Path("in/day=1/a.csv").open("a") as file:
            file.write("late,item00001\n")
        return totals

    of_worker_recommends = of_worker.recommend_file
    monkeypatch.setattr(of_worker, "recommend_file", change)
    done = recommend(source="in/day=1/a*")
    assert "in/day=1/a.csv was changed while it was read; the same command reads it again" in done.err
    assert files() == {}
    monkeypatch.undo()


def test_files_that_come_meanwhile_are_told_of(recommend, monkeypatch):
    write_all()
    was = partitions.recommend_partitions
    monkeypatch.setattr(partitions, "recommend_partitions", lambda *given: (was(*given), write("late.csv"))[0])
    done = recommend()
    assert done.code == 0
    assert "warning: 1 more file has come meanwhile, the first 'late.csv'; the same command scores what" in done.err
    assert len(manifest()["partitions"]) == 3


def test_an_address_is_scored_from_copies(recommend):
    write_all()
    remote = fsspec.filesystem("memory")
    try:
        remote.put("in", "histories", recursive=True)
        assert recommend(source="memory://histories").code == 0
        assert sorted(files()) == sorted(ROWS)
        recommend(output="here")
        assert files() == files("here")
        assert "3 of them done before" in recommend(source="memory://histories").out
        remote.pipe("histories/day=1/a.csv", b"user,items\nx,item00001\ny,item00001,\n")
        assert "day=1/a.csv has changed since it was scored" in recommend(source="memory://histories").err
        done = recommend("--overwrite", source="memory://histories")
        assert (
            "a.csv: memory:///histories/day=1/a.csv, line 3: columns expected: 2, found: 3; mend the file" in done.err
        )
    finally:
        remote.rm("histories", recursive=True)


def test_an_interrupted_one_leaves_whole_partitions_alone(recommend, monkeypatch):
    write_all()
    left = [None, None, KeyboardInterrupt()]

    def scores(self, user, histories):
        if error := left.pop(0):
            raise error
        return was(self, user, histories)

    was = Recommender._scores
    monkeypatch.setattr(Recommender, "_scores", scores)
    done = recommend()
    assert done.code == 130
    assert "warning: 2 of 3 partitions are done; the same command goes on" in done.err
    assert sorted(files()) == ["day=1/a.csv", "day=1/b.csv"]
    monkeypatch.setattr(Recommender, "_scores", was)
    assert "2 of them done before" in recommend().out


def test_a_full_disk_ends_the_job(recommend, monkeypatch):
    write_all()
    begun = []

    def full(recommender, layout, *_):
        begun.append(layout.path.name)
        if len(begun) == 2:
            raise StorageError("out can't be written: no room; make room")
        return recommends(recommender, layout, *_)

    recommends = of_worker.recommend_file
    monkeypatch.setattr(of_worker, "recommend_file", full)
    done = recommend()
    assert (done.code, len(begun), len(files())) == (2, 2, 1)
    assert done.err == "ftkit: out can't be written: no room; make room, then go on with the same command\n"
    assert "1 of them done before" in recommend().out


def test_the_password_of_an_address_is_not_shown(recommend):
    done = recommend(source="s3://ann:hunter2@bucket/x", output="out.csv")
    assert done.err.startswith("ftkit: --input 's3://bucket/x' is an address; name one file in it, or for --output a f")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--input", "in", "--output", "out.csv"],
            "--input 'in' is a folder; name one file in it, or for --output a f",
        ),
        (["--input", "none/*.csv", "--output", "out"], "--input 'none/*.csv': no such file or folder"),
        (["--input", "in", "--output", "in/out"], "--output 'in/out' and --input 'in' lie in one another"),
        (["--input", "in", "--output", "RUN/out"], "--output 'RUN/out' lies in the folder of the run; name another"),
        (["--input", "in", "--output", "MADE/out"], "--output 'MADE/out' lies in the folder of the dataset; name"),
        (["--input", "in", "--output", "mine", "--overwrite"], "--output 'mine' is not empty, and no folder of recom"),
        (["--input", "in", "--output", "file"], "--output 'file' is a file; for partitions name a folder"),
        (
            ["--input", "in/day=1/a.csv", "--output", "a.csv", "--workers", "2"],
            "--workers has no effect: --input 'in/da",
        ),
        (
            ["--input", "in/day=1/a.csv", "--output", "a.csv", "--ray", "local"],
            "--ray has no effect: --input 'in/day=1",
        ),
        (["--input", "in", "--output", "out", "--workers", "0"], "invalid value for '--workers'"),
        (
            ["--input", "in", "--output", "out", "--memory-limit", "much"],
            "--memory-limit 'much' is no amount of memory",
        ),
        (["--input", "in", "--output", "out", "--items-column", "x"], "in/day=1/a.csv has no column 'x'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(ftkit, run, losing, arguments, message):
    write_all()
    Path("file").write_text("mine")
    Path("mine").mkdir()
    Path("mine/file").write_text("mine")
    there = sorted(path.as_posix() for path in Path().rglob("*"))
    places = {"RUN": run, "MADE": str(Path(run).parent / "made")}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
        message = message.replace(name, place)
    done = ftkit("recommend", run, *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"ftkit: {message}")
    assert done.err.count("\n") == 1
    assert sorted(path.as_posix() for path in Path().rglob("*")) == there

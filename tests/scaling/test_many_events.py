"""The path of ``many_events.py`` at small sizes: it goes through, and memory does not grow with the log."""

import math
import subprocess
import sys

import duckdb
import pytest
from event_log import EventLog
from many_events import FTKIT, go_through
from measured import measure

from finetune_kit.data.dataset import Dataset

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")


def test_a_command_is_measured_with_all_its_processes(tmp_path):
    inner = "x = b'1' * (200 << 20); import time; time.sleep(0.5)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}]); print('done')"
    measured = measure([sys.executable, "-c", outer], tmp_path / "log")
    assert (measured.code, measured.output) == (0, "done\n")
    assert 200 < measured.peak < 300
    assert measured.seconds >= 0.5


def test_a_limit_stops_what_asks_for_more(tmp_path):
    measured = measure([sys.executable, "-c", "x = b'1' * (200 << 20)"], tmp_path / "log", limit=100)
    assert measured.code == 1
    assert "MemoryError" in measured.output


def test_a_log_is_written_in_days_and_once_more_as_a_whole(tmp_path):
    EventLog.of(3000).write(tmp_path)
    written = f"read_parquet('{tmp_path}/source/*/*.parquet', hive_partitioning = true)"
    facts = duckdb.execute(
        f"SELECT count(*), count(DISTINCT time), min(item), max(item), count(DISTINCT day) FROM {written}"
    )
    assert facts.fetchall() == [(3000, 3000, 1, 100, 30)]
    every = "SELECT bit_xor(hash(user, item, time)) FROM"
    parts, whole = (duckdb.execute(f"{every} {one}").fetchall() for one in (written, f"'{tmp_path}/histories.parquet'"))
    assert parts == whole


def test_users_and_items_are_drawn_independently_of_each_other(tmp_path):
    EventLog.of(30_000).write(tmp_path)
    log = f"FROM '{tmp_path}/histories.parquet'"
    (correlation,) = duckdb.execute(f'SELECT corr("user", ln(item)) {log}').fetchall()[0]
    assert abs(correlation) < 0.02
    (popular,) = duckdb.execute(f"SELECT count(*) / 30000 {log} WHERE item < 10").fetchall()[0]
    assert popular == pytest.approx(math.log(10) / math.log(301), abs=0.02)


@pytest.mark.slow
def test_many_events_are_prepared_learned_from_and_scored(tmp_path):
    stages = dict(go_through(tmp_path, 100_000, limit=4096))
    assert [name for name, measured in stages.items() if measured.code] == []
    assert list(stages) == ["write", "prepare", "pretrain", "run", "recommend"]
    assert Dataset.open(tmp_path / "dataset").manifest["counts"]["source_events"] == 100_000
    users = Dataset.open(tmp_path / "dataset").num_users
    scored = duckdb.execute(f"SELECT count(DISTINCT \"user\"), count(*) FROM '{tmp_path}/top.parquet'").fetchall()
    assert scored == [(users, 10 * users)]
    assert stages["run"].output.count("pretrain …") == 0, "the backbone beside it was not found"


@pytest.mark.slow
def test_preparing_ten_times_the_events_does_not_take_more_memory_than_the_limit_allows(tmp_path):
    peaks = []
    for events in (300_000, 3_000_000):
        folder = tmp_path / str(events)
        EventLog.of(events).write(folder)
        words = [
            "data",
            "prepare",
            "events",
            folder / "source",
            "--target",
            folder / "target",
            "--memory-limit",
            "100MB",
        ]
        measured = measure([*FTKIT, *words, "--output", folder / "dataset"], folder / "log")
        assert measured.code == 0, measured.output
        peaks.append(measured.peak)
    assert peaks[1] < peaks[0] + 100, peaks  # MiB; 2.7 million more events have 60 as three numbers each


def test_the_program_says_how_it_is_used():
    done = subprocess.run(
        [sys.executable, str(__file__).replace("test_many", "many"), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--events EVENTS" in done.stdout

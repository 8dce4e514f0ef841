"""Events from many files, packed files and addresses: what becomes of them, and of the files that can't be read."""

import gzip
import json
import logging
import random
from itertools import pairwise
from pathlib import Path

import duckdb
import fsspec
import numpy as np
import pytest

from finetune_kit.data.dataset import Dataset
from finetune_kit.data.inputs import MOST_LISTED
from finetune_kit.errors import DataError
from ftkit_datasets.events import Events, EventsOptions

ROWS = [(f"u{k % 7}", f"i{k % 5}", 100 - k) for k in range(60)]
TARGET = "user,item,time\nu1,p,200\nu2,q,201\n"


def text(rows) -> bytes:
    return "".join(f"{','.join(map(str, row))}\n" for row in [("user", "item", "time"), *rows]).encode()


def parquet(path: Path, rows, types="VARCHAR, VARCHAR, BIGINT") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    named = zip(("user", "item", "time"), types.split(", "), strict=True)
    columns = ", ".join(f"{name} {kind}" for name, kind in named)
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE rows ({columns})")
        if rows:
            connection.executemany("INSERT INTO rows VALUES (?, ?, ?)", rows)
        connection.execute(f"COPY rows TO '{path}' (FORMAT parquet)")
    return path


def zstd(path: Path, content: bytes) -> Path:
    """Pack text, whose every line must have three fields or none be looked at, as DuckDB does."""
    plain = path.with_name("plain.txt")
    plain.write_bytes(content)
    line = f"read_csv('{plain}', columns = {{'line': 'VARCHAR'}}, header = false, delim = '', quote = '', escape = '')"
    packing = "FORMAT csv, HEADER false, QUOTE '', ESCAPE '', DELIMITER '\x01', COMPRESSION zstd"
    duckdb.execute(f"COPY (SELECT line FROM {line}) TO '{path}' ({packing})")
    plain.unlink()
    return path


def prepare(folder: Path, source, **options) -> Dataset:
    (folder / "target.csv").write_text(TARGET)
    output = folder / f"out{len(list(folder.glob('out*')))}"
    Events(EventsOptions(**{"source": str(source), "target": str(folder / "target.csv"), **options})).prepare(output)
    return Dataset.open(output)


def refusal(folder: Path, source, **options) -> str:
    with pytest.raises(DataError) as caught:
        prepare(folder, source, **options)
    assert "\n" not in str(caught.value)
    assert not [path for path in folder.iterdir() if path.name.startswith((".", "out"))]
    return str(caught.value)


@pytest.fixture
def memory():
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


def test_the_dataset_is_the_same_however_events_are_divided_into_files(tmp_path):
    (tmp_path / "whole.csv").write_bytes(text(ROWS))
    whole = prepare(tmp_path, tmp_path / "whole.csv")
    for seed, pattern in enumerate(["", "day=*/*.parquet"]):
        rows, draw = ROWS.copy(), random.Random(seed)
        draw.shuffle(rows)
        cuts = [0, *sorted(draw.sample(range(1, len(rows)), 4)), len(rows)]
        for k, (first, last) in enumerate(pairwise(cuts)):
            parquet(tmp_path / f"log{seed}" / f"day={k}" / "part-0.parquet", rows[first:last])
        assert prepare(tmp_path, tmp_path / f"log{seed}" / pattern).fingerprint == whole.fingerprint


def test_events_of_one_time_stand_in_the_order_of_their_files_names(tmp_path):
    (tmp_path / "log" / "a").mkdir(parents=True)
    (tmp_path / "log" / "b.csv").write_bytes(text([("u1", "second", 1)]))
    (tmp_path / "log" / "a" / "z.csv").write_bytes(text([("u1", "first", 1)]))
    dataset = prepare(tmp_path, tmp_path / "log", on_bad="drop")
    items = dataset.raw_source_items()
    assert [items[k - 1] for k in dataset.sequences(np.array([1]), 2)[0]] == ["first", "second"]


def test_packed_text_and_addresses_give_the_same_dataset_as_one_plain_file(tmp_path, memory):
    (tmp_path / "plain.csv").write_bytes(text(ROWS))
    expected = prepare(tmp_path, tmp_path / "plain.csv").fingerprint
    (tmp_path / "log").mkdir()
    zstd(tmp_path / "log" / "a.csv.zst", text(ROWS[:30]))
    (tmp_path / "log" / "b.csv.gz").write_bytes(gzip.compress(text(ROWS[30:])))
    for name in ("a.csv.zst", "b.csv.gz"):
        memory.pipe(f"/log/[1]/{name}", (tmp_path / "log" / name).read_bytes())
    memory.pipe("/parquet/x.parquet", parquet(tmp_path / "x.parquet", ROWS).read_bytes())
    memory.pipe("/target.csv", TARGET.encode())
    for source in (
        f"{tmp_path}/log",
        f"file://{tmp_path}/log/*.csv.*",
        "memory://log",
        "simplecache::memory://parquet",
    ):
        assert prepare(tmp_path, source, target="memory://target.csv").fingerprint == expected, source


def test_a_folders_name_is_a_column_where_it_is_asked_for_and_the_files_have_none(tmp_path):
    for day, item in (("2026-01-02", "late"), ("2026-01-01", "early")):
        (tmp_path / "log" / f"day={day}").mkdir(parents=True)
        (tmp_path / "log" / f"day={day}" / "x.csv").write_text(f"user,item\nu1,{item}\n")
    (tmp_path / "t.csv").write_text("user,item,day\nu1,p,2026-02-01\n")
    dataset = prepare(tmp_path, tmp_path / "log", target=str(tmp_path / "t.csv"), time_column="day")
    items = dataset.raw_source_items()
    assert [items[k - 1] for k in dataset.sequences(np.array([1]), 2)[0]] == ["early", "late"]
    parquet(tmp_path / "log" / "day=x" / "y.parquet", [("u1", "i", 1)])
    message = refusal_of_more(tmp_path, tmp_path / "log", target=str(tmp_path / "t.csv"), time_column="time")
    assert "x.csv has no column 'time'" in message
    assert "Columns: user, item, day" in message


def refusal_of_more(folder: Path, source, **options) -> str:
    with pytest.raises(DataError) as caught:
        prepare(folder, source, **options)
    return str(caught.value)


def test_a_column_of_some_files_and_of_other_files_folders_is_refused(tmp_path):
    (tmp_path / "log" / "time=5").mkdir(parents=True)
    (tmp_path / "log" / "a.csv").write_text("user,item,time\nu1,i,1\n")
    (tmp_path / "log" / "time=5" / "b.csv").write_text("user,item\nu1,j\n")
    message = refusal(tmp_path, tmp_path / "log")
    assert "b.csv: column 'time' holds what its folder's name says, in " in message
    assert "a.csv VARCHAR; write all files of a table the same way" in message


def test_whole_numbers_may_be_of_several_widths_and_other_kinds_may_not(tmp_path):
    parquet(tmp_path / "log" / "a.parquet", [("u1", "i", 1)], "VARCHAR, VARCHAR, INTEGER")
    parquet(tmp_path / "log" / "b.parquet", [("u1", "j", 2**40)])
    assert prepare(tmp_path, tmp_path / "log", on_bad="drop").manifest["raw"]["source_events"] == 2
    parquet(tmp_path / "log" / "c.parquet", [("u1", "k", 2.5)], "VARCHAR, VARCHAR, DOUBLE")
    message = refusal_of_more(tmp_path, tmp_path / "log", on_bad="drop")
    assert "c.parquet: column 'time' holds DOUBLE, in " in message
    assert "a.parquet INTEGER" in message


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("b.csv", b"user,thing,time\nu1,i,1\n", "b.csv has no column 'item'."),
        ("b.csv", b"", "b.csv is empty; its first line must name the columns"),
        ("b.parquet", b"PAR1 and no more", "b.parquet can't be read as parquet: "),
        ("b.parquet", b"", "b.parquet can't be read as parquet: "),
        ("b.csv.gz", gzip.compress(text(ROWS), mtime=0)[:-20], "b.csv.gz can't be read as "),
        ("b.csv.zst", b"user,item,time\nu1,i,1\n", "b.csv.zst can't be read as zst: "),
        ("b.csv", b"user,item,time\nu1,i,1,9\n", "b.csv, line 2: columns expected: 3, found: 4"),
    ],
)
@pytest.mark.parametrize("is_remote", [False, True])
def test_the_one_file_among_many_that_can_not_be_read_is_named(tmp_path, memory, name, content, expected, is_remote):
    files = {"a.csv": text(ROWS[:20]), name: content, "c.csv": text(ROWS[20:])}
    (tmp_path / "log").mkdir()
    for one, bytes_ in files.items():
        (tmp_path / "log" / one).write_bytes(bytes_)
        memory.pipe(f"/log/{one}", bytes_)
    assert f"log/{expected}" in refusal(tmp_path, "memory://log" if is_remote else tmp_path / "log")


def test_a_file_without_rows_among_many_is_refused_or_left_out_and_told(tmp_path, caplog):
    parquet(tmp_path / "log" / "a.parquet", [])
    message = refusal(tmp_path, tmp_path / "log")
    assert message.endswith("log/a.parquet has no rows")
    parquet(tmp_path / "log" / "b.parquet", ROWS)
    assert refusal(tmp_path, tmp_path / "log").endswith("a.parquet has no rows; take it away, or give --on-bad drop")
    with caplog.at_level(logging.WARNING, "finetune_kit.data"):
        dataset = prepare(tmp_path, tmp_path / "log", on_bad="drop")
    assert f"left out {tmp_path}/log/a.parquet, which has no rows" in dataset.manifest["warnings"]
    assert dataset.manifest["raw"]["source_events"] == len(ROWS)


def test_a_bad_row_of_a_zstd_file_is_named_by_its_number(tmp_path):
    zstd(tmp_path / "x.csv.zst", text([("u1", "i", 1), ("u1", "", 2)]))
    assert "x.csv.zst, row 2: no item" in refusal(tmp_path, tmp_path / "x.csv.zst")
    zstd(tmp_path / "x.csv.zst", text([("u1", "i", 1), ("u1", "j", 2, 3)]))
    assert "x.csv.zst, line 3: columns expected: 3, found: 4" in refusal(tmp_path, tmp_path / "x.csv.zst")


def test_of_many_files_the_record_tells_their_number_and_a_sum(tmp_path, memory):
    for k in range(MOST_LISTED + 1):
        memory.pipe(f"/log/{k:02}.csv", text([(f"u{k}", "i", k), ("u1", f"j{k}", k)]))
    record = prepare(tmp_path, "memory://log", on_bad="drop").manifest["inputs"]
    assert record.keys() == {"memory://log", str(tmp_path / "target.csv")}
    assert (record["memory://log"]["files"], len(record["memory://log"]["sha256"])) == (MOST_LISTED + 1, 64)
    assert record["memory://log"]["bytes"] == memory.du("/log")
    memory.rm("/log/20.csv")
    record = prepare(tmp_path, "memory://log", on_bad="drop").manifest["inputs"]
    assert len(record) == MOST_LISTED + 1
    assert record["memory:///log/07.csv"] == {"bytes": memory.size("/log/07.csv"), "version": None}
    assert json.dumps(record)

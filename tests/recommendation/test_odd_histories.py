"""What stands in files of histories: read right, or refused in one line."""

import gzip
import json
import os
from pathlib import Path

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_kit.errors import DataError
from finetune_kit.recommendation.histories import read_histories
from finetune_kit.recommendation.layout import Columns, find_layout
from finetune_kit.recommendation.workshop import workshop


def read(path: Path) -> dict[str, list[str]]:
    with workshop(path.parent / "out.csv") as shop:
        return {user: list(items) for user, items in read_histories(find_layout(path, Columns(), shop), shop)}


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


LINES = b'{"user": "ann", "items": ["x", 9223372036854775808]}\n{"user": 7, "items": []}\n'


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("in.jsonl", LINES),
        ("in.jsonl", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\r\n")),
        ("in.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("in.csv", b"user,items\nann,x 9223372036854775808\n7,\n"),
        ("in.tsv", b"\xef\xbb\xbfuser\titems\r\nann\tx 9223372036854775808\r\n7\t\r\n"),
    ],
)
def test_the_same_histories_may_be_written_in_many_ways(tmp_path, name, data):
    assert read(written(tmp_path, name, data)) == {"ann": ["x", str(2**63)], "7": []}


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(min_size=1), st.lists(st.text(min_size=1) | st.integers()), min_size=1))
def test_whatever_ids_json_lines_have_are_read_back(tmp_path_factory, histories):
    folder = tmp_path_factory.mktemp("any")
    lines = "".join(json.dumps({"user": user, "items": items}) + "\n" for user, items in histories.items())
    texts = list(histories) + [item for items in histories.values() for item in items]
    path = written(folder, "in.jsonl", lines.encode())
    if any("\ud800" <= character <= "\udfff" for text in texts for character in str(text)):
        with pytest.raises(DataError, match="half a character"):
            read(path)
    else:
        assert read(path) == {user: list(map(str, items)) for user, items in histories.items()}


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("in.jsonl", b"", "has no rows"),
        ("in.jsonl", b"[" * 100_000 + b"\n", "line 1: no JSON"),
        ("in.jsonl", LINES + b'{"user": ' + b"9" * 5000 + b', "items": []}\n', "line 3: no JSON"),
        ("in.jsonl", LINES + b'{"user": NaN, "items": []}\n', "line 3: user NaN is no id"),
        ("in.jsonl", LINES + b'{"user": "bob", "items": [Infinity]}\n', "line 3: item Infinity is no id"),
        ("in.jsonl", LINES + b'{"user": "b\xff", "items": []}\n', "line 3: no UTF-8 text"),
        ("in.jsonl", gzip.compress(LINES, mtime=0), "line 1: no UTF-8 text"),
        ("in.jsonl.gz", LINES, "can't be read as gzip"),
        ("in.jsonl.gz", gzip.compress(LINES, mtime=0)[:-4], "can't be read as gzip"),
        ("in.jsonl", b'{"user": "ann", "item": "x", "time": NaN}\n', "line 1: time 'nan' is not a number"),
        ("in.csv", b"user,item,time\nann,x,inf\n", "line 2: time 'inf' is not a number"),
        ("in.csv.gz", gzip.compress(b"user,item\n" * 99, mtime=0)[:14] + b"\xff" * 30, "can't be read as text"),
        ("in.parquet", b"PAR1", "can't be read as parquet"),
    ],
)
def test_what_can_t_be_read_is_refused_in_a_line(tmp_path, name, data, said):
    with pytest.raises(DataError) as caught:
        read(written(tmp_path, name, data))
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_pipe_or_a_folder_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    for name, said in (("pipe.jsonl", "is a pipe or a device"), ("folder.jsonl", "is a folder")):
        with pytest.raises(DataError, match=said):
            read(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["one user", "many users"])
def test_a_million_events_of_one_user_or_of_a_million_are_read_in_seconds(tmp_path, shape):
    user = "'ann'" if shape == "one user" else "'u' || k"
    query = f"SELECT {user} AS user, 'i' || k % 5000 AS item, k AS time FROM range(1_000_000) t(k)"
    duckdb.execute(f"COPY ({query}) TO '{tmp_path}/in.parquet'")
    found = read(tmp_path / "in.parquet")
    assert len(found) == (1 if shape == "one user" else 1_000_000)
    assert sum(map(len, found.values())) == 1_000_000

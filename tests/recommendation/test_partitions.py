from pathlib import Path

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_kit.errors import DataError
from finetune_kit.recommendation.layout import Columns
from finetune_kit.recommendation.partitions import find_input, find_layouts, stands_for_many
from finetune_kit.recommendation.receipts import Content, remove_leftovers
from finetune_kit.recommendation.sample import MOST, Owners, Sample
from finetune_kit.recommendation.workshop import workshop


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder of partitions, relative to where we are."""
    monkeypatch.chdir(tmp_path)
    for name in ("in/b.csv", "in/day=1/a.jsonl.gz", "in/day=1/b.tsv", "in/day=2/c.parquet"):
        write(name)
    for name in ("in/_SUCCESS", "in/.b.csv.crc", "in/_temporary/d.csv", "in/day=1/.d.csv", "in/notes.md"):
        write(name)
    return Path("in")


def write(name: str, text: str = "user,items\n") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names(text: str) -> list[str]:
    return [partition.name for partition in find_input(text).partitions]


def test_every_file_below_a_folder_is_a_partition_under_its_path(folder):
    assert names("in") == ["b.csv", "day=1/a.jsonl.gz", "day=1/b.tsv", "day=2/c.parquet"]
    assert names(str(folder.resolve())) == names("in") == names("in/") == names(folder.resolve().as_uri())


def test_the_files_that_match_a_pattern_are_partitions_below_what_stands_before_it(folder):
    assert names("in/*/*.tsv") == ["day=1/b.tsv"]
    assert names("in/day=1/*") == ["a.jsonl.gz", "b.tsv"]
    assert names("in/**/[bc].*") == ["b.csv", "day=1/b.tsv", "day=2/c.parquet"]
    assert names("in/day=*") == ["day=1/a.jsonl.gz", "day=1/b.tsv", "day=2/c.parquet"]


def test_folders_patterns_and_addresses_stand_for_many(folder):
    write("odd[1].csv")
    assert [text for text in ("in", "in/*.csv", "memory://x/y.csv", "in/b.csv", "odd[1].csv", "none.csv") if
            stands_for_many(text)] == ["in", "in/*.csv", "memory://x/y.csv"]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "output", "would"),
    [
        ("in", "in/out", True),
        ("in", "in", True),
        ("in", ".", True),
        ("in", "out", False),
        ("in/*.csv", "in/out", False),
        ("in/*.csv", "in/x.csv", True),
        ("in/*/*.tsv", "in/out", True),
        ("in/**/*.csv", "in/out", True),
        ("in/day=*/*.tsv", "in/out", False),
        ("in/*.csv", "out", False),
    ],
)
def test_an_output_that_would_be_input_is_known(folder, text, output, would):
    assert find_input(text).would_hold(Path(output)) is would


def test_what_is_no_partition_is_told(folder):
    (folder / "again.csv").symlink_to(Path("b.csv"))
    with pytest.raises(DataError, match=r"again\.csv are the same file; take the link away"):
        find_input("in")
    (folder / "again.csv").unlink()
    with pytest.raises(DataError, match="can't tell its format"):
        find_input("in/*.md")
    with pytest.raises(DataError, match=r"'none/\*\.csv': no such file or folder"):
        find_input("none/*.csv")


def layouts(*files: str, **columns: str):
    with workshop(Path("work/out")) as shop:
        return find_layouts(find_input("in").partitions, Columns(**columns), shop)


def test_the_columns_of_all_partitions_are_looked_at_before_one_is_scored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("in/a.csv", "user,item,time\n")
    write("in/b.jsonl", '{"user": 1, "item": 2, "time": 3}\n')
    Path("in/z").mkdir()
    duckdb.sql("COPY (SELECT 1 AS \"user\", 2 AS item, 3 AS time) TO 'in/z/c.parquet' (FORMAT parquet)")
    assert [(found.kind, found.column, found.time) for found in layouts()] == [
        ("delimited", "item", "time"),
        ("json", "item", "time"),
        ("parquet", "item", "time"),
    ]
    write("in/d.csv", "user,item\n")
    with pytest.raises(
        DataError, match=r"d\.csv has events in 'item' without times, in/a\.csv has events in 'item' with"
    ):
        layouts()
    write("in/d.csv", "user,items\n")
    with pytest.raises(
        DataError, match=r"d\.csv has lists of items in 'items', in/a\.csv has events in 'item' with time"
    ):
        layouts()
    write("in/d.csv", "who,item,time\n")
    with pytest.raises(DataError, match=r"d\.csv has no column 'user'"):
        layouts()


def test_a_file_is_read_to_tell_whether_it_has_changed_only_where_its_time_has(tmp_path, monkeypatch):
    from finetune_kit.recommendation import receipts

    path = tmp_path / "a"
    path.write_text("one")
    held, read = Content.of(path), []
    monkeypatch.setattr(receipts, "file_hash", lambda file: read.append(file) or receipts.hashlib.sha256(file.read_bytes()).hexdigest())  # fmt: skip  # noqa: E501
    assert held.is_in(path)
    assert read == []
    path.write_text("one")
    assert held.is_in(path)
    path.write_text("two")
    assert not held.is_in(path)
    assert len(read) == 2
    path.write_text("three")
    assert not held.is_in(path)
    assert len(read) == 2


def test_what_a_killed_worker_left_is_taken_away_and_no_other_s(tmp_path):
    mine = [".a.csv.123.partial", ".a.csv.x_y9.partial"]
    others = [".a.csv.b.csv.123.partial", ".b.csv.123.partial", "a.csv", ".a.csv.partial", "a.csv.1.partial"]
    for name in (mine[0], *others):
        (tmp_path / name).write_text("")
    (tmp_path / mine[1]).mkdir()
    (tmp_path / mine[1] / "scratch").write_text("")
    remove_leftovers(tmp_path / "a.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


@given(st.sets(st.text(min_size=1), min_size=1, max_size=200), st.integers(1, 3))
def test_partitions_of_the_same_users_have_the_same_sample(users, times):
    ordered, reversed_ = Sample(), Sample()
    for user in sorted(users):
        ordered.add(user)
    for user in sorted(users, reverse=True):
        reversed_.add(user)
    assert ordered.users() == reversed_.users()
    assert len(ordered.users()) == min(MOST, len(users))
    assert set(ordered.users()) <= users


def test_a_log_that_is_cut_by_days_is_found_by_its_users():
    owners = Owners()
    for day in range(2):
        sample = Sample()
        for user in range(10_000):
            if (user * 7 + day) % 5:  # four of five users every day
                sample.add(f"u{user}")
        if day:
            with pytest.raises(DataError, match=r"user 'u\d+' has events in 'day 0' and in 'day 1': two answers"):
                owners.add(f"day {day}", sample.users())
        else:
            owners.add("day 0", sample.users())
            owners.add("day 0", sample.users())

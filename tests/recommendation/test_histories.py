import csv
import gzip
import json
from pathlib import Path

import duckdb
import pytest

from finetune_kit.errors import DataError, FinetuneKitError, OptionError
from finetune_kit.recommendation.histories import read_histories
from finetune_kit.recommendation.layout import Columns, find_layout
from finetune_kit.recommendation.workshop import workshop

LISTS = [("b", ["007", "ü ß", str(2**70)]), ("a", []), ("b", ["x"])]
EVENTS = [
    ("b", "007", 3),
    ("ü", "x", 1),
    ("b", "late", 20),
    ("a", "", ""),
    ("b", "first of two", 2),
    ("b", "second of two", 2),
    ("ü", "", ""),
]
IN_ORDER = [("a", []), ("b", ["first of two", "second of two", "007", "late"]), ("ü", ["x"])]


def read(path: Path | str, **columns) -> list[tuple[str, list[str]]]:
    with workshop(Path("out.csv"), "1GB") as shop:
        layout = find_layout(Path(path), Columns(**columns), shop)
        return [(user, list(items)) for user, items in read_histories(layout, shop)]


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def write_csv(path: str, names: list[str], rows: list) -> None:
    opened = gzip.open if path.endswith(".gz") else Path.open
    with opened(Path(path), "wt", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t" if ".tsv" in path.lower() else ",").writerows([names, *rows])


def write_json(path: str, rows: list[dict]) -> None:
    Path(path).write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")


def write_parquet(path: str, rows: str) -> None:
    duckdb.sql(f"COPY (FROM ({rows})) TO '{path}' (FORMAT parquet)")


def test_one_row_per_user_in_any_format():
    write_parquet(
        "in.parquet",
        f"VALUES ('b', ['007', 'ü ß', '{2**70}']), ('a', NULL), ('b', ['x']) AS rows(user, items)",
    )
    assert read("in.parquet") == LISTS
    write_json("in.jsonl", [{"user": user, "items": items or None} for user, items in LISTS])
    assert read("in.jsonl") == LISTS
    write_json("in.ndjson", [{"user": 7, "items": [2**70, "007"]}])
    assert read("in.ndjson") == [("7", [str(2**70), "007"])]
    for path in ("in.csv", "in.TSV", "in.csv.gz"):
        write_csv(path, ["age", "items", "user"], [[1, "007  ü 12", "b"], [], [2, "", "a, or so"], [3, "x", "b"]])
        assert read(path) == [("b", ["007", "ü", "12"]), ("a, or so", []), ("b", ["x"])]


def test_numbers_of_parquet_become_text_and_rows_keep_their_order():
    write_parquet("in.parquet", "SELECT i AS user, [i, i + 1] AS items FROM range(3000) rows(i)")
    assert read("in.parquet") == [(str(user), [str(user), str(user + 1)]) for user in range(3000)]


def test_one_row_per_event_in_any_format_in_the_order_of_times():
    write_csv("in.csv", ["user", "item", "time"], EVENTS)
    assert read("in.csv") == IN_ORDER
    names = ("user", "item", "timestamp")
    write_json("in.jsonl", [{key: one or None for key, one in zip(names, row, strict=True)} for row in EVENTS])
    assert read("in.jsonl") == IN_ORDER
    rows = ", ".join(str((user, item or None, time or None)) for user, item, time in EVENTS).replace("None", "NULL")
    write_parquet("in.parquet", f'VALUES {rows} AS rows(who, what, "when")')
    assert read("in.parquet", user="who", item="what", time="when") == IN_ORDER


def test_without_times_events_stand_in_the_rows_order():
    expected = [("a", []), ("b", ["007", "late", "first of two", "second of two"]), ("ü", ["x"])]
    write_csv("in.tsv.gz", ["user", "item", "time"], EVENTS)
    assert read("in.tsv.gz", time="none") == expected
    write_csv("in.csv", ["user", "item"], [row[:2] for row in EVENTS])
    assert read("in.csv") == expected


def test_dates_order_events_and_a_user_s_events_need_not_stand_together():
    write_json(
        "in.jsonl",
        [{"user": f"u{n % 7}", "item": n, "time": f"2024-01-{1 + n // 7:02}T10:00:00.5"} for n in reversed(range(210))],
    )
    assert read("in.jsonl") == [(f"u{user}", [str(n) for n in range(user, 210, 7)]) for user in range(7)]


def test_a_history_may_be_long():
    items = [str(n) for n in range(100_000)]
    write_csv("in.csv", ["user", "items"], [["u", " ".join(items)]])
    limit = csv.field_size_limit()
    assert read("in.csv") == [("u", items)]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("in.csv", "user,items\n", "in.csv has no rows"),
        ("in.csv", "user,item\n", "in.csv has no rows"),
        ("in.csv", "", "in.csv is empty; its first line must name the columns"),
        ("in.jsonl", "\n", "in.jsonl has no rows"),
        (
            "in.csv",
            "usr,items\n1,2\n",
            "no column 'user'. Did you mean 'usr'. Columns: usr, items; name another with --user",
        ),
        (
            "in.csv",
            "user,film\n1,2\n",
            "neither a column 'items' .* Columns: user, film; name one with --items-column or",
        ),
        ("in.csv", "user,item,items\n1,2,3\n", "has both a column 'items' and 'item'; say which"),
        ("in.csv", "user,items\n1,2\n,3\n", "in.csv, line 3: no user; mend the file"),
        ("in.csv", "user,items\n1,2\n\n3,4,5\n", "in.csv, line 4: columns expected: 2, found: 3"),
        ("in.csv", 'user,items\n1,"2\n3,4\n', "in.csv, line 2: unexpected end of data; look for unclosed quotes"),
        ("in.csv", "user,item\n1,2\n,3\n", r"in.csv, line 3: no user \(such rows: 1\); mend the file"),
        ("in.csv", "user,item,time\n1,2,3\n1,2,soon\n", "in.csv, line 3: time 'soon' is not a number"),
        ("in.csv", b"user,items\n1,\xff\n", "in.csv, line 2: no UTF-8 text"),
        ("in.csv.gz", b"user,items", "in.csv.gz can't be read as"),
        ("in.jsonl", '{"user": 1, "items": []}\n\n{"user": 1, "items": [}\n', "in.jsonl, line 3: no JSON"),
        ("in.jsonl", '{"user": 1, "item": 2}\n{"user": 1, "items": [}\n', "in.jsonl, line 2: no JSON"),
        ("in.jsonl", "[" * 100_000, "in.jsonl, line 1: no JSON"),
        ("in.jsonl", "[1, 2]", "in.jsonl, line 1: a list, not an object"),
        ("in.jsonl", '{"user": 1, "items": "a b"}', "'items' is a str, not a list of ids"),
        ("in.jsonl", '{"user": 1, "items": [1.5]}', r"in.jsonl, line 1: item 1.5 is no id; ids are text or whole"),
        ("in.jsonl", '{"user": 1, "items": ["a", null]}', "in.jsonl, line 1: an empty id among the items of user '1'"),
        ("in.jsonl", '{"user": "\\ud800", "items": []}', "in.jsonl, line 1: user .* has half a character"),
        ("in.jsonl", '{"user": null, "items": []}', "in.jsonl, line 1: no user"),
        (
            "in.jsonl",
            '{"user": 1, "items": []}\n{"user": 2}',
            "in.jsonl, line 2: no key 'items', which the first line has",
        ),
        (
            "in.jsonl",
            '{"user": 1, "item": 2, "time": 3}\n\n{"user": 1, "item": 2, "time": "x"}',
            "line 3: time 'x' is not",
        ),
        ("in.parquet", "no parquet", "in.parquet can't be read as parquet"),
        ("in.txt", "user,items\n1,2\n", "can't tell its format; the name must end in .parquet, .csv"),
        ("in.parquet.gz", "x", "can't tell its format"),
    ],
)
def test_what_can_t_be_read_is_refused_with_place_and_reason(name, text, message):
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FinetuneKitError, match=message) as caught:
        read(name)
    assert "\n" not in str(caught.value)


def test_lists_and_events_are_not_taken_for_one_another():
    write_parquet("lists.parquet", "SELECT 1 AS user, [1, 2] AS item, 3 AS items")
    with pytest.raises(DataError, match=r"column 'items' holds INTEGER, not lists of ids"):
        read("lists.parquet", items="items")
    with pytest.raises(DataError, match=r"column 'item' holds INTEGER\[\], not one item a row"):
        read("lists.parquet", item="item")
    with pytest.raises(OptionError, match="give the one that fits"):
        read("lists.parquet", item="item", items="items")
    with pytest.raises(OptionError, match="--time-column has no effect"):
        read("lists.parquet", items="item", time="time")
    assert read("lists.parquet", items="item") == [("1", ["1", "2"])]


def test_only_a_file_can_be_read():
    Path("folder.csv").mkdir()
    with pytest.raises(DataError, match="is a folder; name one file in it"):
        read("folder.csv")
    with pytest.raises(DataError, match="no such file"):
        read("nowhere.csv")
    with pytest.raises(DataError, match="--memory-limit 'much'"), workshop(Path("out.csv"), "much"):
        pass
    assert [path.name for path in Path().iterdir()] == ["folder.csv"]

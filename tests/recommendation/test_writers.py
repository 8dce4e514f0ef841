import csv
import gzip
import json
from pathlib import Path

import duckdb
import pytest

from finetune_kit.errors import DataError
from finetune_kit.recommendation import writers
from finetune_kit.recommendation.answers import Answers
from finetune_kit.recommendation.recommender import Recommendation
from finetune_kit.recommendation.workshop import workshop
from finetune_kit.recommendation.writers import writing

ITEMS = Answers(["p", "ü, q"], is_label=False)
MADE = [
    Recommendation("007", ("ü, q", "p"), (1.5, -0.25), None, 3, 0),
    Recommendation("ü", (), (), "no item in the history", 0, 0),
    Recommendation("007", ("p",), (0.1,), None, 2, 1),
]
ROWS = [
    ("007", 1, "ü, q", 1.5, None),
    ("007", 2, "p", -0.25, None),
    ("ü", None, None, None, "no item in the history"),
    ("007", 1, "p", 0.1, None),
]


def write(path: Path, recommendations=MADE, answers: Answers = ITEMS) -> None:
    with workshop(path) as shop, writing(path, path, answers, shop) as put:
        for one in recommendations:
            put(one)


def parquet(path: Path) -> list[tuple]:
    return duckdb.sql(f"SELECT user, rank, item, score::DECIMAL(9, 4)::DOUBLE, note FROM '{path}'").fetchall()


def delimited(text: str, delimiter: str = ",") -> list[tuple]:
    header, *rows = csv.reader(text.splitlines(), delimiter=delimiter)
    assert header == ["user", "rank", "item", "score", "note"]
    return [
        (user, int(rank) if rank else None, item or None, float(score) if score else None, note or None)
        for user, rank, item, score, note in rows
    ]


def test_all_formats_say_the_same(tmp_path):
    for name in ("out.parquet", "out.csv", "out.tsv", "out.csv.gz"):
        write(tmp_path / name)
    assert parquet(tmp_path / "out.parquet") == ROWS
    assert delimited((tmp_path / "out.csv").read_text(encoding="utf-8")) == ROWS
    assert delimited((tmp_path / "out.tsv").read_text(encoding="utf-8"), "\t") == ROWS
    assert delimited(gzip.decompress((tmp_path / "out.csv.gz").read_bytes()).decode()) == ROWS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.csv.gz", "out.parquet", "out.tsv"]


def test_json_lines_have_a_line_per_user(tmp_path):
    for name, read in (
        ("out.jsonl", Path.read_bytes),
        ("out.ndjson.gz", lambda path: gzip.decompress(path.read_bytes())),
    ):
        write(tmp_path / name)
        assert [json.loads(line) for line in read(tmp_path / name).splitlines()] == [
            {"user": "007", "items": [{"item": "ü, q", "score": 1.5}, {"item": "p", "score": -0.25}], "note": None},
            {"user": "ü", "items": [], "note": "no item in the history"},
            {"user": "007", "items": [{"item": "p", "score": 0.1}], "note": None},
        ]


def test_a_label_s_classes_are_called_so(tmp_path):
    labels = Answers(["a", "b"], is_label=True)
    for name in ("out.parquet", "out.csv", "out.jsonl"):
        write(tmp_path / name, MADE[:1], labels)
    columns = duckdb.sql(f"DESCRIBE FROM '{tmp_path}/out.parquet'").fetchall()
    assert [row[0] for row in columns] == ["user", "rank", "class", "probability", "note"]
    assert (tmp_path / "out.csv").read_text().startswith("user,rank,class,probability,note\n")
    assert json.loads((tmp_path / "out.jsonl").read_text())["classes"][1] == {"class": "p", "probability": -0.25}


def test_parquet_keeps_the_order_over_many_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "ROWS_AT_ONCE", 100)
    path = tmp_path / "out.parquet"
    write(path, (Recommendation(f"u{n}", ("p", "q"), (1.0, 0.5), None, 1, 0) for n in range(1000)))
    assert [row[:2] for row in parquet(path)] == [(f"u{n}", rank) for n in range(1000) for rank in (1, 2)]


def test_nothing_to_write_makes_an_empty_table(tmp_path):
    for name in ("out.parquet", "out.csv"):
        write(tmp_path / name, [])
    assert parquet(tmp_path / "out.parquet") == delimited((tmp_path / "out.csv").read_text()) == []


def test_the_same_makes_the_same_bytes(tmp_path):
    for name in ("one.csv.gz", "two.csv.gz"):
        write(tmp_path / name)
    assert (tmp_path / "one.csv.gz").read_bytes() == (tmp_path / "two.csv.gz").read_bytes()


def test_another_format_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"--output '.*out.xlsx': can't tell its format; the name must end in .parquet"):
        write(tmp_path / "out.xlsx")


def test_a_folder_that_was_made_for_a_file_goes_when_nothing_is_written(tmp_path):
    output = tmp_path / "new" / "deeper" / "out.csv"
    with pytest.raises(ValueError, match="bad line"), workshop(output):
        raise ValueError("bad line")
    assert list(tmp_path.iterdir()) == []
    with workshop(output):
        pass
    assert output.parent.is_dir()

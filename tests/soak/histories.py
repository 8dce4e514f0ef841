"""Histories for `ftkit recommend`: one row per user or per event, in every format it takes."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import duckdb
from mutations import ANY, TEXT
from readers import ITEMS, USERS, Reader, header_of, records

from finetune_kit.recommendation.histories import read_histories
from finetune_kit.recommendation.layout import Columns, find_layout
from finetune_kit.recommendation.workshop import workshop


def write_histories(name: str) -> Callable[[Path, Random], list[Path]]:
    def write(folder: Path, random: Random) -> list[Path]:
        path, per_user = folder / name, random.random() < 0.5
        histories = {user: random.choices(ITEMS, k=random.randrange(4)) for user in USERS}
        if per_user:
            rows = [{"user": user, "items": items} for user, items in histories.items()]
        else:
            rows = [{"user": user, "item": item, "time": 5} for user, items in histories.items() for item in items]
            rows = rows or [{"user": "ann", "item": "a", "time": 1}]
        if ".jsonl" in name:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        elif name.endswith(".parquet"):
            with duckdb.connect() as connection:
                columns = {key: [row[key] for row in rows] for key in rows[0]}
                types = {"user": "VARCHAR", "item": "VARCHAR", "items": "VARCHAR[]", "time": "BIGINT"}
                selected = ", ".join(f"unnest(?::{types[key]}[]) AS {key}" for key in columns)
                connection.execute(f"COPY (SELECT {selected}) TO '{path}'", list(columns.values()))
        else:
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(rows[0])
                writer.writerows([" ".join(v) if isinstance(v, list) else v for v in row.values()] for row in rows)
        return [path]

    return write


def _read_histories(name: str) -> Callable[[Path, Random], None]:
    def read(folder: Path, random: Random) -> None:
        path = folder / name
        with workshop(folder / "out.csv") as shop:
            layout = find_layout(path, Columns(), shop)
            found = [(user, list(items)) for user, items in read_histories(layout, shop)]
        rows = records(path, ",") if name.endswith(".csv") else None
        if ".jsonl" in name:
            assert len(found) <= (least := sum(bool(line.strip()) for line in path.read_bytes().split(b"\n")))
            assert not layout.is_per_user or len(found) == least, f"{least} lines, {len(found)} histories"
        elif rows is not None and layout.is_per_user:
            assert len(found) == len(rows), f"{len(rows)} rows, {len(found)} histories"
        elif rows is not None:
            header = header_of(path)
            place = header.index(layout.column)
            assert sum(len(items) for _, items in found) == sum(bool(row[place]) for row in rows)
            assert {user for user, _ in found} == {row[header.index(layout.user)] for row in rows}

    return read


READERS = [
    Reader("histories .jsonl", write_histories("in.jsonl"), _read_histories("in.jsonl"), TEXT, 4),
    Reader("histories .csv", write_histories("in.csv"), _read_histories("in.csv"), TEXT, 4),
    Reader("histories .parquet", write_histories("in.parquet"), _read_histories("in.parquet"), ANY, 2),
]

"""The readers that are fuzzed: how a valid input of each is written, and how what it read is accounted for."""

import csv
import io
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import numpy as np
from mutations import ANY, TEXT, VALUES, Mutation, replace_value

from finetune_kit.cli.arguments import read_sections
from finetune_kit.config import resolve_config
from finetune_kit.data.dataset import Dataset
from finetune_kit.data.inspect import inspect
from finetune_kit.recommendation.histories import read_histories
from finetune_kit.recommendation.layout import Columns, find_layout
from finetune_kit.recommendation.workshop import workshop
from ftkit_datasets.coldrec import ColdRec, ColdRecOptions
from ftkit_datasets.events import Events, EventsOptions
from ftkit_datasets.movielens import MovieLens, MovieLensOptions

USERS = ["ann", "bob", "Zoë", "18446744073709551617", "x,y", "007", "7"]
ITEMS = ["a", "b", "ü", "1", "01", str(2**63)]


@dataclass(frozen=True)
class Reader:
    """A reader under test.

    Args:
        name: Counted under it.
        write: Writes a valid input into a folder; returns the files that may be spoiled.
        read: Reads what is in the folder, and asserts that nothing of it was lost without a word.
        mutations: How its files are spoiled.
        weight: How often it is chosen.
    """

    name: str
    write: Callable[[Path, Random], list[Path]]
    read: Callable[[Path, Random], None]
    mutations: list[Mutation]
    weight: int = 1


def _events(random: Random) -> tuple[list[list[str]], list[list[str]]]:
    """Return rows of a source and a target log; some users are in one of them alone."""
    start = random.choice([0, -5, 1_600_000_000, 10**15])
    source = [[random.choice(USERS[:-1]), random.choice(ITEMS), str(start + n)] for n in range(random.randrange(5, 30))]
    known = sorted({row[0] for row in source})
    target = [[user, item, str(start + 99)] for user in known for item in random.sample(ITEMS, 2)]
    return source, target


def _write_csv(path: Path, rows: list[list[str]], delimiter: str) -> Path:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows([["user", "item", "time"], *rows])
    path.write_text(text.getvalue(), encoding="utf-8")
    return path


def _write_logs(suffix: str) -> Callable[[Path, Random], list[Path]]:
    delimiter = "\t" if "tsv" in suffix else ","

    def write(folder: Path, random: Random) -> list[Path]:
        source, target = _events(random)
        paths = [folder / f"{name}{suffix}" for name in ("source", "target")]
        for path, rows in zip(paths, (source, target), strict=True):
            _write_csv(path, rows, delimiter)
            if suffix.endswith(".gz"):
                path.write_bytes(__import__("gzip").compress(path.read_bytes()))
        return paths

    return write


def _dropped(manifest: dict[str, Any], path: Path) -> int:
    """Return how many rows of a file were told as dropped."""
    found = [re.match(r"dropped ([\d,]+) rows?, the first at (.*?), (line|row) ", text) for text in manifest["warnings"]]
    return sum(int(one[1].replace(",", "")) for one in found if one and one[2] == str(path))


def records(path: Path, delimiter: str) -> list[list[str]] | None:
    """Return the records of a text table as Python's own reader sees them, blank lines left out; None if it can't."""
    try:
        data = path.read_bytes()
        text = (__import__("gzip").decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if row]
    except Exception:  # no text, or not so that two readers must agree
        return None
    is_plain = rows and all(len(row) == len(rows[0]) for row in rows) and "\x00" not in text
    return rows[1:] if is_plain else None


def _read_logs(suffix: str) -> Callable[[Path, Random], None]:
    def read(folder: Path, random: Random) -> None:
        paths = {name: folder / f"{name}{suffix}" for name in ("source", "target")}
        options = EventsOptions(
            source=str(paths["source"]),
            target=str(paths["target"]),
            on_bad=random.choice(["refuse", "drop"]),
            keep_source_only=random.random() < 0.5,
            time_column=random.choice(["time", "time", None]),
        )
        Events(options).prepare(folder / "made")
        dataset = look_into(folder / "made")
        for name, path in paths.items():
            if suffix == ".parquet":
                with duckdb.connect() as connection:
                    rows = range(connection.read_parquet(str(path)).count("*").fetchall()[0][0])
            else:
                rows = records(path, "\t" if "tsv" in suffix else ",")
            if rows is not None:
                raw = dataset.manifest["raw"]
                told = raw[f"{name}_events"] + _dropped(dataset.manifest, path)
                assert told == len(rows), f"{len(rows)} rows in {path}, but {told} told as read or dropped"

    return read


def look_into(folder: Path) -> Dataset:
    """Open a dataset and read everything in it."""
    dataset = Dataset.open(folder)
    facts = inspect(dataset)
    users = np.arange(1, dataset.num_users + 1)
    longest = dataset.sequences(users, 7)
    names = dataset.raw_users(), dataset.raw_source_items(), dataset.raw_target_items()
    sizes = dataset.num_users, dataset.num_source_items, dataset.num_target_items
    assert tuple(map(len, names)) == sizes, f"vocabularies of {tuple(map(len, names))} for counts {sizes}"
    assert longest.min() >= 0
    assert longest.max() <= dataset.num_source_items, "an item that is not in the vocabulary"
    for ids, most in ((dataset.target.user, sizes[0]), (dataset.target.item, sizes[2])):
        assert not len(ids) or (ids.min() >= 1 and ids.max() <= most), "a target that is not in the vocabulary"
    json.dumps(facts)
    return dataset


def _write_parquet(folder: Path, random: Random) -> list[Path]:
    """Write logs whose columns have any of the types that Parquet knows."""
    source, target = _events(random)
    kinds = {"user": random.choice(IDS), "item": random.choice(IDS), "time": random.choice(TIMES)}
    with duckdb.connect() as connection:
        for name, rows in (("source", source), ("target", target)):
            columns = ", ".join(f"{kinds[column].format(k)} AS {column}" for k, column in enumerate(kinds))
            values = ", ".join(f"({n % 4}, {n % 5}, {n})" for n in range(len(rows)))
            connection.execute(
                f"COPY (SELECT {columns} FROM (VALUES {values}) t(c0, c1, c2)) TO '{folder}/{name}.parquet'"
            )
    return [folder / "source.parquet", folder / "target.parquet"]


_FEW = "CASE WHEN {{0}} THEN {0} ELSE {1} END".replace("{{0}}", "c2 = 3")
IDS = [
    *["'u' || c{0}"] * 4,
    *["c{0}::" + kind for kind in ("TINYINT", "BIGINT", "UBIGINT", "HUGEINT", "DOUBLE", "DECIMAL(5,2)", "BLOB", "BOOLEAN")
      if kind != "BLOB"],
    *("[c{0}]", "{{'a': c{0}}}", "MAP {{'a': c{0}}}", "('u' || c{0})::BLOB", "DATE '2020-01-01' + c{0}::INTEGER"),
    *("CASE WHEN c{0} > 0 THEN 'nan'::DOUBLE ELSE c{0} END", "nullif(c{0}, 1)", "CASE WHEN c{0} > 0 THEN '' ELSE 'a' END"),
    *("18446744073709551615::UBIGINT - c{0}::UBIGINT", "c{0} > 1", "INTERVAL 1 DAY * c{0}", "gen_random_uuid()", "NULL"),
    *("chr(0) || c{0}", "'\u202e' || c{0}", "TIME '10:00:00'", "repeat('x', 100000) || c{0}"),
]
TIMES = [
    *["c{0}"] * 4,
    *["c{0}::" + kind for kind in ("TINYINT", "UBIGINT", "HUGEINT", "FLOAT", "DECIMAL(9,3)", "VARCHAR")],
    *("TIMESTAMP '2020-01-01' + c{0} * INTERVAL 1 HOUR", "DATE '2020-01-01' + c{0}::INTEGER", "TIME '10:00:00'"),
    *("TIMESTAMPTZ '2020-01-01' + c{0} * INTERVAL 1 HOUR", "TIMESTAMP_NS '2020-01-01'", "TIMESTAMP_S '2020-01-01'"),
    *("TIMESTAMP 'infinity'", "DATE '-infinity'", "DATE '290000-01-01'", "TIMESTAMP '294247-01-10 04:00:54'"),
    *("CASE WHEN c{0} > 2 THEN 'nan'::DOUBLE ELSE c{0} END", "'inf'::FLOAT", "c{0} > 2", "INTERVAL 1 DAY * c{0}"),
    *("[c{0}]", "{{'a': c{0}}}", "NULL", "'x'::BLOB", "18446744073709551615::UBIGINT", "gen_random_uuid()", "1e300 * c{0}"),
    *("CASE WHEN c{0} = 2 THEN TIMESTAMP 'infinity' ELSE TIMESTAMP '2020-01-01' END", "nullif(c{0}, 2)"),
]


def _write_coldrec(folder: Path, random: Random) -> list[Path]:
    def line(targets: bool) -> str:
        ids = [random.randrange(1, 50) for _ in range(random.randrange(1, 8))]
        padded = ",".join(map(str, [0] * random.randrange(3) + ids))
        return padded + (f",,{','.join(map(str, random.sample(range(1, 9), 2)))}" if targets else "")

    (folder / "target.csv").write_text("".join(f"{line(True)}\n" for _ in range(8)))
    (folder / "pretrain.csv").write_text("".join(f"{line(False)}\n" for _ in range(5)))
    return [folder / "target.csv", folder / "pretrain.csv"]


def _read_coldrec(folder: Path, random: Random) -> None:
    options = ColdRecOptions(
        file=str(folder / "target.csv"),
        pretrain_file=random.choice([None, str(folder / "pretrain.csv")]),
        task=random.choice(["items", "items", "label"]),
        on_bad=random.choice(["refuse", "drop"]),
    )
    ColdRec(options).prepare(folder / "made")
    dataset = look_into(folder / "made")
    paths = [Path(path) for path in (options.file, options.pretrain_file) if path]
    lines = [line for path in paths for line in re.split(rb"\r\n|\n|\r", path.read_bytes())]
    told = dataset.manifest["raw"]["source_users"] + sum(_dropped(dataset.manifest, path) for path in paths)
    least = sum(bool(line.strip()) for line in lines)
    assert least <= told <= len(lines), f"{least} lines, but {told} told as read or dropped"


def _write_movielens(folder: Path, random: Random) -> list[Path]:
    copy = folder / "ml"
    copy.mkdir()
    films = [f"{n}::Film {n} (199{n})::{'Horror' if n % 3 == 0 else 'Comedy|Drama'}" for n in range(1, 9)]
    people = [f"{n}::{'MF'[n % 2]}::25::4::12345" for n in range(1, 6)]
    pairs = [(user, film) for user in range(1, 6) for film in random.sample(range(1, 9), 6)]
    ratings = [f"{user}::{film}::4::{random.randrange(10**9)}" for user, film in pairs]
    for name, lines in {"movies": films, "users": people, "ratings": ratings}.items():
        (copy / f"{name}.dat").write_text("".join(f"{line}\n" for line in lines))
    return sorted(copy.iterdir())


def _write_zip(folder: Path, random: Random) -> list[Path]:
    files = _write_movielens(folder, random)
    with zipfile.ZipFile(folder / "ml.zip", "w", random.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for path in files:
            archive.write(path, f"ml-1m/{path.name}")
    return [folder / "ml.zip"]


def _read_movielens(name: str) -> Callable[[Path, Random], None]:
    def read(folder: Path, random: Random) -> None:
        on_bad = random.choice(["refuse", "drop"])
        MovieLens(MovieLensOptions(path=str(folder / name), min_source=1, on_bad=on_bad)).prepare(folder / "made")
        dataset = look_into(folder / "made")
        if name == "ml":
            path = folder / "ml" / "ratings.dat"
            least = sum(bool(line.strip()) for line in re.split(rb"\r\n|\n|\r", path.read_bytes()))
            raw = dataset.manifest["raw"]
            told = raw["source_events"] + raw["target_events"] + _dropped(dataset.manifest, path)
            assert told >= least, f"{least} ratings, but {told} told as read or dropped"

    return read


def _write_histories(name: str) -> Callable[[Path, Random], list[Path]]:
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
            header = records_header(path)
            place = header.index(layout.column)
            assert sum(len(items) for _, items in found) == sum(bool(row[place]) for row in rows)
            assert {user for user, _ in found} == {row[header.index(layout.user)] for row in rows}

    return read


def records_header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return next(row for row in csv.reader(file) if row)


CONFIG = """[run]
strategy = "uaf-soft"
backbone = "nextitnet"
data = "synthetic"
seed = 3
trackers = ["jsonl"]

[data]
max_length = 20
users = 100

[backbone]
dim = 16
dilations = [1, 2]

[finetune]
epochs = 2
learning_rate = 1e-3

[evaluation]
cutoffs = [5, 10]
protocols = ["full"]

[strategy]
policy = "conv"
policy_options = {kernel_size = 3}

[files]
dataset = "somewhere"
dataset_fingerprint = "abc"
"""


def _write_config(folder: Path, random: Random) -> list[Path]:
    (folder / "config.toml").write_text(CONFIG)
    return [folder / "config.toml"]


def _read_config(folder: Path, random: Random) -> None:
    resolve_config(read_sections(folder / "config.toml", None, {"strategy": None}))


SETTINGS = ["run.strategy=uaf-hard", "strategy.temperature=5", "data.max_length=20", "evaluation.cutoffs=5,10"]
SETTINGS += ["strategy.policy_options.dim=8", "finetune.batch_size=32", "pretrain.loss=softmax", "run.seed=1", "data.users=9"]


def _write_setting(folder: Path, random: Random) -> list[Path]:
    (folder / "settings").write_text("\n".join(random.sample(SETTINGS, 3)))
    return [folder / "settings"]


def _read_setting(folder: Path, random: Random) -> None:
    path = folder / "settings"
    text = path.read_bytes().decode("utf-8", errors="surrogateescape") if path.is_file() else ""
    lines = [line[:100_000] for line in text.split("\n")[:20]]
    flags = random.choice([{}, {"strategy": random.choice(VALUES)}, {"data": random.choice(VALUES)}, {"epochs": 2}])
    resolve_config(read_sections(None, lines, flags))


READERS = [
    Reader("events .csv", _write_logs(".csv"), _read_logs(".csv"), TEXT, 3),
    Reader("events .tsv.gz", _write_logs(".tsv.gz"), _read_logs(".tsv.gz"), ANY),
    Reader("events .parquet", _write_parquet, _read_logs(".parquet"), [lambda data, random: data]),
    Reader("events damaged .parquet", _write_parquet, _read_logs(".parquet"), ANY),
    Reader("coldrec", _write_coldrec, _read_coldrec, TEXT, 2),
    Reader("movielens folder", _write_movielens, _read_movielens("ml"), TEXT, 2),
    Reader("movielens zip", _write_zip, _read_movielens("ml.zip"), ANY),
    Reader("histories .jsonl", _write_histories("in.jsonl"), _read_histories("in.jsonl"), TEXT, 4),
    Reader("histories .csv", _write_histories("in.csv"), _read_histories("in.csv"), TEXT, 4),
    Reader("histories .parquet", _write_histories("in.parquet"), _read_histories("in.parquet"), ANY, 2),
    Reader("configuration", _write_config, _read_config, TEXT, 8),
    Reader("--set", _write_setting, _read_setting, [*TEXT, *[replace_value] * 8], 8),
]

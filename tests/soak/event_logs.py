"""Event logs as text and as Parquet with columns of any type, read by `ftkit data prepare events`."""

import csv
import gzip
import io
from collections.abc import Callable
from pathlib import Path
from random import Random

import duckdb
from mutations import ANY, TEXT
from readers import ITEMS, USERS, Reader, dropped, look_into, records

from ftkit_datasets.events import Events, EventsOptions


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


def write_logs(suffix: str) -> Callable[[Path, Random], list[Path]]:
    delimiter = "\t" if "tsv" in suffix else ","

    def write(folder: Path, random: Random) -> list[Path]:
        source, target = _events(random)
        paths = [folder / f"{name}{suffix}" for name in ("source", "target")]
        for path, rows in zip(paths, (source, target), strict=True):
            _write_csv(path, rows, delimiter)
            if suffix.endswith(".gz"):
                path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        return paths

    return write


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
                told = raw[f"{name}_events"] + dropped(dataset.manifest, path)
                assert told == len(rows), f"{len(rows)} rows in {path}, but {told} told as read or dropped"

    return read


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


IDS = [
    *["'u' || c{0}"] * 4,
    *["c{0}::" + kind for kind in ("TINYINT", "BIGINT", "UBIGINT", "HUGEINT", "DOUBLE", "DECIMAL(5,2)", "BOOLEAN")],
    *("[c{0}]", "{{'a': c{0}}}", "MAP {{'a': c{0}}}", "('u' || c{0})::BLOB", "DATE '2020-01-01' + c{0}::INTEGER"),
    *(
        "CASE WHEN c{0} > 0 THEN 'nan'::DOUBLE ELSE c{0} END",
        "nullif(c{0}, 1)",
        "CASE WHEN c{0} > 0 THEN '' ELSE 'a' END",
    ),
    *(
        "18446744073709551615::UBIGINT - c{0}::UBIGINT",
        "c{0} > 1",
        "INTERVAL 1 DAY * c{0}",
        "gen_random_uuid()",
        "NULL",
    ),
    *("chr(0) || c{0}", "'\u202e' || c{0}", "TIME '10:00:00'", "repeat('x', 100000) || c{0}"),
]
TIMES = [
    *["c{0}"] * 4,
    *["c{0}::" + kind for kind in ("TINYINT", "UBIGINT", "HUGEINT", "FLOAT", "DECIMAL(9,3)", "VARCHAR")],
    *("TIMESTAMP '2020-01-01' + c{0} * INTERVAL 1 HOUR", "DATE '2020-01-01' + c{0}::INTEGER", "TIME '10:00:00'"),
    *("TIMESTAMPTZ '2020-01-01' + c{0} * INTERVAL 1 HOUR", "TIMESTAMP_NS '2020-01-01'", "TIMESTAMP_S '2020-01-01'"),
    *("TIMESTAMP 'infinity'", "DATE '-infinity'", "DATE '290000-01-01'", "TIMESTAMP '294247-01-10 04:00:54'"),
    *("CASE WHEN c{0} > 2 THEN 'nan'::DOUBLE ELSE c{0} END", "'inf'::FLOAT", "c{0} > 2", "INTERVAL 1 DAY * c{0}"),
    *(
        "[c{0}]",
        "{{'a': c{0}}}",
        "NULL",
        "'x'::BLOB",
        "18446744073709551615::UBIGINT",
        "gen_random_uuid()",
        "1e300 * c{0}",
    ),
    *("CASE WHEN c{0} = 2 THEN TIMESTAMP 'infinity' ELSE TIMESTAMP '2020-01-01' END", "nullif(c{0}, 2)"),
]


READERS = [
    Reader("events .csv", write_logs(".csv"), _read_logs(".csv"), TEXT, 3),
    Reader("events .tsv.gz", write_logs(".tsv.gz"), _read_logs(".tsv.gz"), ANY),
    Reader("events .parquet", _write_parquet, _read_logs(".parquet"), [lambda data, random: data]),
    Reader("events damaged .parquet", _write_parquet, _read_logs(".parquet"), ANY),
]

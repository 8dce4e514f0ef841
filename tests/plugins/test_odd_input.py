"""What people, programs and accidents put into raw files: read right, or refused in one line; never lost unsaid."""

import gzip
import time
import zipfile
from pathlib import Path

import duckdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_kit.data.dataset import Dataset
from finetune_kit.errors import DataError
from ftkit_datasets.coldrec import ColdRec, ColdRecOptions
from ftkit_datasets.events import Events, EventsOptions
from ftkit_datasets.movielens import MovieLens, MovieLensOptions

TARGET = b"user,item,time\nann,p,9\n"


def prepare(folder: Path, source: bytes, target: bytes = TARGET, name: str = "source.csv", **options) -> Dataset:
    (folder / name).write_bytes(source)
    (folder / "target.csv").write_bytes(target)
    Events(EventsOptions(source=str(folder / name), target=str(folder / "target.csv"), **options)).prepare(
        folder / "out"
    )
    return Dataset.open(folder / "out")


def refusal(folder: Path, *arguments, **options) -> str:
    with pytest.raises(DataError) as caught:
        prepare(folder, *arguments, **options)
    assert str(caught.value).isprintable()
    return str(caught.value)


def sequences(dataset: Dataset) -> dict[str, list[str]]:
    items = dataset.raw_source_items()
    rows = dataset.sequences(np.arange(1, dataset.num_users + 1), 50)
    return {
        user: [items[item - 1] for item in row if item] for user, row in zip(dataset.raw_users(), rows, strict=True)
    }


PLAIN = b"user,item,time\nann,x,1\nann,y,2\n"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("source.csv", b"\xef\xbb\xbf" + PLAIN),
        ("source.csv", PLAIN.replace(b"\n", b"\r\n")),
        ("source.csv", PLAIN.removesuffix(b"\n")),
        ("source.csv", PLAIN.replace(b"\n", b"\n\n")),
        ("source.csv", PLAIN.replace(b"ann", b'"ann"')),
        ("source.csv.gz", gzip.compress(PLAIN, mtime=0)),
        ("source.csv.gz", gzip.compress(PLAIN[:20], mtime=0) + gzip.compress(PLAIN[20:], mtime=0)),
        ("source.tsv", PLAIN.replace(b",", b"\t")),
        ("SOURCE.CSV", PLAIN),
    ],
)
def test_the_same_table_may_be_written_in_many_ways(tmp_path, name, data):
    assert sequences(prepare(tmp_path, data, name=name)) == {"ann": ["x", "y"]}


def test_an_id_is_any_text_and_stays_what_it_is(tmp_path):
    ids = [
        "Zoë",
        "Zoe\u0308",
        "новый",
        "🙂",
        "x,y",
        'a"b',
        "two\nlines",
        " spaced ",
        "007",
        "7",
        str(2**63),
        str(2**200),
    ]
    quoted = ['"' + raw.replace('"', '""') + '"' for raw in ids]
    source = "user,item,time\n" + "".join(f"{raw},{raw},1\n" for raw in quoted)
    target = "user,item,time\n" + "".join(f"{raw},p,9\n" for raw in quoted)
    assert sequences(prepare(tmp_path, source.encode(), target.encode())) == {raw: [raw] for raw in ids}


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=8)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=20))
def test_whatever_ids_a_table_has_are_read_back(tmp_path_factory, events):
    folder = tmp_path_factory.mktemp("any")
    text = "".join(f'"{user}","{item}",{n}\n' for n, (user, item) in enumerate((u, i) for u, i in quoted(events)))
    targets = "".join(f'"{user}",p,99\n' for user in dict.fromkeys(user for user, _ in quoted(events)))
    dataset = prepare(folder, b"user,item,time\n" + text.encode(), b"user,item,time\n" + targets.encode())
    expected: dict[str, list[str]] = {}
    for user, item in events:
        expected.setdefault(user, []).append(item)
    assert sequences(dataset) == expected


def quoted(events: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(user.replace('"', '""'), item.replace('"', '""')) for user, item in events]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("source.csv", b"", "is empty"),
        ("source.csv", gzip.compress(PLAIN, mtime=0), "can't be read as text"),
        ("source.csv.gz", PLAIN, "can't be read as text: Not a gzipped file"),
        ("source.csv.gz", gzip.compress(PLAIN, mtime=0)[:-9], "can't be read as"),
        ("source.csv.gz", gzip.compress(PLAIN * 99, mtime=0)[:14] + b"\xff" * 30, "can't be read as text: Error -3"),
        ("source.csv", PLAIN.decode().encode("utf-16"), "can't be read as text"),
        ("source.csv", PLAIN + b"\xff\xfe,z,3\n", "source.csv"),
        ("source.parquet", b"PAR1" + PLAIN, "can't be read as parquet"),
        ("source.csv", PLAIN + b"ann,z,nan\n", "line 4: time 'nan' is not a number"),
        ("source.csv", PLAIN + b"ann,z,-inf\n", "line 4: time '-inf' is not a number"),
        ("source.csv", PLAIN.replace(b"1", b"2020-01-01").replace(b"2\n", b"infinity\n"), "'infinity' is not a date"),
        ("source.csv", PLAIN + b'ann,"' + b"z" * 200_000 + b'",4\nann,z,nan\n', "row 4: time 'nan' is not a number"),
    ],
)
def test_what_can_t_be_read_is_refused_in_a_line(tmp_path, name, data, said):
    assert said in refusal(tmp_path, data, name=name)


def test_a_value_of_any_length_makes_no_longer_a_message(tmp_path):
    message = refusal(tmp_path, PLAIN + b"ann,z," + b"9" * 100_000 + b"x\n")
    assert "line 4: time '999" in message
    assert message.endswith("mend the file or drop them with --on-bad drop")
    assert len(message) < 2100


NO_FILES = ["~nobody-of-that-name/x.csv", "a**b.csv", "nul\0.csv", "loop.csv", "folder", "x" * 5000]


@pytest.mark.parametrize("text", NO_FILES, ids=lambda text: text[:12])
def test_what_names_no_file_is_said_so(tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "folder" / "inner.csv").mkdir(parents=True)
    with pytest.raises((DataError, OSError), match=r"source '|File name too long"):
        Events(EventsOptions(source=text, target=text)).prepare(tmp_path / "out")


def parquet(folder: Path, user: str = "'ann'", item: str = "'x'", moment: str = "k", **options) -> Dataset:
    """Prepare a Parquet log of four rows, whose columns are given as expressions over k, from 0."""
    query = f"SELECT {user} AS user, {item} AS item, {moment} AS time FROM range(4) t(k)"
    duckdb.execute(f"COPY ({query}) TO '{folder}/source.parquet'")
    return prepare(folder, (folder / "source.parquet").read_bytes(), name="source.parquet", **options)


def test_whole_numbers_beyond_2_63_are_ids_and_times(tmp_path):
    dataset = parquet(
        tmp_path, item="18446744073709551615::UBIGINT - k::UBIGINT", moment="(1e30::HUGEINT + k::HUGEINT)"
    )
    assert sequences(dataset) == {"ann": [str(2**64 - 1 - k) for k in range(4)]}


def test_an_id_that_is_not_a_number_is_no_id(tmp_path):
    with pytest.raises(DataError, match=r"row 2: no item \(such rows: 1\)"):
        parquet(tmp_path, item="CASE WHEN k = 1 THEN 'nan'::DOUBLE ELSE k END")


@pytest.mark.parametrize(
    ("moment", "said"),
    [
        ("CASE WHEN k = 2 THEN 'nan'::DOUBLE ELSE k END", "row 3: no time"),
        ("CASE WHEN k = 2 THEN 'inf'::FLOAT ELSE k END", "row 3: time 'inf' is not a number"),
        (
            "CASE WHEN k = 2 THEN TIMESTAMP 'infinity' ELSE TIMESTAMP '2020-01-01' END",
            "row 3: time 'infinity' is not a",
        ),
        ("TIME '10:00:00'", "time holds TIME; a time is a number, a date or a timestamp"),
        ("[k]", "time holds BIGINT[]; a time is a number"),
        ("INTERVAL 1 DAY", "time holds INTERVAL; a time is a number"),
        ("'x'::BLOB", "time holds BLOB; a time is a number"),
    ],
)
def test_a_time_that_does_not_sort_is_refused(tmp_path, moment, said):
    with pytest.raises(DataError) as caught:
        parquet(tmp_path, item="k", moment=moment)
    assert said in str(caught.value)


def test_rows_that_are_dropped_are_told_with_their_number(tmp_path):
    source = PLAIN + b"ann,,3\n,z,4\nann,z,nan\nann,z,5,6\nann,y,2\nbob,z,7\n"
    dataset = prepare(tmp_path, source, on_bad="drop")
    raw, dropped = dataset.manifest["raw"], [text.split(" row")[0] for text in dataset.manifest["warnings"]]
    assert dropped == ["dropped 1"] * 5
    assert raw["source_events"] == 3
    assert raw["left_out"] == [{"reason": "no target event", "users": 1, "source_events": 1, "target_events": 0}]


def test_users_in_one_domain_only_are_told(tmp_path):
    source = PLAIN + b"bob,x,1\n"
    assert "user 'eve' has no source event" in refusal(tmp_path, source, TARGET + b"eve,p,9\n")
    dataset = prepare(tmp_path, source, TARGET + b"eve,p,9\n", on_bad="drop", keep_source_only=True)
    assert sorted(sequences(dataset)) == ["ann", "bob"]
    assert "user 'eve' has no source event" in dataset.manifest["warnings"][0]


def test_nobody_in_both_domains_is_no_dataset(tmp_path):
    message = refusal(tmp_path, PLAIN, b"user,item,time\neve,p,9\n", on_bad="drop")
    assert message == "no user is left for the dataset: 1 have no target event"


def test_ids_beyond_2_63_stand_in_the_authors_format_too(tmp_path):
    path = tmp_path / "target.csv"
    path.write_bytes(b"\xef\xbb\xbf0,%d,7,,3\r\n%d,,4\r\n" % (2**63, 2**100))
    ColdRec(ColdRecOptions(file=str(path))).prepare(tmp_path / "out")
    assert Dataset.open(tmp_path / "out").raw_source_items() == [str(2**100), "7", str(2**63)]


def movielens(folder: Path, people: str, ratings: str, **options) -> Dataset:
    for name, text in {"movies": "1::A::Horror\n2::B::Drama\n", "users": people, "ratings": ratings}.items():
        (folder / f"{name}.dat").write_text(text)
    MovieLens(MovieLensOptions(path=str(folder), min_source=1, **options)).prepare(folder / "out")
    return Dataset.open(folder / "out")


def test_two_movielens_users_of_one_number_are_not_made_one(tmp_path):
    people = "1::M::25::4::1\nx1::F::25::4::1\n"
    ratings = "1::1::5::1\n1::2::5::1\nx1::2::5::1\n"
    with pytest.raises(DataError, match="user '1' and another end in the same number"):
        movielens(tmp_path, people, ratings)


def test_a_movielens_user_s_number_that_is_too_large_is_refused(tmp_path):
    user = 2**63
    with pytest.raises(DataError, match=f"user '{user}' does not end in a number, or in one too large"):
        movielens(tmp_path, f"{user}::M::25::4::1\n", f"{user}::1::5::1\n{user}::2::5::1\n")


def test_a_damaged_archive_is_refused_in_a_line(tmp_path):
    MovieLens.example(tmp_path)
    path = tmp_path / "ml.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(tmp_path.glob("*.dat")):
            archive.write(file, file.name)
    whole = path.read_bytes()
    for damaged in (
        whole.replace(b"1::A", b"1::B"),
        whole[:30] + whole[31:],
        whole.replace(b"PK\x01\x02", b"PK\x09\x09"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"ml\.zip (can't be unpacked: |is neither)"):
            MovieLens(MovieLensOptions(path=str(path), min_source=1)).prepare(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["one user", "many users"])
def test_a_million_events_of_one_user_or_of_a_million_are_prepared_in_seconds(tmp_path, shape):
    user = "'ann'" if shape == "one user" else "'u' || k"
    for name in ("source", "target"):
        rows = 1 if (shape, name) == ("one user", "target") else 1_000_000
        query = f"SELECT {user} AS user, 'i' || k % 5000 AS item, k AS time FROM range({rows}) t(k)"
        duckdb.execute(f"COPY ({query}) TO '{tmp_path}/{name}.parquet'")
    began = time.perf_counter()
    files = {name: str(tmp_path / f"{name}.parquet") for name in ("source", "target")}
    Events(EventsOptions(**files, memory_limit="300MB")).prepare(tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.source_lengths.sum() == 1_000_000
    assert dataset.sequences(np.array([1]), 50)[0, -1] > 0
    assert time.perf_counter() - began < 60

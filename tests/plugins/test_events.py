import gzip
import json
import logging
from pathlib import Path

import duckdb
import numpy as np
import pytest

from finetune_kit.data.dataset import Dataset
from finetune_kit.errors import DataError, OptionError
from ftkit_datasets.events import Events, EventsOptions

SOURCE = "user,item,time\nann,x,3\nann,y,1\nbob,z,2\nann,x,4\n"
TARGET = "user,item,time\nann,p,9\nbob,q,8\n"


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def prepare(folder: Path, source: str = SOURCE, target: str = TARGET, **options) -> Dataset:
    files = {"source": write(folder, "source.csv", source), "target": write(folder, "target.csv", target)}
    Events(EventsOptions(**{**files, **options})).prepare(folder / "out")
    return Dataset.open(folder / "out")


def refusal(folder: Path, source: str = SOURCE, target: str = TARGET, **options) -> str:
    with pytest.raises(DataError) as caught:
        prepare(folder, source, target, **options)
    assert not (folder / "out").exists()
    assert not list(folder.glob(".*")), "something temporary was left behind"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def raw_sequence(dataset: Dataset, user: str) -> list[str]:
    names, items = dataset.raw_users(), dataset.raw_source_items()
    return [items[item - 1] for item in dataset.sequences(np.array([names.index(user) + 1]), 10)[0] if item]


def test_events_are_put_in_the_order_of_their_time(tmp_path):
    dataset = prepare(tmp_path)
    assert dataset.raw_users() == ["ann", "bob"]
    assert raw_sequence(dataset, "ann") == ["y", "x", "x"]
    assert dataset.raw_target_items() == ["p", "q"]
    assert dataset.target.user.tolist() == [1, 2]


def test_events_of_one_time_keep_the_order_of_their_rows(tmp_path):
    rows = "".join(f"ann,i{k},7\n" for k in (3, 1, 2, 0))
    assert raw_sequence(prepare(tmp_path, "user,item,time\n" + rows + "bob,z,1\n"), "ann") == [
        "i3",
        "i1",
        "i2",
        "i0",
    ]


@pytest.mark.parametrize(
    ("early", "late"),
    [
        ("2", "10"),
        ("2.5", "10.25"),
        ("2020-01-02", "2020-01-10"),
        ("2020-01-01T10:00:00+05:00", "2020-01-01T08:00:00Z"),
    ],
)
def test_times_may_be_numbers_or_dates(tmp_path, early, late):
    source = f"user,item,time\nann,b,{late}\nann,a,{early}\n"
    dataset = prepare(tmp_path, source, f"user,item,time\nann,p,{late}\n")
    assert raw_sequence(dataset, "ann") == ["a", "b"]


def test_without_a_time_column_the_order_of_the_rows_counts(tmp_path):
    dataset = prepare(tmp_path, "user,item\nann,b\nann,a\n", "user,item\nann,p\n", time_column=None)
    assert raw_sequence(dataset, "ann") == ["b", "a"]
    assert dataset.manifest["raw"]["times"] is None


def test_the_same_events_give_the_same_dataset_from_every_format(tmp_path):
    one = prepare(tmp_path)
    parts = tmp_path / "parts [1]*"  # a folder of parts, with characters that patterns use
    parts.mkdir()
    values = "('ann', 'x', 3), ('ann', 'y', 1), ('bob', 'z', 2), ('ann', 'x', 4)"
    rows = f'SELECT * FROM (VALUES {values}) t(person, thing, "at")'
    for k in range(2):
        duckdb.execute(f"COPY ({rows} LIMIT 2 OFFSET {2 * k}) TO '{tmp_path}/{k}.parquet'")
        (tmp_path / f"{k}.parquet").rename(parts / f"{k}.parquet")
    target = tmp_path / "target.tsv.gz"
    target.write_bytes(gzip.compress(b"\xef\xbb\xbfperson\tthing\tat\textra\nann\tp\t9\t-\nbob\tq\t8\t-\n"))
    options = EventsOptions(
        source=str(parts), target=str(target), user_column="person", item_column="thing", time_column="at"
    )
    Events(options).prepare(tmp_path / "other")
    assert Dataset.open(tmp_path / "other").fingerprint == one.fingerprint


def test_a_pattern_stands_for_all_files_it_matches(tmp_path):
    write(tmp_path, "log-1.csv", "user,item,time\nann,a,1\n")
    write(tmp_path, "log-2.csv", "user,item,time\nann,b,2\n")
    assert raw_sequence(prepare(tmp_path, source=SOURCE, target="user,item,time\nann,p,1\n", **{}), "ann")
    options = EventsOptions(source=str(tmp_path / "log-*.csv"), target=str(tmp_path / "target.csv"))
    Events(options).prepare(tmp_path / "two")
    assert raw_sequence(Dataset.open(tmp_path / "two"), "ann") == ["a", "b"]


def test_a_missing_column_is_named_with_the_columns_there_are(tmp_path):
    message = refusal(tmp_path, source="user,item,times\nann,x,1\n")
    assert "source.csv has no column 'time'. Did you mean 'times'? Columns: user, item, times" in message
    assert "--time-column" in message


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", "source.csv is empty"),
        ("user,item,time\n", "source.csv has no rows"),
        ("user,item,time\nann,x,1\n\nann,,2\nann,,3\n", "source.csv, line 4: no item (such rows: 2)"),
        ('user,item,time\nann,"a\nb",1\n,x,2\n', "source.csv, line 4: no user (such rows: 1)"),
        ("user,item,time\nann,x,1\nann,y,\n", "source.csv, line 3: no time (such rows: 1)"),
        ("user,item,time\nann,x,1\nann,y,soon\n", "source.csv, line 3: time 'soon' is not a number"),
        ("user,item,time\nann,x,nan\nann,y,1.5\n", "source.csv, line 2: time 'nan' is not a number"),
        ("user,item,time\nann,x,1\nann,y,2,5\nann,z\n", "source.csv, line 3: "),
        ('user,item,time\nann,"x\ny",1\n\nann,y,2,5\n', "source.csv, line 5: "),
        (
            "user,item,time\nann,x,1\nann,y,1\nann,x,1\n",
            "source.csv, line 4: an event that an earlier row has already",
        ),
        ("user,item,time\nann,x,1,1\n", "source.csv, line 2: columns expected: 3, found: 4"),
        ("user,item,user\nann,x,1\n", "names a column twice"),
    ],
)
def test_bad_source_events_are_refused_with_file_line_and_reason(tmp_path, source, expected):
    assert expected in refusal(tmp_path, source=source, target="user,item,time\nann,p,1\n")


def test_bad_target_events_are_refused_with_file_line_and_reason(tmp_path):
    twice = refusal(tmp_path, target=TARGET + "ann,p,11\n")
    assert "target.csv, line 4: a pair of user and item that an earlier row has already (such rows: 1)" in twice
    unknown = refusal(tmp_path, target=TARGET + "zoe,p,11\n")
    assert "target.csv, line 4: user 'zoe' has no source event" in unknown
    assert "--on-bad drop" in unknown


def test_bad_rows_are_dropped_with_a_counted_warning_when_asked(tmp_path, caplog):
    source = SOURCE + "ann,,5\n,x,5\nbob,k,soon\nann,x,4\nbob,k\n"
    with caplog.at_level(logging.WARNING, "finetune_kit.data"):
        dataset = prepare(tmp_path, source, TARGET + "ann,p,11\nzoe,p,1\n", on_bad="drop")
    clean = tmp_path / "clean"
    clean.mkdir()
    assert dataset.fingerprint == prepare(clean).fingerprint
    warnings = dataset.manifest["warnings"]
    assert warnings == [record.getMessage() for record in caplog.records]
    assert len(warnings) == 7
    assert all(text.startswith("dropped 1 row, the first at ") for text in warnings)


def test_files_that_are_no_tables_are_named(tmp_path):
    (tmp_path / "log.parquet").write_text("no parquet")
    assert "log.parquet can't be read" in refusal(
        tmp_path, **{"source": SOURCE, "target": TARGET, "labels": str(tmp_path / "log.parquet")}
    )
    (tmp_path / "log.csv").write_bytes(b"\xff\xfe\x00\x01")
    assert "log.csv can't be read as text" in refusal(tmp_path, labels=str(tmp_path / "log.csv"))
    assert "can't tell its format" in refusal(tmp_path, labels=write(tmp_path, "log.xls", "x"))
    assert "no such file" in refusal(tmp_path, labels=str(tmp_path / "nowhere.csv"))


def test_numbers_and_dates_are_not_compared(tmp_path):
    message = refusal(tmp_path, target="user,item,time\nann,p,2020-01-01\n")
    assert "times in" in message and "numbers" in message and "dates" in message


def test_labels_are_kept_for_the_users_of_the_dataset(tmp_path):
    labels = write(tmp_path, "labels.csv", "user,age,a b\nbob,30,\nann,4,yes\n")
    dataset = prepare(tmp_path, labels=labels)
    assert dataset.labels["age"].classes == ("4", "30")
    assert dataset.labels["age"].value.tolist() == [0, 1]
    assert dataset.labels["a b"].value.tolist() == [0, -1]


def test_labels_may_have_any_name_but_user(tmp_path):
    labels = write(tmp_path, "labels.csv", 'user,row,id,raw,"it\'s ""x"""\nann,1,2,3,4\n')
    dataset = prepare(tmp_path, labels=labels)
    assert {name: one.classes for name, one in dataset.labels.items()} == {
        "row": ("1",),
        "id": ("2",),
        "raw": ("3",),
        'it\'s "x"': ("4",),
    }
    (tmp_path / "labels.csv").write_text("person,User\nann,1\n")
    with pytest.raises(DataError, match="a label can't be called 'user'"):
        options = {"source": SOURCE.replace("user", "person"), "target": TARGET.replace("user", "person")}
        (tmp_path / "other").mkdir()
        prepare(tmp_path / "other", labels=labels, user_column="person", **options)


def test_a_label_of_an_unknown_user_is_refused(tmp_path):
    labels = write(tmp_path, "labels.csv", "user,age\nann,4\nzoe,4\n")
    assert "labels.csv, line 3: user 'zoe' has no event" in refusal(tmp_path, labels=labels)


def test_users_without_target_events_are_kept_for_pretraining_when_asked(tmp_path):
    target = "user,item,time\nann,p,9\n"
    dataset = prepare(tmp_path, target=target)
    assert dataset.num_users == 1
    left_out = {"reason": "no target event", "users": 1, "source_events": 1, "target_events": 0}
    assert dataset.manifest["raw"]["left_out"] == [left_out]
    other = tmp_path / "other"
    other.mkdir()
    assert prepare(other, target=target, keep_source_only=True).num_users == 2


def test_a_dataset_of_labels_alone_needs_no_target_events(tmp_path):
    labels = write(tmp_path, "labels.csv", "user,age\nann,4\n")
    options = EventsOptions(source=write(tmp_path, "source.csv", SOURCE), labels=labels)
    Events(options).prepare(tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.raw_users() == ["ann"]
    assert len(dataset.target.user) == 0
    with pytest.raises(OptionError, match="nothing to fine-tune on"):
        Events(EventsOptions(source=options.source)).prepare(tmp_path / "none")


def test_what_a_dataset_was_made_of_is_recorded(tmp_path):
    dataset = prepare(tmp_path, max_target=1)
    manifest = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert manifest["options"]["max_target"] == 1
    assert [Path(name).name for name in manifest["inputs"]] == ["source.csv", "target.csv"]
    assert dataset.name == "out"

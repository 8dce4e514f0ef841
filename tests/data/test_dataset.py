import json
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pytest

from finetune_kit.data.dataset import Dataset, _labels
from finetune_kit.data.folder import describe_file
from finetune_kit.data.preparation import preparing
from finetune_kit.data.prepare import write_dataset
from finetune_kit.errors import DataError


def make(folder: Path) -> Path:
    """Write a dataset of three users with 1, 3 and 5 source events."""
    with preparing(folder) as preparation:
        preparation.connection.execute(
            """CREATE TABLE source AS SELECT user, 'i' || (k + length(user)) AS item, k AS time, 0 AS tie
            FROM (VALUES ('a', 1), ('bb', 3), ('ccc', 5)) t(user, n), range(5) r(k) WHERE k < n"""
        )
        preparation.connection.execute(
            """CREATE TABLE target AS SELECT DISTINCT user, 'p' || n AS item, n AS time, 0 AS tie
            FROM source, range(2) r(n)"""
        )
        write_dataset(preparation, options={}, inputs=[])
    return folder


def test_sequences_are_padded_in_front_and_keep_the_most_recent(tmp_path):
    dataset = Dataset.open(make(tmp_path / "out"))
    assert dataset.raw_source_items() == [f"i{k}" for k in range(1, 8)]
    assert dataset.source_lengths.tolist() == [1, 3, 5]
    rows = dataset.sequences(np.array([2, 1, 3, 3]), 4)
    assert rows.dtype == np.int64
    assert rows.tolist() == [[0, 2, 3, 4], [0, 0, 0, 1], [4, 5, 6, 7], [4, 5, 6, 7]]
    assert dataset.sequences(np.array([], dtype=np.int64), 4).shape == (0, 4)
    assert dataset.sequences(np.array([3]), 9).tolist() == [[0, 0, 0, 0, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_the_frequency_of_an_item_is_how_often_it_stands_in_all_sequences(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr("finetune_kit.data.dataset.EVENTS_AT_ONCE", at_once)
    assert Dataset.open(make(tmp_path / "out")).source_frequency().tolist() == [1, 1, 2, 2, 1, 1, 1]


def test_a_user_that_is_not_there_is_refused(tmp_path):
    dataset = Dataset.open(make(tmp_path / "out"))
    for user in (0, 4, -1):
        with pytest.raises(DataError, match=r"users must be in \[1, 3\]"):
            dataset.sequences(np.array([1, user]), 4)


def test_the_target_is_sorted_by_user_and_position(tmp_path):
    target = Dataset.open(make(tmp_path / "out")).target
    assert target.user.tolist() == [1, 1, 2, 2, 3, 3]
    assert target.position.tolist() == [0, 1] * 3
    assert target.item.tolist() == [1, 2] * 3
    assert {column.dtype for column in target} == {np.dtype(np.int64)}


@pytest.mark.parametrize("name", ["source.items.npy", "source.offsets.npy", "source.flat.json"])
def test_missing_flat_arrays_are_written_anew(tmp_path, name):
    folder = make(tmp_path / "out")
    before = (folder / "source.items.npy").read_bytes()
    (folder / name).unlink()
    assert Dataset.open(folder).sequences(np.array([2]), 3).tolist() == [[2, 3, 4]]
    assert (folder / "source.items.npy").read_bytes() == before
    assert (folder / name).exists()


def test_stale_flat_arrays_are_written_anew(tmp_path):
    folder = make(tmp_path / "out")
    turned = f"SELECT user, list_reverse(items) AS items FROM '{folder}/source.parquet'"
    duckdb.execute(f"CREATE OR REPLACE TABLE s AS {turned}")
    duckdb.execute(f"COPY s TO '{folder}/source.parquet' (FORMAT parquet)")
    manifest = json.loads((folder / "dataset.json").read_text())
    manifest["files"]["source.parquet"] = describe_file(folder / "source.parquet")
    (folder / "dataset.json").write_text(json.dumps(manifest))
    assert Dataset.open(folder).sequences(np.array([2]), 3).tolist() == [[4, 3, 2]]


def test_a_copied_or_moved_folder_is_the_same_dataset(tmp_path):
    folder = make(tmp_path / "out")
    fingerprint = Dataset.open(folder).fingerprint
    shutil.copytree(folder, tmp_path / "it's [a] copy*")
    copy = Dataset.open(tmp_path / "it's [a] copy*")
    assert copy.fingerprint == fingerprint
    assert copy.raw_users() == ["a", "bb", "ccc"]
    assert len(copy.target.user) == 6


def test_what_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no dataset folder at .*nowhere"):
        Dataset.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"is no dataset: it has no dataset\.json"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format_version": 99}', "has dataset format 99, this ftkit reads 1; it was written by an ftkit"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ("{}", "is damaged"),
        ('{"format_version": 1}', "is damaged"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused(tmp_path, text, message):
    folder = make(tmp_path / "out")
    (folder / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=message):
        Dataset.open(folder)


def test_missing_and_damaged_files_are_named(tmp_path):
    folder = make(tmp_path / "out")
    whole = (folder / "target.parquet").read_bytes()
    (folder / "target.parquet").write_bytes(whole[:-7])
    with pytest.raises(DataError, match=r"target\.parquet is damaged: it has .* bytes, .* were written"):
        Dataset.open(folder)
    (folder / "target.parquet").write_bytes(bytes(len(whole)))
    with pytest.raises(DataError, match=r"target\.parquet is damaged"):
        _ = Dataset.open(folder).target
    (folder / "target.parquet").unlink()
    with pytest.raises(DataError, match=r"target\.parquet is missing"):
        Dataset.open(folder)


def test_users_out_of_order_are_refused(tmp_path):
    folder = make(tmp_path / "out")
    duckdb.execute(f"CREATE OR REPLACE TABLE s AS SELECT user + 1 AS user, items FROM '{folder}/source.parquet'")
    duckdb.execute(f"COPY s TO '{folder}/source.parquet' (FORMAT parquet)")
    manifest = json.loads((folder / "dataset.json").read_text())
    manifest["files"]["source.parquet"] = describe_file(folder / "source.parquet")
    (folder / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="the column user must be 1, 2, 3"):
        Dataset.open(folder)


@pytest.mark.parametrize(
    ("values", "classes"),
    [(["10", "9", "-1"], ("-1", "9", "10")), (["9" * 20, "3"], ("3", "9" * 20)), (["--5", "3"], ("--5", "3"))],
)
def test_classes_are_sorted_as_numbers_of_any_size_where_all_are_numbers(values: list[str], classes: tuple[str, ...]):
    labels = _labels(np.arange(1, len(values) + 1), np.array(values), len(values))
    assert labels.classes == classes
    assert [labels.classes[k] for k in labels.value] == values

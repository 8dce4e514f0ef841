"""Configuration, dataset folders and run folders that are damaged: one line names the file, nothing else happens."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from finetune_kit.checkpoint import read_facts
from finetune_kit.cli.arguments import read_sections
from finetune_kit.cli.result import print_result
from finetune_kit.config import read_toml
from finetune_kit.data.dataset import Dataset
from finetune_kit.errors import CheckpointError, DataError, FinetuneKitError, OptionError
from finetune_kit.files import read_metrics
from ftkit_datasets.synthetic import Synthetic, SyntheticOptions


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "toy"
    Synthetic(SyntheticOptions(users=20, max_length=5)).prepare(folder)
    return folder


@pytest.fixture
def dataset(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "toy"))


DEEP = "[" * 100_000


NO_CONFIGURATIONS = ["a=" + DEEP, "[run]\n" + "a." * 30_000 + "a=1", "\xff", "[run", 'a\x00="1"', "a=1" * 50_000]


@pytest.mark.parametrize("text", NO_CONFIGURATIONS, ids=lambda text: text[:12])
def test_what_is_no_configuration_is_refused_at_once(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(OptionError, match=r"config\.toml(: not TOML|: the option| is no configuration file)") as caught:
        read_toml(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("data", ["5", "[1]", "{a=1}", "true", '""'])
def test_a_run_s_dataset_that_is_no_path_is_refused(tmp_path, data):
    path = tmp_path / "config.toml"
    path.write_text(f"[run]\ndata = {data}\n[files]\ndataset = {data}\n")
    assert read_sections(path, None, {})["run"]["data"] is not None  # the options model refuses it in its own words


@pytest.mark.parametrize("name", ["model.json", "metrics.json", "dataset.json", "source.flat.json"])
def test_json_that_is_nested_without_end_is_damaged(dataset, name):
    (dataset / name).write_text(DEEP)
    read = {"model.json": read_facts, "metrics.json": read_metrics}.get(name, Dataset.open)
    if name == "source.flat.json":
        Dataset.open(dataset)  # which writes it anew
        assert (dataset / name).stat().st_size < 1000
        return
    with pytest.raises(FinetuneKitError, match=name):
        read(dataset)


@pytest.mark.parametrize("text", ["[]", "5", '"text"', "null", "{", "", "NaN"])
def test_metrics_that_are_no_object_are_damaged(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"metrics\.json is damaged"):
        read_metrics(tmp_path)


@pytest.mark.parametrize(
    "metrics", [{}, {"references": 5}, {"references": {}, "test": {}}, {"references": {}, "gates": 1}]
)
def test_metrics_that_were_edited_are_damaged(tmp_path, metrics):
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(CheckpointError, match=r"metrics\.json is damaged \(.*\); copy or make the folder again"):
        print_result(tmp_path, as_json=False)


@pytest.mark.parametrize("kind", [[], {}, 5, "else"])
def test_a_kind_of_weights_that_is_none_is_refused(tmp_path, kind):
    (tmp_path / "model.json").write_text(json.dumps({"format_version": 1, "hash": "0", "kind": kind}))
    with pytest.raises(CheckpointError, match="is of the kind"):
        read_facts(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("counts", {"users": "20"}),
        ("counts", {"users": -1}),
        ("counts", {"users": True}),
        ("name", 5),
        ("warnings", {}),
    ],
)
def test_a_manifest_with_values_of_another_kind_is_damaged(dataset, key, value):
    manifest = json.loads((dataset / "dataset.json").read_text())
    manifest[key] = {**manifest[key], **value} if isinstance(value, dict) and value else value
    (dataset / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=rf"dataset\.json is damaged .*{key}"):
        Dataset.open(dataset)


def test_one_bit_is_missed_by_no_table_that_is_small(dataset):
    path = dataset / "target.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"target\.parquet is damaged: its checksum is not the one recorded"):
        Dataset.open(dataset)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("source.items.npy", lambda items: items * 1000),
        ("source.items.npy", lambda items: items * 0),
        ("source.items.npy", lambda items: items.view(np.float32)),
        ("source.offsets.npy", lambda offsets: offsets[::-1].copy()),
        ("source.offsets.npy", lambda offsets: offsets + 1),
        ("source.offsets.npy", lambda offsets: offsets.astype(np.uint64)),
    ],
)
def test_arrays_that_were_spoiled_are_told_before_they_are_used(dataset, name, change):
    expected = Dataset.open(dataset).sequences(np.arange(1, 21), 5)
    np.save(dataset / name, change(np.load(dataset / name)))
    try:
        found = Dataset.open(dataset).sequences(np.arange(1, 21), 5)
    except DataError as error:
        assert "source.items.npy or source.offsets.npy is damaged (" in str(error)
    else:
        assert (found == expected).all()  # written anew


def test_a_message_is_one_line_of_printable_characters_of_bounded_length():
    error = DataError("user 'a\nb\x1b[31m\u202e\ud800é' " + "9" * 10_000 + "; mend it")
    assert str(error).isprintable()
    assert str(error).startswith(r"user 'a\nb\x1b[31m\u202e\ud800é' 999")
    assert str(error).endswith("999; mend it")
    assert len(str(error)) < 2100

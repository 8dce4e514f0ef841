"""Paths and names that files hold: they stay in their folder, or are read and never written."""

import hashlib
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sent_files import assert_refused, change_json

from documents import ROOT, TINY
from finetune_kit.comparison.record import FILE, Record
from finetune_kit.comparison.results import Setting
from finetune_kit.data.dataset import Dataset
from finetune_kit.data.places import Place
from finetune_kit.data.remote import RemoteFile
from finetune_kit.errors import CheckpointError, DataError, OptionError
from finetune_kit.files import write_table
from finetune_kit.foreign import confined, one_name, refuse_name
from finetune_kit.recommendation import partitions
from finetune_kit.recommendation.file import Totals
from finetune_kit.recommendation.partitions import Partition, find_input
from finetune_kit.recommendation.receipts import Content, Receipt, Receipts, digest
from ftkit_datasets.movielens import find_copy

OUTSIDE = [
    "../x",
    "a/../../x",
    "..",
    "/etc/passwd",
    "C:\\x",
    "C:x",
    "\\\\host\\share",
    "a\\..\\..\\x",
    "",
    "a\0b",
    7,
    None,
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_path_that_leads_out_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"no path|leads out"):
        confined(tmp_path, name)


def test_a_link_that_leads_out_is_refused_and_one_that_stays_is_not(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_text("x")
    (folder / "file").write_text("x")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "in").symlink_to("file")
    with pytest.raises(ValueError, match="is a link that leads out"):
        confined(folder, "out")
    assert confined(folder, "in") == folder / "in"
    (tmp_path / "link").symlink_to(folder)
    assert confined(tmp_path / "link", "file") == tmp_path / "link" / "file"


def test_a_link_that_leads_in_a_circle_is_refused(tmp_path):
    (tmp_path / "round").symlink_to("about")
    (tmp_path / "about").symlink_to("round")
    with pytest.raises(ValueError, match=r"^'round' is a link that leads in a circle$"):
        confined(tmp_path, "round")


@pytest.mark.parametrize("name", ["a/b", "..", ".", "", "a\\b", "a\0", "x" * 256, 7])
def test_what_names_no_folder_is_refused(name):
    with pytest.raises(ValueError, match=r"no name of a folder|too long"):
        refuse_name(name)


def test_a_name_made_of_names_has_no_separators():
    assert one_name("uaf-hard-../../x-s0") == "uaf-hard-..-..-x-s0"
    assert one_name("a\\b") == "a-b"


def everything_in(folder: Path) -> dict[str, str]:
    """Return every file below a folder, with a checksum of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "a/b", "..", 5, "x" * 1000])
def test_a_dataset_whose_name_leads_elsewhere_is_refused(ftkit, sent, name):
    change_json(sent.dataset / "dataset.json", lambda manifest: manifest.update(name=name))
    assert_refused(ftkit("run", "--data", sent.dataset, "--strategy", "finetune-all", *TINY[2:]), "is damaged")


@pytest.mark.parametrize("name", ["../ds2/source.parquet", "/etc/passwd", "sub/file.parquet"])
def test_a_dataset_that_lists_files_elsewhere_is_refused(ftkit, sent, name):
    told = {"bytes": 1, "sha256": ""}
    change_json(sent.dataset / "dataset.json", lambda manifest: manifest["files"].update({name: told}))
    assert_refused(ftkit("data", "inspect", sent.dataset), "is damaged")


def test_a_dataset_whose_file_is_a_link_elsewhere_is_refused(sent, tmp_path):
    (sent.dataset / "users.parquet").rename(tmp_path / "elsewhere.parquet")
    (sent.dataset / "users.parquet").symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(DataError, match="leads out of the folder"):
        Dataset.open(sent.dataset)


def test_inputs_are_for_the_record(ftkit, sent):
    change_json(sent.dataset / "dataset.json", lambda manifest: manifest.update(inputs={"/dev/zero": {}, "../x": {}}))
    assert ftkit("data", "inspect", sent.dataset).code == 0


@pytest.mark.parametrize("name", ["os:system", "../plugin", "ftkit_uaf.hard:UafHard", "/tmp/evil.py"])
@pytest.mark.parametrize("option", ['strategy = "uaf-hard"', 'backbone = "nextitnet"', 'trackers = ["jsonl"]'])
def test_a_run_can_not_name_code(ftkit, sent, option, name):
    text = (sent.run / "config.toml").read_text()
    assert option in text
    (sent.run / "config.toml").write_text(text.replace(option, re.sub('".*"', lambda found: f'"{name}"', option)))
    assert_refused(ftkit("evaluate", sent.run), f"named '{name}'")


def test_a_label_in_a_folders_name_does_not_lead_out():
    from finetune_kit.comparison.compare import _default_folder

    assert _default_folder("ds", "label:../../x") == Path("runs/compare-ds-..-..-x")


def comparison(folder: Path, run: str) -> None:
    """Write the plan of a comparison with one run in a folder."""
    runs = [{"setting": Setting("a")._asdict(), "tuned": {}, "seed": 0, "folder": run, "failure": ""}]
    plan = {"dataset": "d", "dataset_fingerprint": "f", "task": "items", "monitor": "mrr@5", "budget": "none"}
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_text(json.dumps({**plan, "options": {}, "tune": {}, "runs": runs, "notes": []}))


@pytest.mark.parametrize("run", ["../run", "runs/../../run", "/run", "runs/link", "C:\\run", 3, ["runs"]])
def test_a_comparison_whose_run_is_elsewhere_is_refused(tmp_path, run):
    comparison(tmp_path / "cmp", run)
    (tmp_path / "cmp" / "runs").mkdir()
    (tmp_path / "cmp" / "runs" / "link").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="is damaged"):
        Record.read(tmp_path / "cmp")


def test_the_runs_of_a_comparison_may_lie_on_another_disk(tmp_path):
    comparison(tmp_path / "cmp", "runs/one")
    (tmp_path / "disk" / "one").mkdir(parents=True)
    (tmp_path / "cmp" / "runs").symlink_to(tmp_path / "disk")
    assert Record.read(tmp_path / "cmp").runs[0].folder == "runs/one"


@pytest.mark.parametrize("command", ["evaluate", "finetune"])
def test_a_base_that_is_not_the_runs_is_refused_and_nothing_is_written_there(ftkit, sent, tmp_path, command):
    other = tmp_path / "other"
    sent.base.rename(other)
    change_json(other / "model.json", lambda facts: facts.update(hash="0" * 64))
    change_json(sent.run / "model.json", lambda facts: facts["base"].update(path=str(other)))
    before = everything_in(other)
    words = ["evaluate", sent.run] if command == "evaluate" else ["finetune", "--from", sent.run, "--strategy", "lora"]
    assert_refused(ftkit(*words), "was fine-tuned from the base with hash", str(other))
    assert everything_in(other) == before


@pytest.mark.parametrize("path", [7, None, {}, []])
def test_a_base_whose_path_is_no_text_is_refused(ftkit, sent, path):
    change_json(sent.run / "model.json", lambda facts: facts["base"].update(path=path))
    assert_refused(ftkit("evaluate", sent.run), "it lacks base.path and base.hash")


def test_a_dataset_that_a_run_names_is_not_written_to_unless_it_is_the_runs(ftkit, sent, tmp_path):
    ftkit("data", "prepare", "synthetic", "--users", "80", "--output", tmp_path / "mine" / "ds")
    for name in ("source.items.npy", "source.offsets.npy", "source.flat.json"):
        (tmp_path / "mine" / "ds" / name).unlink()
    before = everything_in(tmp_path / "mine")
    config = (sent.run / "config.toml").read_text()
    (sent.run / "config.toml").write_text(config.replace(str(sent.dataset.resolve()), str(tmp_path / "mine" / "ds")))
    assert_refused(ftkit("evaluate", sent.run), "was trained on the dataset with fingerprint")
    assert everything_in(tmp_path / "mine") == before


def test_the_name_of_a_folder_adds_no_column_to_a_table(tmp_path, ftkit):
    folder = tmp_path / "user=7" / "item=x"
    folder.mkdir(parents=True)
    (folder / "s.csv").write_text("user,item,time\na,i,1\nb,j,2\n")
    (folder / "t.csv").write_text("user,item,time\na,p,3\nb,q,4\n")
    source, target = folder / "s.csv", folder / "t.csv"
    done = ftkit("data", "prepare", "events", "--source", source, "--target", target, "--output", folder / "ds")
    assert done.code == 0, done
    assert Dataset.open(folder / "ds").raw_users() == ["a", "b"]
    assert Dataset.open(folder / "ds").raw_target_items() == ["p", "q"]


@pytest.mark.parametrize("given", ["", "user=*", "**/*.csv", "user=7/item=x/s.csv"])
def test_no_folders_name_stands_before_a_column_of_a_file(tmp_path, ftkit, given):
    folder = tmp_path / "time=9" / "user=7" / "item=x"
    folder.mkdir(parents=True)
    (folder / "s.csv").write_text("User,item,time\na,i,1\nb,j,2\n")
    (tmp_path / "t.csv").write_text("User,item,time\na,p,3\nb,q,4\n")
    words = ["--target", tmp_path / "t.csv", "--user-column", "User", "--output", tmp_path / "ds"]
    done = ftkit("data", "prepare", "events", tmp_path / "time=9" / given, *words)
    assert done.code == 0, done
    dataset = Dataset.open(tmp_path / "ds")
    assert (dataset.raw_users(), dataset.raw_source_items()) == (["a", "b"], ["i", "j"])
    words = ["--target", tmp_path / "t.csv", "--user-column", "user", "--output", tmp_path / "ds2"]
    assert_refused(ftkit("data", "prepare", "events", tmp_path / "time=9" / given, *words), "has no column 'user'")


def test_a_partition_that_is_a_link_elsewhere_is_refused(tmp_path):
    (tmp_path / "secret.csv").write_text("user,items\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.csv").write_text("user,items\n")
    for link, target in (("a.csv", "secret.csv"), ("folder", "elsewhere")):
        sent = tmp_path / f"sent-{link}"
        sent.mkdir()
        (sent / link).symlink_to(tmp_path / target)
        with pytest.raises(DataError, match="is a link that leads out of the folder; copy the file there"):
            find_input(str(sent))


def test_a_partition_behind_an_address_whose_name_leads_out_is_refused(monkeypatch):
    for name in ("../x.csv", "a/../../x.csv"):
        file = RemoteFile(f"s3://bucket/sent/{name}", f"bucket/sent/{name}", 1)
        monkeypatch.setattr(
            partitions, "find_place", lambda *_, file=file: Place("s3://bucket/sent", (file,), "bucket/sent")
        )
        with pytest.raises(DataError, match="leads out of the folder"):
            find_input("s3://bucket/sent")


def test_a_receipt_names_no_other_partition_than_its_own(tmp_path):
    receipts = Receipts(tmp_path, {})
    (tmp_path / "a.csv").write_text("")
    content = Content.of(tmp_path / "a.csv")
    receipts.write(Receipt("a.csv", digest({}), content, content, Totals(), ()))
    partition = Partition("a.csv", tmp_path / "a.csv", 0)
    assert set(receipts.finished([partition], overwrite=False)) == {"a.csv"}
    change_json(tmp_path / "_receipts" / "a.csv.json", lambda said: said.update(partition="../a.csv"))
    assert receipts.finished([partition], overwrite=False) == {}


@pytest.mark.parametrize("name", ["../../x", "/x", "a b", "A", "x/y", "-x", ""])
def test_a_plugin_can_not_be_begun_under_a_name_that_leads_elsewhere(name, tmp_path):
    from finetune_kit.cli.scaffold import write_plugin

    with pytest.raises(OptionError, match="can't name a plugin"):
        write_plugin(tmp_path / "project", name)
    assert list(tmp_path.iterdir()) == []


def archive(path: Path, prefix: str, size: int = 1) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in ("ratings.dat", "movies.dat", "users.dat"):
            packed.writestr(prefix + name, b"1" * size)
    return path


@pytest.mark.parametrize("prefix", ["../../", "/", "a/../../../", "C:/"])
def test_an_archive_can_not_write_outside_its_target(tmp_path, prefix):
    (tmp_path / "deep" / "scratch").mkdir(parents=True)
    copy = find_copy(archive(tmp_path / "ml.zip", prefix), tmp_path / "deep" / "scratch")
    assert {path.parent for path in copy.files.values()} == {tmp_path / "deep" / "scratch"}
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"ml.zip", *(f"deep/scratch/{name}" for name in ("ratings.dat", "movies.dat", "users.dat"))}


def test_an_archive_that_unpacks_to_far_more_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("ftkit_datasets.movielens.HARMLESS", 2**16)
    (tmp_path / "scratch").mkdir()
    with pytest.raises(DataError, match=r"unpacks from .* to 1,000,000 bytes"):
        find_copy(archive(tmp_path / "ml.zip", "", 1_000_000), tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_nothing_else_unpacks_archives():
    sources = [path for folder in ("finetune_kit", "plugins") for path in (ROOT / folder).rglob("*.py")]
    unpacking = {
        path.name
        for path in sources
        if any(word in path.read_text() for word in ("zipfile", "tarfile", "unpack_archive", "extractall"))
    }
    assert unpacking == {"movielens.py"}


def test_a_table_is_read_without_what_its_path_says(tmp_path):
    from finetune_kit.files import read_table

    (tmp_path / "user=7").mkdir()
    write_table(tmp_path / "user=7" / "t.parquet", {"user": np.array([1, 2])})
    assert read_table(tmp_path / "user=7" / "t.parquet")["user"].tolist() == [1, 2]

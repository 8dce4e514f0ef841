"""Addresses with passwords and signatures, and file systems that say them back: nothing of it is shown or recorded."""

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations
from sent_files import assert_refused

from finetune_kit.config import resolve_config
from finetune_kit.data.dataset import Dataset
from finetune_kit.data.named import make_reader
from finetune_kit.data.remote import complaint, without_secrets
from finetune_kit.plugins import installed

SECRET = "hunter2"
ADDRESSES = {
    f"ftp://ann:{SECRET}@host/log.csv": "ftp://host/log.csv",
    f"s3://key:{SECRET}/with/slashes@bucket/log": "s3://bucket/log",
    f"https://host/log.csv?X-Signature={SECRET}": "https://host/log.csv",
    f"https://host/log.csv?{SECRET}": "https://host/log.csv",
    f"s3://bucket/part-?.csv?token={SECRET}": "s3://bucket/part-?.csv",
    f"simplecache::ftp://ann:{SECRET}@host/x": "simplecache::ftp://host/x",
    f"abfs://{SECRET}@account/x": "abfs://account/x",
}


class Guarded(MemoryFileSystem):
    """Files in memory behind a password, which complains with the address."""

    protocol = "guarded"
    refuses: str = ""

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol("memory://" + path.split("://")[-1].rpartition("@")[2].partition("?")[0])

    def _refuse(self, doing):
        if doing == self.refuses:
            raise PermissionError(f"403 for guarded://ann:{SECRET}@host/log?token={SECRET}")

    def info(self, path, **kwargs):
        self._refuse("info")
        return super().info(path, **kwargs)

    def _open(self, path, mode="rb", **kwargs):
        self._refuse("open")
        return super()._open(path, mode, **kwargs)


@pytest.fixture
def guarded(monkeypatch, tmp_path):
    monkeypatch.setitem(known_implementations, "guarded", {"class": f"{__name__}.Guarded"})
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pipe("/log/day=1/a.csv", b"user,item,time\nann,x,1\nann,y,2\n")
    (tmp_path / "target.csv").write_text("user,item,time\nann,p,3\n")
    yield Guarded
    memory.store.clear()


@pytest.mark.parametrize(("address", "shown"), ADDRESSES.items())
def test_what_is_shown_of_an_address_holds_no_secret(address, shown):
    assert without_secrets(address) == shown
    assert SECRET not in without_secrets(f"no access to '{address}', sorry")


def test_a_dataset_does_not_record_what_opened_its_files(ftkit, guarded, tmp_path):
    address = f"guarded://ann:{SECRET}@log?token={SECRET}"
    words = ["data", "prepare", "events", address, "--target", "target.csv", "--output", "ds", "--json"]
    done = ftkit(*words)
    assert done.code == 0, done
    assert SECRET not in done.out + done.err
    written = [path for path in (tmp_path / "ds").rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    assert '"source": "guarded://log"' in (tmp_path / "ds" / "dataset.json").read_text()


@pytest.mark.parametrize("refuses", ["info", "open"])
@pytest.mark.parametrize("name", ["log", "log/*/*.csv"])
def test_an_access_that_is_refused_is_told_in_one_line_without_the_password(ftkit, guarded, monkeypatch, refuses, name):
    monkeypatch.setattr(guarded, "refuses", refuses)
    address = f"guarded://ann:{SECRET}@{name}"
    done = ftkit("data", "prepare", "events", address, "--target", "target.csv", "--output", "ds")
    assert_refused(done, "guarded://", "403 for guarded://host/log")
    assert SECRET not in done.out + done.err


def test_an_output_is_a_folder_and_says_so_without_the_password(ftkit, guarded):
    words = ["data", "prepare", "events", "guarded://log", "--target", "target.csv"]
    done = ftkit(*words, "--output", f"s3://ann:{SECRET}@bucket/ds")
    assert_refused(done, "--output 's3://bucket/ds': a dataset is memory-mapped, so it is a folder of this machine")
    assert SECRET not in done.err


def test_options_are_dumped_without_secrets_and_used_with_them():
    component = installed().component("dataset", "events")
    reader = make_reader(component, {"source": f"ftp://ann:{SECRET}@host/x", "target": f"https://host/?{SECRET}"})
    assert reader.options.source.endswith(f"{SECRET}@host/x")
    assert SECRET not in reader.options.model_dump_json()


def test_a_run_does_not_record_what_opened_its_files():
    address = f"ftp://ann:{SECRET}@host/x"
    config = resolve_config({"run": {"data": "events"}, "data": {"source": address, "target": "t.csv"}})
    assert config.reader == {"source": address, "target": "t.csv"}
    assert config.tables()["data"]["source"] == "ftp://host/x"


def test_a_name_with_wildcards_is_one_file(ftkit, guarded, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/other/*.csv", b"user,item,time\nann,x,1\n")
    memory.pipe("/other/z.csv", b"user,item,time\nann,z,1\n")
    words = ["data", "prepare", "events", "memory://other/*.csv", "--target", "target.csv", "--output", "ds"]
    assert ftkit(*words).code == 0
    assert Dataset.open(tmp_path / "ds").raw_source_items() == ["x"]


def test_a_traceback_that_duckdb_wraps_is_one_line():
    wrapped = f"Traceback (most recent call last):\n  File x\nOSError: no ftp://a:{SECRET}@h/x\n\nLINE 1: SELECT"
    assert complaint(RuntimeError(wrapped)) == "OSError: no ftp://h/x"
    assert complaint(TimeoutError()) == "TimeoutError"
    assert complaint(ValueError("a\nb")) == "ValueError: a"

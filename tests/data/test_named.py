import pytest

from finetune_kit.component import Component
from finetune_kit.data import named
from finetune_kit.data.dataset import Dataset
from finetune_kit.data.named import cache_folder, make_reader, resolve_dataset
from finetune_kit.data.preparation import preparing
from finetune_kit.data.prepare import write_dataset
from finetune_kit.data.reader import DatasetReader
from finetune_kit.errors import DataError, OptionError
from finetune_kit.options import Options


class TinyOptions(Options):
    users: int = 3
    """Number of users."""
    most: int | None = 2
    """Target events per user."""


class Tiny(DatasetReader):
    """One source and one target event per user."""

    Options = TinyOptions
    options: TinyOptions
    prepared = 0

    def prepare(self, output):
        Tiny.prepared += 1
        with preparing(output) as preparation:
            for name in ("source", "target"):
                events = "'u' || k AS user, 'i' AS item, 0 AS time, 0 AS tie"
                query = f"SELECT {events} FROM range({self.options.users}) r(k)"
                preparation.connection.execute(f"CREATE TABLE {name} AS {query}")
            write_dataset(preparation, options=self.options.model_dump(), inputs=[])


TINY = Component("tiny", "Three users.", f"{__name__}:Tiny")


class Installed:
    def components(self, kind):
        assert kind == "dataset"
        return {"tiny": TINY, "events": Component("events", "Logs.", "ftkit_datasets.events:Events")}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(named, "installed", Installed)
    monkeypatch.setattr(Component, "load", lambda self: Tiny if self.name == "tiny" else _events())
    return tmp_path / "cache"


def _events():
    from ftkit_datasets.events import Events

    return Events


def test_a_folder_is_itself(tmp_path, cache):
    assert resolve_dataset(str(tmp_path), {}) == tmp_path
    with pytest.raises(OptionError, match="takes no options: users"):
        resolve_dataset(str(tmp_path), {"users": 3})


def test_a_named_dataset_is_prepared_once_per_options(cache):
    Tiny.prepared = 0
    three = resolve_dataset("tiny", {})
    assert resolve_dataset("tiny", {"users": "3"}) == three
    four = resolve_dataset("tiny", {"users": "4"})
    assert three.parent.parent == four.parent.parent == cache / "datasets"
    assert Dataset.open(three).name == Dataset.open(four).name == "tiny"
    assert (Dataset.open(three).num_users, Dataset.open(four).num_users) == (3, 4)
    assert Tiny.prepared == 2


def test_neither_a_folder_nor_a_name_is_refused_with_the_closest_name(cache):
    with pytest.raises(
        DataError, match=r"no dataset folder at 'tinny'.*Did you mean 'tiny'\? Datasets: 'tiny', 'events'"
    ):
        resolve_dataset("tinny", {})


def test_a_dataset_that_needs_files_says_what_it_needs(cache):
    with pytest.raises(OptionError, match="dataset 'events' needs the option source; see `ftkit data prepare events"):
        resolve_dataset("events", {})


def test_none_stands_for_no_value():
    assert make_reader(TINY, {"most": "none"}).options.most is None
    with pytest.raises(OptionError, match=r"no option tiny\.user\. Did you mean 'users'\?"):
        make_reader(TINY, {"user": "4"})


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("FTKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "ftkit"

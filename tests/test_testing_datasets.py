"""The contract of dataset readers: the built-in ones keep it, and planted mistakes break it."""

# ruff: noqa: RUF012  (class attributes as in a plugin author's test)

import json
from pathlib import Path

import pytest

from finetune_kit.component import Component
from finetune_kit.data.preparation import preparing
from finetune_kit.data.prepare import write_dataset
from finetune_kit.data.reader import DatasetReader
from finetune_kit.options import Options
from finetune_kit.plugins import installed
from finetune_kit.testing import DatasetContract
from finetune_kit.testing.dataset_contract import NO_INPUT


class TestEvents(DatasetContract):
    dataset = "events"
    sequences = {"ann": ["y", "x", "x"], "bob": ["z"]}
    targets = {"ann": ["p"], "bob": ["q"]}

    def bad_inputs(self, folder):
        given = self.make_input(folder)
        for row in ("ann,,5", "ann,k,soon", "ann,x"):
            (folder / "bad.csv").write_text(f"user,item,time\nann,x,1\n{row}\n")
            (folder / "target.csv").write_text("user,item,time\nann,p,9\n")
            for on_bad in ("refuse", "drop"):
                yield {**given, "source": str(folder / "bad.csv"), "on_bad": on_bad}


class TestColdRec(DatasetContract):
    dataset = "coldrec"
    sequences = {"000000001": ["7", "5", "7"]}
    targets = {"000000001": ["3", "2"]}

    def bad_inputs(self, folder):
        for line in ("7,x,,3", "7,0,5,,3", "7,5"):
            (folder / "bad.csv").write_text(f"{line}\n")
            yield {"file": str(folder / "bad.csv")}


class TestMovieLens(DatasetContract):
    dataset = "movielens"
    sequences = {"1": ["A (1995)"]}
    targets = {"1": ["B (1990)"]}

    def bad_inputs(self, folder):
        given = self.make_input(folder)
        (folder / "ratings.dat").write_text("1::1::5::40\n1::2::5::soon\n")
        yield given


class TestSynthetic(DatasetContract):
    dataset = "synthetic"
    options = {"users": 20}

    def bad_inputs(self, folder):
        yield {"users": 3}


class OneUserOptions(Options):
    file: str = ""
    """The file to read; none makes the user up."""


class OneUser(DatasetReader):
    """Keeps every promise."""

    Options = OneUserOptions
    positional = "file"
    target = ("p", "q")

    def user(self) -> str:
        return "ann"

    @classmethod
    def example(cls, folder: Path):
        (folder / "user.json").write_text('["x", "y"]')
        return {"file": str(folder / "user.json")}

    def prepare(self, output: Path) -> None:
        items = self.read()
        with preparing(output) as preparation:
            for domain, row in (("source", items), ("target", self.target)):
                preparation.connection.execute(
                    f'CREATE TABLE {domain} ("user" VARCHAR, item VARCHAR, time INT, tie INT)'
                )
                rows = [(self.user(), item, time) for time, item in enumerate(row)]
                preparation.connection.executemany(f"INSERT INTO {domain} VALUES (?, ?, ?, 0)", rows)
            write_dataset(preparation, **self.recorded())

    def read(self) -> list[str]:
        from finetune_kit.errors import DataError

        try:
            return json.loads(Path(self.options.file).read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{self.options.file}: {' '.join(str(error).split())}; give a JSON list") from error

    def recorded(self):
        return {"options": self.options.model_dump(), "inputs": [Path(self.options.file)]}


class LosesAnItem(OneUser):
    def read(self):
        return super().read()[1:]


class TargetTwice(OneUser):
    target = ("p", "p")


class NamesByFolder(OneUser):
    def user(self):
        return str(Path(self.options.file).parent.name)


class RecordsNothing(OneUser):
    def recorded(self):
        return {"options": {}, "inputs": []}


class TellsInLines(OneUser):
    def read(self):
        return json.loads(Path(self.options.file).read_text())


class LeavesSomething(OneUser):
    def prepare(self, output):
        super().prepare(output)
        (output.parent / "left.txt").write_text("")


class WritesOver(OneUser):
    def prepare(self, output):
        if output.exists():
            (output / "mine.txt").unlink()
        super().prepare(output)


class BareOptions(Options):
    file: str = ""


class Undocumented(OneUser):
    Options = BareOptions


def contract_of(reader: type[DatasetReader], monkeypatch) -> DatasetContract:
    class Contract(DatasetContract):
        dataset = "planted"
        sequences = {"ann": ["x", "y"]} if reader is not NamesByFolder else {}

        def bad_inputs(self, folder):
            (folder / "bad.json").write_text("[1,")
            yield {"file": str(folder / "bad.json")}

    component = Component("planted", "Planted", f"{__name__}:{reader.__name__}")
    monkeypatch.setitem(installed()._components["dataset"], "planted", component)
    monkeypatch.setattr(Component, "load", lambda self: reader)
    return Contract()


def keep(contract: DatasetContract, promise: str, folder: Path) -> None:
    test = getattr(contract, promise)
    if promise == "test_a_file_without_data_is_refused_in_one_line":
        for content in NO_INPUT:
            test(content, folder / content)
    elif "tmp_path" in test.__func__.__code__.co_varnames[: test.__func__.__code__.co_argcount]:
        test(folder)
    else:
        test()


PROMISES = [name for name in vars(DatasetContract) if name.startswith("test_")]


@pytest.mark.parametrize("promise", PROMISES)
def test_a_reader_that_keeps_every_promise_passes(promise, monkeypatch, tmp_path):
    keep(contract_of(OneUser, monkeypatch), promise, tmp_path)


@pytest.mark.parametrize(
    ("planted", "promise"),
    [
        (LosesAnItem, "raw_ids_lead_back"),
        (TargetTwice, "no_user_has_a_target_item_twice"),
        (NamesByFolder, "the_same_input_gives_the_same_fingerprint"),
        (RecordsNothing, "what_a_dataset_was_made_of_is_recorded"),
        (TellsInLines, "a_file_without_data_is_refused_in_one_line"),
        (TellsInLines, "bad_rows_are_refused_in_one_line_or_counted"),
        (LeavesSomething, "it_makes_a_dataset_that_opens"),
        (WritesOver, "a_folder_that_is_taken_is_left_alone"),
        (Undocumented, "every_option_is_documented"),
    ],
)
def test_a_planted_reader_breaks_its_promise(planted, promise, monkeypatch, tmp_path):
    with pytest.raises((AssertionError, ValueError, OSError, pytest.fail.Exception)):
        keep(contract_of(planted, monkeypatch), f"test_{promise}", tmp_path)


def test_a_reader_without_an_example_is_not_called_tried(tmp_path):
    class NeedsAFile(OneUser):
        class Options(Options):
            path: str
            """A file."""

        @classmethod
        def example(cls, folder):
            return {}

    contract = DatasetContract()
    contract.reader_class = lambda: NeedsAFile
    with pytest.raises(pytest.skip.Exception, match=r"NeedsAFile.example must give the option path"):
        contract.make_input(tmp_path)

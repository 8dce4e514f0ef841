"""The promises that every dataset reader keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from finetune_kit.data.dataset import Dataset
from finetune_kit.data.named import make_reader
from finetune_kit.data.reader import DatasetReader
from finetune_kit.errors import FinetuneKitError
from finetune_kit.options import describe
from finetune_kit.plugins import installed

NO_INPUT = {"missing": None, "empty": b"", "garbage": b"\x00\xff\xfe\x80 no data\n\xff" * 9}
"""Files that hold nothing a reader could use: none, an empty one, bytes that are no text."""


class DatasetContract:
    """Derive, name the dataset reader, and pytest collects its promises.

    For implementers: write `DatasetReader.example`, or override `make_input`, where the reader needs files; override
    `bad_inputs` to have your own checks of rows tried.
    """

    dataset: ClassVar[str]
    """Name of the installed reader."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Its options, beside those that `make_input` returns; keep it small."""
    sequences: ClassVar[Mapping[str, Sequence[str]]] = {}
    """What users of the input did in the source domain, raw user to raw items, oldest first; as many as you like."""
    targets: ClassVar[Mapping[str, Sequence[str]]] = {}
    """What they did in the target domain, likewise."""

    def reader_class(self) -> type[DatasetReader]:
        """Return the class behind the reader's name."""
        return installed().component("dataset", self.dataset).load()

    def make_input(self, folder: Path) -> Mapping[str, Any]:
        """Write a small input into an empty folder, the same at each call; return the options that read it."""
        reader = self.reader_class()
        given = reader.example(folder)
        fields = reader.Options.model_fields.items()
        if missing := [name for name, field in fields if field.is_required() and name not in {**self.options, **given}]:
            pytest.skip(f"no input to try: {reader.__name__}.example must give the option {', '.join(missing)}")
        return given

    def bad_inputs(self, folder: Path) -> Iterable[Mapping[str, Any]]:
        """Write inputs that have rows which can't be used; return the options that read each."""
        return []

    def prepare(self, folder: Path, **options: Any) -> Dataset:
        """Prepare the input, with options changed, in an empty folder; return the dataset, which lies in ``out``."""
        given = self.make_input(_new(folder))
        self._read({**given, **options}, folder / "out")
        return Dataset.open(folder / "out")

    def _read(self, options: Mapping[str, Any], output: Path) -> None:
        make_reader(installed().component("dataset", self.dataset), {**self.options, **options}).prepare(output)

    # What it makes

    def test_it_makes_a_dataset_that_opens(self, tmp_path: Path) -> None:
        """It prepares a dataset with users and source items, and leaves nothing else behind."""
        before = self._files_of_the_input(tmp_path / "one")
        dataset = self.prepare(tmp_path / "two")
        assert dataset.num_users >= 1
        assert dataset.num_source_items >= 1
        beside = {path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*")}
        assert {path for path in beside if path.parts[0] != "out"} == before, "something temporary was left behind"

    def test_ids_are_dense_from_1(self, tmp_path: Path) -> None:
        """Users, source items and target items are numbered from 1, and each number is used."""
        dataset = self.prepare(tmp_path)
        assert np.unique(dataset.source_items).tolist() == [*range(1, dataset.num_source_items + 1)]
        assert np.unique(dataset.target.item).tolist() == [*range(1, dataset.num_target_items + 1)]
        assert len(dataset.source_lengths) == dataset.num_users
        assert (dataset.source_lengths >= 1).all(), "a user without a source event"
        assert set(dataset.target.user.tolist()) <= {*range(1, dataset.num_users + 1)}

    def test_raw_ids_lead_back(self, tmp_path: Path) -> None:
        """Each number stands for one raw id of its own, and users have the raw items that the input gives them."""
        dataset = self.prepare(tmp_path)
        users, items, targets = dataset.raw_users(), dataset.raw_source_items(), dataset.raw_target_items()
        counts = (dataset.num_users, dataset.num_source_items, dataset.num_target_items)
        for raw, count in zip((users, items, targets), counts, strict=True):
            assert len(set(raw)) == len(raw) == count
            assert all(raw)
        for user, expected in self.sequences.items():
            number = np.array([users.index(user) + 1])
            found = dataset.sequences(number, int(dataset.source_lengths.max()))[0]
            assert [items[item - 1] for item in found if item] == list(expected), user
        for user, expected in self.targets.items():
            own = dataset.target.item[dataset.target.user == users.index(user) + 1]
            assert [targets[item - 1] for item in own] == list(expected), user

    def test_no_user_has_a_target_item_twice(self, tmp_path: Path) -> None:
        """No user has a target item twice, to be trained on it and tested on it."""
        target = self.prepare(tmp_path).target
        assert len(set(zip(target.user.tolist(), target.item.tolist(), strict=True))) == len(target.user)

    def test_the_same_input_gives_the_same_fingerprint(self, tmp_path: Path) -> None:
        """The same input gives the same fingerprint, in any folder and at any time."""
        assert self.prepare(tmp_path / "one").fingerprint == self.prepare(tmp_path / "two").fingerprint

    def test_what_a_dataset_was_made_of_is_recorded(self, tmp_path: Path) -> None:
        """The dataset names the reader's options, and the files it was made of."""
        manifest = self.prepare(tmp_path).manifest
        missing = self.reader_class().Options.model_fields.keys() - manifest["options"].keys()
        assert not missing, f"options that are not recorded: {sorted(missing)}"
        if self.reader_class().positional is not None:
            assert manifest["inputs"], "no file is recorded"

    # What it refuses

    def test_a_folder_that_is_taken_is_left_alone(self, tmp_path: Path) -> None:
        """It does not write where something else stands."""
        given = self.make_input(_new(tmp_path / "input"))
        (_new(tmp_path / "out") / "mine.txt").write_text("dear")
        with pytest.raises(FinetuneKitError) as caught:
            self._read(given, tmp_path / "out")
        _assert_one_line(caught.value)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]

    @pytest.mark.parametrize("content", NO_INPUT)
    def test_a_file_without_data_is_refused_in_one_line(self, content: str, tmp_path: Path) -> None:
        """A file that is missing, empty or no text is refused in one line, or what it drops is counted."""
        file = self.reader_class().positional
        if file is None:
            return
        written, data = _new(tmp_path / "input") / "data.csv", NO_INPUT[content]
        if data is not None:
            written.write_bytes(data)
        self._check_refusal({file: str(written)}, tmp_path)

    def test_bad_rows_are_refused_in_one_line_or_counted(self, tmp_path: Path) -> None:
        """Rows that can't be used are refused in one line, or dropped with a count."""
        inputs = list(self.bad_inputs(_new(tmp_path / "input")))
        if not inputs:
            pytest.skip("the contract's bad_inputs gives no rows to try")
        for number, options in enumerate(inputs):
            self._check_refusal(options, tmp_path / str(number))

    def test_every_option_is_documented(self) -> None:
        """Each option has its docstring, the help that `ftkit data prepare` shows."""
        bare = [row.name for row in describe(self.reader_class().Options) if not row.description]
        assert not bare, f"options without a docstring: {bare}"

    def _check_refusal(self, options: Mapping[str, Any], folder: Path) -> None:
        """Assert that what can't be used is refused in one line with nothing left behind, or dropped and counted."""
        try:
            self._read(options, folder / "out")
        except FinetuneKitError as error:
            _assert_one_line(error)
            assert not (folder / "out").exists()
            assert not list(folder.glob(".*")), "something temporary was left behind"
            return
        assert Dataset.open(folder / "out").manifest["warnings"], f"nothing was said of {dict(options)}"

    def _files_of_the_input(self, folder: Path) -> set[Path]:
        self.make_input(_new(folder))
        return {path.relative_to(folder) for path in folder.rglob("*")}


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _assert_one_line(error: FinetuneKitError) -> None:
    assert str(error)
    assert "\n" not in str(error)

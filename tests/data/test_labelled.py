from pathlib import Path

import numpy as np
import pytest

from finetune_kit.data.dataset import Dataset
from finetune_kit.data.labelled import LabelledDataset, for_task
from finetune_kit.errors import DataError, OptionError
from ftkit_datasets.events import Events, EventsOptions

EVENTS = "user,item,time\na,x,1\na,y,2\nb,x,1\nc,y,1\nc,x,2\nd,x,1\n"
LABELS = "user,age,town\na,30,Rome\nb,4,Rome\nc,,Rome\nd,30,Rome\n"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four users; the age of c is not known, all live in one town."""
    folder = tmp_path_factory.mktemp("labelled")
    for name, text in (("source", EVENTS), ("target", EVENTS), ("labels", LABELS)):
        (folder / f"{name}.csv").write_text(text)
    options = EventsOptions(
        source=str(folder / "source.csv"), target=str(folder / "target.csv"), labels=str(folder / "labels.csv")
    )
    Events(options).prepare(folder / "prepared")
    return Dataset.open(folder / "prepared")


def test_a_label_is_a_target_whose_items_are_its_classes(dataset: Dataset) -> None:
    labelled = for_task(dataset, "label:age")
    assert isinstance(labelled, LabelledDataset)
    assert labelled.raw_target_items() == ["4", "30"]  # as numbers, not as text
    assert labelled.num_target_items == 2
    names = dict(zip(labelled.raw_users(), range(1, 5), strict=True))
    found = dict(zip(labelled.target.user.tolist(), labelled.target.item.tolist(), strict=True))
    assert found == {names["a"]: 2, names["b"]: 1, names["d"]: 2}  # nobody knows the age of c


def test_everything_else_is_the_datasets_own(dataset: Dataset) -> None:
    labelled = for_task(dataset, "label:age")
    assert labelled.fingerprint == dataset.fingerprint
    assert labelled.source_items_hash == dataset.source_items_hash
    assert labelled.target_items_hash != dataset.target_items_hash
    users = np.arange(1, 5)
    assert (labelled.sequences(users, 3) == dataset.sequences(users, 3)).all()


def test_the_task_of_items_leaves_a_dataset_as_it_is_and_a_label_is_put_on_once(dataset: Dataset) -> None:
    assert for_task(dataset, "items") is dataset
    labelled = for_task(dataset, "label:age")
    assert for_task(labelled, "label:age") is labelled


def test_another_task_takes_the_label_off_again(dataset: Dataset) -> None:
    labelled = for_task(dataset, "label:age")
    assert not isinstance(for_task(labelled, "items"), LabelledDataset)
    with pytest.raises(DataError, match="'town'"):
        for_task(labelled, "label:town")


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        ("label:agge", DataError, r"no label 'agge' in .*Did you mean 'age'\? Labels: age, town"),
        ("label:town", DataError, r"the label 'town' of .* has one class; telling classes apart needs two"),
        ("label:", OptionError, r"--task 'label:' is neither items nor label:NAME, e.g. label:gender"),
        ("itmes", OptionError, r"--task 'itmes' is neither items nor label:NAME"),
    ],
)
def test_a_task_that_cannot_be_is_refused(dataset: Dataset, task: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        for_task(dataset, task)


def test_a_dataset_without_labels_says_so(tmp_path: Path) -> None:
    for name in ("source", "target"):
        (tmp_path / f"{name}.csv").write_text(EVENTS)
    Events(EventsOptions(source=str(tmp_path / "source.csv"), target=str(tmp_path / "target.csv"))).prepare(
        tmp_path / "prepared"
    )
    with pytest.raises(DataError, match=r"no label 'age' in .* Labels: none"):
        for_task(Dataset.open(tmp_path / "prepared"), "label:age")

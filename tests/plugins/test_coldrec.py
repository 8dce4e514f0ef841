import numpy as np
import pytest

from finetune_kit.data.dataset import Dataset
from finetune_kit.errors import DataError, OptionError
from finetune_kit.options import resolve
from ftkit_datasets.coldrec import ColdRec, ColdRecOptions

LINES = "0,0,7,5,7,,3,2\n0,11,5,,3\n"


def prepare(folder, text: str, pretrain: str | None = None, **options) -> Dataset:
    (folder / "target.csv").write_text(text)
    if pretrain is not None:
        (folder / "source.csv").write_text(pretrain)
        options["pretrain_file"] = str(folder / "source.csv")
    ColdRec(ColdRecOptions(file=str(folder / "target.csv"), **options)).prepare(folder / "out")
    return Dataset.open(folder / "out")


def sequences(dataset: Dataset) -> list[list[str]]:
    items = dataset.raw_source_items()
    rows = dataset.sequences(np.arange(1, dataset.num_users + 1), 10)
    return [[items[item - 1] for item in row if item] for row in rows]


def test_a_line_is_a_user_and_its_padding_is_dropped(tmp_path):
    dataset = prepare(tmp_path, LINES)
    assert sequences(dataset) == [["7", "5", "7"], ["11", "5"]]
    assert dataset.raw_source_items() == ["11", "5", "7"]
    target = dataset.raw_target_items()
    instances = zip(*(column.tolist() for column in dataset.target), strict=True)
    assert [(user, target[item - 1], position) for user, item, position in instances] == [
        (1, "3", 0),
        (1, "2", 1),
        (2, "3", 0),
    ]
    assert dataset.manifest["raw"]["times"] is None


def test_users_keep_the_order_of_their_lines(tmp_path):
    dataset = prepare(tmp_path, "".join(f"{k},,1\n" for k in range(1, 13)))
    assert [row[0] for row in sequences(dataset)] == [str(k) for k in range(1, 13)]


def test_lines_of_the_pretraining_file_are_users_without_target(tmp_path):
    dataset = prepare(tmp_path, LINES, "9,8\n0,7\n")
    assert sequences(dataset)[2:] == [["9", "8"], ["7"]]
    assert dataset.raw_users()[2:] == ["pretrain-000000001", "pretrain-000000002"]
    assert set(dataset.target.user.tolist()) == {1, 2}


def test_a_profile_class_becomes_a_label(tmp_path):
    dataset = prepare(tmp_path, "1,2,,0\n3,,4\n", task="label", label_name="age")
    assert dataset.labels["age"].classes == ("0", "4")
    assert dataset.labels["age"].value.tolist() == [0, 1]
    assert len(dataset.target.user) == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1,,2\n\n3,,4\n", "line 2: a blank line"),
        ("1,,2\n1,-3,,4\n", "line 2: id '-3' is not a whole number"),
        ("1,,2\n1,x,,4\n", "line 2: id 'x' is not a whole number"),
        ("1,2\n", "line 1: the line is not of the form id,…,id,,y1,y2,…"),
        ("1,2,,\n", "line 1: the line is not of the form"),
        ("1,2,,3,,4\n", "line 1: the line is not of the form"),
        ("1,,2\n0,1,0,2,,4\n", "line 2: a 0 after an item"),
        ("1,,2\n0,0,,4\n", "line 2: a user without source history"),
        ("1,,2,0\n", "line 1: target item 0"),
        ("1,,2,3,02\n", "line 1: a target item stands twice"),
        ("", "has no rows"),
    ],
)
def test_a_bad_line_is_refused_with_its_number_and_reason(tmp_path, text, reason):
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, text)
    assert "target.csv" in str(caught.value) and reason in str(caught.value)


def test_bad_lines_are_dropped_with_a_warning_when_asked(tmp_path):
    dataset = prepare(tmp_path, "x,,1\n" + LINES + "\n1,0,,2\n", "5\n6,,7\n", on_bad="drop")
    assert sequences(dataset) == [["7", "5", "7"], ["11", "5"], ["5"]]
    assert len(dataset.manifest["warnings"]) == 4


def test_a_profile_line_has_one_class(tmp_path):
    with pytest.raises(DataError, match="not of the form id,…,id,,class"):
        prepare(tmp_path, "1,,2,3\n", task="label")


def test_a_label_is_not_called_user():
    with pytest.raises(OptionError, match="choose another"):
        resolve(ColdRecOptions, {"file": "x", "label_name": "user"}, "coldrec")

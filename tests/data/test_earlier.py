import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_kit.data.earlier import NEW, PARTS, SPLIT, Earlier
from finetune_kit.data.split import split
from finetune_kit.errors import CheckpointError
from finetune_kit.files import write_table
from growing import FEW, MANY, SMALL, make


def earlier(*rows):
    user, item, part = zip(*rows, strict=True)
    return Earlier(np.array(user), np.array(item), np.array([PARTS.index(name) for name in part]))


def test_an_instance_keeps_its_part_and_training_comes_first():
    had = earlier((1, 1, "test"), (1, 2, "train"), (2, 1, "valid"), (3, 1, "test"), (3, 1, "train"))
    user, item = np.array([1, 1, 2, 2, 3]), np.array([1, 2, 1, 2, 1])
    assert had.part_of(user, item, "instance").tolist() == [2, 0, 1, NEW, 0]
    assert had.part_of(user, item, "user").tolist() == [0, 0, 1, 1, 0]


had_parts = st.dictionaries(st.integers(0, 79), st.integers(0, 2), min_size=1, max_size=20)


@given(had_parts, st.integers(0, 5), st.sampled_from(["instance", "user", "authors"]))
def test_what_was_trained_on_is_never_measured_on_and_nothing_is_lost(parts, seed, protocol):
    user, item = np.repeat(np.arange(1, 41), 2), np.tile([1, 2], 40)
    some, part = (np.array([*column]) for column in (parts.keys(), parts.values()))
    had = Earlier(user[some], item[some], part)
    kept = had.keep(split(user, protocol, seed), user, item, protocol)
    trained, measured = {*kept.train}, {*kept.valid} | {*kept.test}
    assert {some[k] for k in np.flatnonzero(part == 0)} <= trained
    assert not trained & measured
    assert trained | measured == {*range(len(user))}
    if protocol == "user":
        assert not {*user[kept.train]} & {*user[[*measured]]}


def test_what_a_run_kept_is_read_again_and_damage_is_told(tmp_path):
    had = earlier((1, 1, "test"), (1, 2, "train"))
    assert Earlier.read(tmp_path) is None
    had.write(tmp_path)
    read = Earlier.read(tmp_path)
    assert read is not None
    for name in ("user", "item", "part"):
        assert getattr(read, name).tolist() == getattr(had, name).tolist()
    (tmp_path / "earlier.parquet").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"earlier\.parquet is damaged"):
        Earlier.read(tmp_path)


def test_a_table_that_lacks_a_column_or_holds_no_part_is_damaged(tmp_path):
    had = earlier((1, 1, "test"))
    had.write(tmp_path, SPLIT)
    write_table(tmp_path / "earlier.parquet", {"user": np.array([1]), "item": np.array([1])})
    with pytest.raises(CheckpointError, match=r"earlier\.parquet is damaged: .*part"):
        Earlier.read(tmp_path)
    part = np.array(["tests"], dtype=object)
    write_table(tmp_path / "earlier.parquet", {"user": np.array([1]), "item": np.array([1]), "part": part})
    with pytest.raises(CheckpointError, match=r"earlier\.parquet is damaged: a part is none of train, valid, test"):
        Earlier.read(tmp_path)


def instances(parts, dataset):
    """Return raw user, raw item and part of what is known of a dataset's users and items."""
    users, items = dataset.raw_users(), dataset.raw_target_items()
    dense = [row for row in zip(parts.user, parts.item, parts.part, strict=True) if row[1]]
    return {(users[user - 1], items[item - 1], int(part)) for user, item, part in dense}


def test_parts_go_along_a_chain_of_datasets_of_which_some_lack_users_and_items(tmp_path):
    one = make(tmp_path / "one", SMALL, FEW, users=30)
    two = make(tmp_path / "two", SMALL, ("o", "q"), users=15, first=10)  # users 10 to 24; neither p nor r
    three = make(tmp_path / "three", SMALL, MANY, users=40)
    first = Earlier(one.target.user, one.target.item, np.arange(len(one.target.user)) % 3)
    known = instances(first, one)
    (tmp_path / "a").mkdir()
    first.write(tmp_path / "a", SPLIT)
    second = Earlier.of(tmp_path / "a", one, two)
    assert second is not None
    assert instances(second, two) | second.gone == known
    assert {item for _, item, _ in second.gone} == {"p", "q", "r"}
    (tmp_path / "b").mkdir()
    second.write(tmp_path / "b")
    used = Earlier(two.target.user[:7], two.target.item[:7], np.zeros(7, dtype=np.int64))
    used.write(tmp_path / "b", SPLIT)  # the split of a run has what its dataset has
    third = Earlier.of(tmp_path / "b", two, three)
    assert third is not None
    assert not third.gone
    assert instances(third, three) == known | instances(used, two)
    again = Earlier.of(tmp_path / "b", two, two)
    assert again is not None
    assert again.gone == second.gone


def test_a_user_whose_items_are_gone_stays_where_they_were(tmp_path):
    one, two = make(tmp_path / "one", SMALL, FEW, users=30), make(tmp_path / "two", SMALL, ("x", "y"), users=30)
    Earlier(one.target.user, one.target.item, one.target.user % 3).write(tmp_path, SPLIT)
    had = Earlier.of(tmp_path, one, two)
    assert had is not None
    user, item = two.target.user, two.target.item
    assert had.part_of(user, item, "user").tolist() == (user % 3).tolist()
    assert set(had.part_of(user, item, "instance")) == {NEW}
    had.write(tmp_path, SPLIT)
    again = Earlier.of(tmp_path, two, one)
    assert again is not None
    assert instances(again, one) == {
        (one.raw_users()[user - 1], one.raw_target_items()[item - 1], int(user % 3))
        for user, item in zip(one.target.user, one.target.item, strict=True)
    }

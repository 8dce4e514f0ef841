import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_kit.data.earlier import NEW, PARTS, Earlier
from finetune_kit.data.split import split
from finetune_kit.errors import CheckpointError


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

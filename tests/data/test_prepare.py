from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_kit.data import flat
from finetune_kit.data.dataset import Dataset
from finetune_kit.data.preparation import Preparation, preparing
from finetune_kit.data.prepare import write_dataset
from finetune_kit.errors import DataError

Event = tuple[str, str, int]


def fill(preparation: Preparation, source: list[Event], target: list[Event], labels: dict[str, str] | None = None):
    for name, events in (("source", source), ("target", target)):
        preparation.connection.execute(f"CREATE TABLE {name} (user VARCHAR, item VARCHAR, time BIGINT, tie BIGINT)")
        if events:
            columns = [list(column) for column in zip(*events, strict=True)]
            insert = f"INSERT INTO {name} SELECT unnest(?), unnest(?), unnest(?), unnest(?)"
            preparation.connection.execute(insert, [*columns, list(range(len(events)))])
    if labels is not None:
        preparation.connection.execute("CREATE TABLE labels (user VARCHAR, colour VARCHAR)")
        preparation.connection.executemany("INSERT INTO labels VALUES (?, ?)", list(labels.items()))


def write(output: Path, source: list[Event], target: list[Event], labels=None, **options) -> Dataset:
    with preparing(output) as preparation:
        fill(preparation, source, target, labels)
        write_dataset(preparation, options={}, inputs=[], **options)
    return Dataset.open(output)


def content(dataset: Dataset) -> dict:
    """Return a dataset in raw ids: per user the source items and the target items, both in order."""
    source, target = dataset.raw_source_items(), dataset.raw_target_items()
    length = int(dataset.source_lengths.max())
    sequences = dataset.sequences(np.arange(1, dataset.num_users + 1), length)
    mine = {user: [] for user in range(1, dataset.num_users + 1)}
    for user, item, position in zip(*(column.tolist() for column in dataset.target), strict=True):
        assert position == len(mine[user])
        mine[user].append(target[item - 1])
    return {
        raw: ([source[item - 1] for item in sequence if item], mine[user])
        for user, (raw, sequence) in enumerate(zip(dataset.raw_users(), sequences, strict=True), 1)
    }


def slow_content(source: list[Event], target: list[Event], max_target: int | None, min_source: int) -> dict:
    """Return what `content` should, by an obvious loop; Python's sort is stable, so ties keep their order."""
    result = {}
    for user in sorted({user for user, _, _ in source} & {user for user, _, _ in target}, key=str.encode):
        mine = [item for _, item, _ in sorted((e for e in source if e[0] == user), key=lambda e: e[2])]
        wanted = [item for _, item, _ in sorted((e for e in target if e[0] == user), key=lambda e: e[2])]
        if len(mine) >= min_source:
            result[user] = (mine, wanted[:max_target])
    return result


names = st.sampled_from(["a", "b", "B", "10", "9", "é", "it's", 'say "hi"', "user; DROP TABLE source", " "])
logs = st.lists(st.tuples(names, names, st.integers(-3, 3)), max_size=25)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(source=logs, target=logs, max_target=st.none() | st.integers(1, 3), min_source=st.integers(1, 3))
def test_a_prepared_folder_equals_an_obvious_loop(tmp_path_factory, source, target, max_target, min_source):
    output = tmp_path_factory.mktemp("prepared") / "out"
    expected = slow_content(source, target, max_target, min_source)
    if not expected:
        with pytest.raises(DataError, match="no user is left"):
            write(output, source, target, max_target=max_target, min_source=min_source)
        assert not output.exists()
        return
    dataset = write(output, source, target, max_target=max_target, min_source=min_source)
    assert content(dataset) == expected
    assert dataset.raw_source_items() == sorted(
        {item for mine, _ in expected.values() for item in mine}, key=str.encode
    )
    assert dataset.raw_target_items() == sorted(
        {item for _, mine in expected.values() for item in mine}, key=str.encode
    )


def many(users: int = 40, length: int = 30) -> tuple[list[Event], list[Event]]:
    source = [(f"u{k % users}", f"i{k * 7 % 23}", k) for k in range(users * length)]
    return source, [(f"u{k}", f"t{k % 5}", k) for k in range(users)]


def test_the_same_events_give_the_same_files_whatever_the_folder(tmp_path):
    source, target = many()
    one, other = (write(tmp_path / name, source, target) for name in ("one", "other"))
    assert one.fingerprint == other.fingerprint
    assert (tmp_path / "one/source.items.npy").read_bytes() == (tmp_path / "other/source.items.npy").read_bytes()


def test_ranges_of_users_do_not_change_the_dataset(tmp_path, monkeypatch):
    source, target = many()
    whole = write(tmp_path / "whole", source, target)
    monkeypatch.setattr(flat, "EVENTS_AT_ONCE", 100)
    pieces = write(tmp_path / "pieces", source, target)
    assert content(whole) == content(pieces)


def test_a_user_with_more_events_than_a_range_is_a_range_of_its_own(monkeypatch):
    monkeypatch.setattr(flat, "EVENTS_AT_ONCE", 10)
    assert list(flat.user_ranges(np.array([4, 6, 1, 50, 2, 8]))) == [(0, 2), (2, 3), (3, 4), (4, 6)]


def test_other_events_give_another_fingerprint(tmp_path):
    source, target = many()
    one = write(tmp_path / "one", source, target)
    other = write(tmp_path / "other", source[:-1], target)
    assert one.fingerprint != other.fingerprint
    assert one.target_items_hash == other.target_items_hash


def test_an_output_that_is_taken_is_refused_before_any_work(tmp_path):
    source, target = many(3, 3)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", source, target)
    with pytest.raises(DataError, match=r"is a dataset already; .*--overwrite"):
        write(tmp_path / "empty", source, target)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("dear")
    with pytest.raises(DataError, match="exists and is no dataset"), preparing(tmp_path / "full"):
        raise AssertionError("not reached")


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt), preparing(tmp_path / "out") as preparation:
        fill(preparation, *many(3, 3))
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_memory_limit_that_is_none_is_refused(tmp_path):
    with pytest.raises(DataError, match="--memory-limit 'plenty'"), preparing(tmp_path / "out", "plenty"):
        raise AssertionError("not reached")


def test_who_is_left_out_is_recorded_with_the_reason(tmp_path):
    source = [("a", "x", 1), ("a", "y", 2), ("b", "x", 1), ("c", "x", 1), ("c", "y", 1)]
    target = [("a", "p", 1), ("a", "q", 2), ("b", "p", 1), ("d", "p", 1)]
    raw = write(tmp_path / "out", source, target, min_source=2, max_target=1).manifest["raw"]
    assert (raw["source_users"], raw["target_users"], raw["common_users"]) == (3, 3, 2)
    assert {out["reason"]: (out["users"], out["source_events"], out["target_events"]) for out in raw["left_out"]} == {
        "no source event": (1, 0, 1),
        "fewer than 2 source events": (1, 1, 1),
        "no target event": (1, 2, 0),
    }
    assert raw["beyond_max_target"] == 1


@pytest.mark.parametrize(("keep", "users"), [("target", ["a"]), ("labels", ["a", "b"]), ("all", ["a", "b", "c"])])
def test_keep_says_which_users_stay(tmp_path, keep, users):
    source = [("a", "x", 1), ("b", "x", 1), ("c", "x", 1)]
    dataset = write(tmp_path / "out", source, [("a", "p", 1)], {"a": "red", "b": "blue"}, keep=keep)
    assert dataset.raw_users() == users
    labels = dataset.labels["colour"]
    known = {"a": "red", "b": "blue"}
    assert [labels.classes[k] if k >= 0 else None for k in labels.value] == [known.get(user) for user in users]

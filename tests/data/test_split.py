import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_kit.data.split import SHARES, Split, split, unseen_in_training
from finetune_kit.errors import DataError

PARTS = ("train", "valid", "test")
USERS = np.repeat(np.arange(1, 401), np.arange(400) % 5 + 1)  # 400 users with 1 to 5 instances


@pytest.mark.parametrize("protocol", ["instance", "user"])
def test_the_parts_are_disjoint_ascending_and_everything(protocol: str) -> None:
    parts = split(USERS, protocol, seed=0)
    together = np.concatenate([getattr(parts, name) for name in PARTS])
    assert sorted(together) == list(range(len(USERS)))
    assert all(np.all(np.diff(getattr(parts, name)) > 0) for name in PARTS)


def test_instances_are_split_80_5_15() -> None:
    parts = split(USERS, "instance", seed=0)
    shares = {name: len(getattr(parts, name)) / len(USERS) for name in PARTS}
    assert shares == pytest.approx({"train": 0.8, "valid": 0.05, "test": 0.15}, abs=1 / len(USERS))
    assert sum(SHARES.values()) == pytest.approx(1)


def test_users_are_split_80_5_15_with_all_their_instances() -> None:
    parts = split(USERS, "user", seed=0)
    users = {name: set(USERS[getattr(parts, name)]) for name in PARTS}
    assert {name: len(of) for name, of in users.items()} == {"train": 320, "valid": 20, "test": 60}
    assert not users["train"] & users["valid"]
    assert not users["train"] & users["test"]
    assert not users["valid"] & users["test"]


def test_with_instances_test_users_may_train_too() -> None:
    parts = split(USERS, "instance", seed=0)
    assert set(USERS[parts.train]) & set(USERS[parts.test])


@pytest.mark.parametrize("protocol", ["instance", "user"])
def test_a_split_is_a_function_of_the_seed(protocol: str) -> None:
    one, same, other = (split(USERS, protocol, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(getattr(one, name), getattr(same, name)) for name in PARTS)
    assert not np.array_equal(one.test, other.test)


def test_the_split_does_not_depend_on_order_of_user_ids() -> None:
    """Every instance is as likely a test instance, wherever it stands."""
    counts = np.zeros(40)
    for seed in range(400):
        counts[split(np.arange(40), "instance", seed).test] += 1
    assert abs(counts - 400 * 0.15).max() < 5 * (400 * 0.15 * 0.85) ** 0.5


@pytest.mark.parametrize("protocol", ["instance", "user"])
def test_fractions_keep_nested_parts_of_the_training_and_all_of_the_rest(protocol: str) -> None:
    whole, half, tenth = (split(USERS, protocol, 3, fraction) for fraction in (1.0, 0.5, 0.1))
    assert set(tenth.train) < set(half.train) < set(whole.train)
    units = (lambda part: len(part)) if protocol == "instance" else (lambda part: len(set(USERS[part])))
    assert units(half.train) == pytest.approx(units(whole.train) / 2, abs=1)
    assert units(tenth.train) == pytest.approx(units(whole.train) / 10, abs=1)
    for other in (half, tenth):
        assert np.array_equal(other.test, whole.test)
        assert np.array_equal(other.valid, whole.valid)


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(1, 5), min_size=30, max_size=60),
    protocol=st.sampled_from(["instance", "user"]),
    seed=st.integers(0, 5),
)
def test_any_target_domain_is_split_without_loss(counts: list[int], protocol: str, seed: int) -> None:
    user = np.repeat(np.arange(len(counts)) * 7 + 3, counts)
    parts = split(user, protocol, seed)
    assert sorted(np.concatenate([parts.train, parts.valid, parts.test])) == list(range(len(user)))
    if protocol == "user":
        owners = [set(user[getattr(parts, name)]) for name in PARTS]
        assert sum(map(len, owners)) == len(counts)


@pytest.mark.parametrize("num_instances", [0, 1, 3])
def test_too_few_instances_are_refused_naming_the_empty_part(num_instances: int) -> None:
    with pytest.raises(DataError, match=rf"part of the split is empty: {num_instances} instances .* are too few"):
        split(np.arange(num_instances), "instance", seed=0)


def test_a_fraction_that_leaves_no_training_instance_is_refused() -> None:
    with pytest.raises(DataError, match=r"the train part .* data.fraction=0.001"):
        split(np.arange(100), "instance", 0, fraction=0.001)


def test_unseen_items_are_those_that_no_training_instance_has() -> None:
    parts = Split(train=np.array([0, 1]), known=np.array([0, 1]), valid=np.array([2]), test=np.array([3, 4]))
    item = np.array([1, 2, 3, 2, 3])
    assert unseen_in_training(item, parts, parts.valid).tolist() == [True]
    assert unseen_in_training(item, parts, parts.test).tolist() == [False, True]


def test_a_fraction_leaves_the_known_instances_whole():
    user = np.repeat(np.arange(50), 4)
    whole, tenth = split(user, "instance", 0), split(user, "instance", 0, fraction=0.1)
    assert len(tenth.train) == len(whole.train) // 10
    assert np.array_equal(tenth.known, whole.train)
    assert np.array_equal(tenth.test, whole.test)


def test_the_authors_split_is_80_20_with_one_part_for_validation_and_test():
    parts = split(np.arange(100) // 3, "authors", seed=0)
    assert len(parts.train) == 80
    assert (parts.valid == parts.test).all()
    assert sorted([*parts.train, *parts.test]) == list(range(100))
    assert (parts.train == split(np.arange(100) // 3, "authors", seed=0).train).all()

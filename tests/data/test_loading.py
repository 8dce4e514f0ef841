from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from finetune_kit.data.dataset import Dataset, Target
from finetune_kit.data.loading import (
    SourceWindows,
    TargetBatches,
    draw_negatives,
    evaluation_batches,
    make_batch,
)


@dataclass
class Memory:
    """A dataset that never saw a disk; `Dataset.sequences` reads two of its arrays."""

    histories: list[list[int]]
    target: Target
    num_target_items: int = 9
    sequences, _cut, _latest = Dataset.sequences, Dataset._cut, Dataset._latest

    @property
    def num_users(self) -> int:
        return len(self.histories)

    @property
    def source_items(self) -> np.ndarray:
        return np.array([item for history in self.histories for item in history] or [0])

    @property
    def source_lengths(self) -> np.ndarray:
        return np.array([len(history) for history in self.histories])

    @property
    def _offsets(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.source_lengths)])


@st.composite
def datasets(draw: st.DrawFn) -> Memory:
    histories = draw(st.lists(st.lists(st.integers(1, 30), max_size=11), min_size=1, max_size=6))
    user = draw(st.lists(st.integers(1, len(histories)), min_size=1, max_size=25).map(sorted))
    item = draw(st.lists(st.integers(1, 9), min_size=len(user), max_size=len(user)))
    return Memory(histories, Target(np.array(user), np.array(item), np.zeros(len(user), np.int64)))


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def padded(history: list[int], length: int) -> list[int]:
    return ([0] * length + history)[-length:]


@settings(max_examples=60, deadline=None)
@given(dataset=datasets(), max_length=st.integers(1, 8))
def test_a_batch_has_each_user_once_with_their_latest_items(dataset: Memory, max_length: int) -> None:
    instances = np.random.default_rng(0).permutation(len(dataset.target.user))
    batch = make_batch(dataset, instances, max_length)
    assert batch.user.tolist() == sorted(set(dataset.target.user.tolist()))
    assert batch.user[batch.row].tolist() == dataset.target.user[instances].tolist()
    assert batch.positive.tolist() == dataset.target.item[instances].tolist()
    for user, sequence in zip(batch.user.tolist(), batch.sequence.tolist(), strict=True):
        assert sequence == padded(dataset.histories[user - 1], max_length)
    assert {tensor.dtype for tensor in vars(batch).values() if tensor is not None} == {torch.int64}
    assert batch.negative.shape == (len(instances), 0)


@settings(max_examples=60, deadline=None)
@given(
    dataset=datasets(),
    batch_size=st.integers(1, 7),
    batching=st.sampled_from(["users", "instances"]),
    seed=st.integers(0, 9),
)
def test_an_epoch_is_every_instance_once_with_negatives(
    dataset: Memory, batch_size: int, batching: str, seed: int
) -> None:
    instances = np.arange(len(dataset.target.user))[::2]  # some of them
    batches = TargetBatches(dataset, instances, batch_size, 4, num_negatives=2, batching=batching)
    seen, users_of = Counter(), []
    for batch in batches.epoch(random(seed)):
        user = batch.user[batch.row]
        seen.update(zip(user.tolist(), batch.positive.tolist(), strict=True))
        users_of.append(set(user.tolist()))
        assert batch.negative.shape == (len(batch), 2)
        assert (batch.negative != batch.positive.unsqueeze(1)).all()
        if batching == "instances":
            assert len(batch) <= batch_size
    target = dataset.target
    assert seen == Counter(zip(target.user[instances].tolist(), target.item[instances].tolist(), strict=True))
    if batching == "users":
        assert sum(map(len, users_of)) == len(set().union(*users_of)), "a user's instances stand in two batches"
    else:
        assert len(users_of) == batches.num_batches()


@pytest.mark.parametrize("batching", ["users", "instances"])
def test_epochs_are_shuffled_by_their_generator_alone(batching: str) -> None:
    user = np.repeat(np.arange(1, 31), 3)
    dataset = Memory([[1]] * 30, Target(user, np.arange(90) % 9 + 1, user))
    batches = TargetBatches(dataset, np.arange(90), 16, 4, batching=batching)

    def epoch(seed: int) -> list[int]:
        return [u for batch in batches.epoch(random(seed)) for u in batch.user[batch.row].tolist()]

    assert epoch(0) == epoch(0)
    assert epoch(0) != epoch(1)
    assert epoch(0) != sorted(epoch(0))


def test_negatives_are_never_the_positive_and_uniform_over_the_rest() -> None:
    drawn = draw_negatives(torch.tensor([1, 3, 5]), 5, 20_000, random())
    for positive, row in zip((1, 3, 5), drawn.tolist(), strict=True):
        counts = Counter(row)
        assert sorted(counts) == [item for item in range(1, 6) if item != positive]
        assert stats.chisquare(list(counts.values())).pvalue > 0.001


def test_with_two_items_the_negative_is_the_other() -> None:
    assert draw_negatives(torch.tensor([1, 2]), 2, 2, random()).tolist() == [[2, 2], [1, 1]]


@settings(max_examples=60, deadline=None)
@given(dataset=datasets(), num_users=st.integers(1, 4))
def test_evaluation_goes_through_users_in_order_each_in_one_batch(dataset: Memory, num_users: int) -> None:
    instances = np.random.default_rng(0).permutation(len(dataset.target.user))
    parts, users = [], []
    for part, batch in evaluation_batches(dataset, instances, num_users, 4):
        assert len(batch.user) <= num_users
        assert dataset.target.user[part].tolist() == batch.user[batch.row].tolist()
        assert dataset.target.item[part].tolist() == batch.positive.tolist()
        parts += part.tolist()
        users += batch.user.tolist()
    assert sorted(parts) == sorted(instances.tolist())
    assert users == sorted(set(dataset.target.user.tolist()))


def slow_windows(history: list[int], length: int) -> list[tuple[list[int], list[int]]]:
    """Cut from the end: labels are the last ``length`` events, then those before, down to the second."""
    windows, end = [], len(history)
    while end >= 2:
        start = max(1, end - length)  # the first label
        labels = history[start:end]
        inputs = history[start - 1 : end - 1]
        windows.append((padded(inputs, length), padded(labels, length)))
        end = start
    return windows


@settings(max_examples=100, deadline=None)
@given(dataset=datasets(), length=st.integers(1, 6), batch_size=st.integers(1, 5), latest=st.booleans())
def test_windows_equal_an_obvious_loop(dataset: Memory, length: int, batch_size: int, latest: bool) -> None:
    users = np.arange(1, dataset.num_users + 1)[::-1]
    windows = SourceWindows(dataset, users, batch_size, length, latest_only=latest)
    expected = [
        window
        for user in users
        for window in slow_windows(dataset.histories[user - 1], length)[: 1 if latest else None]
    ]
    batches = list(windows.epoch())
    found = [pair for batch in batches for pair in zip(batch.inputs.tolist(), batch.labels.tolist(), strict=True)]
    assert found == expected
    assert len(windows) == len(expected)
    assert len(batches) == windows.num_batches()
    shuffled = [
        pair
        for batch in windows.epoch(random())
        for pair in zip(batch.inputs.tolist(), batch.labels.tolist(), strict=True)
    ]
    assert sorted(shuffled) == sorted(expected)


@settings(max_examples=60, deadline=None)
@given(dataset=datasets(), length=st.integers(1, 6))
def test_every_event_but_the_first_is_a_label_exactly_once(dataset: Memory, length: int) -> None:
    for user, history in enumerate(dataset.histories, start=1):
        unique = [position * 100 + item for position, item in enumerate(history)]  # tell events apart
        own = Memory([*[[]] * (user - 1), unique], dataset.target)
        labels = [
            label
            for batch in SourceWindows(own, np.array([user]), 3, length).epoch()
            for label in batch.labels.flatten().tolist()
            if label
        ]
        assert sorted(labels) == sorted(unique[1:])


def test_source_windows_go_round_and_are_shuffled_anew_each_time() -> None:
    histories = [[1, 2, 3], [4, 5], [6, 7, 8], [9, 1]]
    target = Target(np.array([1, 1, 2, 3, 4]), np.array([1, 2, 3, 4, 5]), np.zeros(5, np.int64))
    memory = Memory(histories, target)
    source = SourceWindows(memory, np.arange(1, 5), 3, 3)  # two batches, of 3 windows and of 1
    batches = TargetBatches(memory, np.arange(5), 1, 3, batching="instances", source=source)
    one, again = ([batch.source for batch in batches.epoch(torch.Generator().manual_seed(0))] for _ in range(2))
    assert [len(windows) for windows in one] == [3, 1, 3, 1, 3]
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(one, again, strict=True))
    first_round = torch.cat([one[0].inputs, one[1].inputs])
    second_round = torch.cat([one[2].inputs, one[3].inputs])
    assert sorted(first_round.tolist()) == sorted(second_round.tolist())
    assert one[0].to("cpu").labels.shape == (3, 3)
    plain = TargetBatches(memory, np.arange(5), 1, 3, batching="instances")
    drawn = [batch.positive.tolist() for batch in plain.epoch(torch.Generator().manual_seed(0))]
    assert all(batch.source is None for batch in plain.epoch(torch.Generator().manual_seed(0)))
    assert len(drawn) == 5

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_kit.data.dataset import Target
from finetune_kit.evaluation.references import popularity, user_knn

NUM_SOURCE, NUM_TARGET = 6, 5


@dataclass
class Memory:
    """What the simple rankings read of a dataset."""

    histories: list[list[int]]
    target: Target
    num_source_items: int = NUM_SOURCE
    num_target_items: int = NUM_TARGET

    @property
    def num_users(self) -> int:
        return len(self.histories)

    @property
    def source_items(self) -> np.ndarray:
        return np.array([item for history in self.histories for item in history], dtype=np.int64)

    @property
    def source_lengths(self) -> np.ndarray:
        return np.array([len(history) for history in self.histories])


@st.composite
def datasets(draw: st.DrawFn) -> Memory:
    histories = draw(st.lists(st.lists(st.integers(1, NUM_SOURCE), max_size=6), min_size=2, max_size=6))
    user = draw(st.lists(st.integers(1, len(histories)), min_size=1, max_size=12).map(sorted))
    item = draw(st.lists(st.integers(1, NUM_TARGET), min_size=len(user), max_size=len(user)))
    return Memory(histories, Target(np.array(user), np.array(item), np.zeros(len(user), np.int64)))


@settings(max_examples=40, deadline=None)
@given(dataset=datasets())
def test_popularity_counts_training_instances(dataset: Memory) -> None:
    train = np.arange(len(dataset.target.user))[::2]
    scores = popularity(dataset, train)(np.array([1, 2]))
    expected = [sum(dataset.target.item[i] == item for i in train) for item in range(1, NUM_TARGET + 1)]
    assert scores.tolist() == [expected, expected]


def slow_cosine(one: list[int], other: list[int]) -> float:
    a, b = set(one), set(other)
    return len(a & b) / (len(a) * len(b)) ** 0.5 if a and b else 0.0


@settings(max_examples=60, deadline=None)
@given(dataset=datasets())
def test_user_knn_sums_the_similarities_of_all_other_users_who_like_the_item(dataset: Memory) -> None:
    train = np.arange(len(dataset.target.user))
    users = range(1, dataset.num_users + 1)
    expected = torch.zeros(dataset.num_users, NUM_TARGET)
    for u in users:
        for v, item in zip(dataset.target.user.tolist(), dataset.target.item.tolist(), strict=True):
            if u != v:
                expected[u - 1, item - 1] += slow_cosine(dataset.histories[u - 1], dataset.histories[v - 1])
    found = user_knn(dataset, train, num_neighbours=100)(np.array(list(users)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_user_knn_asks_the_nearest_only() -> None:
    target = Target(np.array([2, 3, 4]), np.array([1, 2, 3]), np.zeros(3, np.int64))
    dataset = Memory([[1, 2], [1, 2], [1, 3], [4]], target)  # cosines with user 1: 1, ½, 0
    scores = user_knn(dataset, np.arange(3), num_neighbours=1)(np.array([1, 3]))
    torch.testing.assert_close(scores[0], torch.tensor([1.0, 0, 0, 0, 0]))
    torch.testing.assert_close(scores[1], torch.tensor([0.5, 0, 0, 0, 0]))  # not their own item


def test_user_knn_reads_training_instances_only() -> None:
    target = Target(np.array([2, 2]), np.array([1, 2]), np.zeros(2, np.int64))
    dataset = Memory([[1], [1]], target)
    assert user_knn(dataset, np.array([1]))(np.array([1])).tolist() == [pytest.approx([0, 1, 0, 0, 0])]

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_kit.evaluation import ranking
from finetune_kit.evaluation.ranking import full_ranks, sampled_ranks

# Few values, so that ties are common; infinities and no numbers at all among them.
VALUES = st.sampled_from([-math.inf, -3e38, -1.0, 0.0, 0.5, 1.0, 3e38, math.inf, math.nan])


def slow_rank(positive: float, rivals: list[float]) -> float:
    """1 + above + ½ level; no number is the lowest as the positive's, the highest as a rival's."""
    rank = 1.0
    if math.isnan(positive) or positive == -math.inf:
        positive = torch.finfo(torch.float32).min
    for rival in rivals:
        if math.isnan(rival):
            rival = math.inf
        elif rival == -math.inf:
            rival = torch.finfo(torch.float32).min
        rank += (rival > positive) + (rival == positive) / 2
    return rank


@st.composite
def problems(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[tuple[int, int]]]:
    num_users, num_items = draw(st.integers(1, 4)), draw(st.integers(2, 8))
    row_of_scores = st.lists(VALUES, min_size=num_items, max_size=num_items)
    scores = draw(st.lists(row_of_scores, min_size=num_users, max_size=num_users))
    row = draw(st.lists(st.integers(0, num_users - 1), min_size=1, max_size=6))
    positive = draw(st.lists(st.integers(1, num_items), min_size=len(row), max_size=len(row)))
    known = draw(st.lists(st.tuples(st.integers(0, num_users - 1), st.integers(1, num_items)), max_size=10))
    return torch.tensor(scores), torch.tensor(row), torch.tensor(positive), known


def as_tensors(known: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = torch.tensor(known, dtype=torch.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


@settings(max_examples=200, deadline=None)
@given(problem=problems(), cells=st.integers(1, 30))
def test_full_ranks_equal_an_obvious_loop_however_chunked(problem: tuple, cells: int) -> None:
    scores, row, positive, known = problem
    before = scores.clone()
    expected = []
    for r, p in zip(row.tolist(), positive.tolist(), strict=True):
        removed = {item for user, item in known if user == r} | {p}
        rivals = [score for item, score in enumerate(scores[r].tolist(), start=1) if item not in removed]
        expected.append(slow_rank(scores[r, p - 1].item(), rivals))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "MAX_CELLS", cells)
        found = full_ranks(scores, row, positive, as_tensors(known))
    assert found.tolist() == expected
    torch.testing.assert_close(scores, before, equal_nan=True)  # the caller's scores are left alone


@settings(max_examples=200, deadline=None)
@given(problem=problems(), width=st.integers(1, 5), seed=st.integers(0, 99))
def test_sampled_ranks_equal_an_obvious_loop(problem: tuple, width: int, seed: int) -> None:
    scores, row, positive, _ = problem
    random = np.random.default_rng(seed)
    others = [[item for item in range(1, scores.shape[1] + 1) if item != p] for p in positive.tolist()]
    candidates = np.array([random.choice(items, min(width, len(items)), replace=False) for items in others])
    expected = [
        slow_rank(scores[r, p - 1].item(), [scores[r, c - 1].item() for c in own])
        for r, p, own in zip(row.tolist(), positive.tolist(), candidates, strict=True)
    ]
    assert sampled_ranks(scores, row, positive, torch.from_numpy(candidates)).tolist() == expected


def no_known() -> tuple[torch.Tensor, torch.Tensor]:
    return as_tensors([])


def test_ranks_by_hand() -> None:
    scores = torch.tensor([[3.0, 2.0, 2.0, 1.0, 2.0]])
    rank = full_ranks(scores, torch.tensor([0, 0, 0]), torch.tensor([1, 2, 4]), no_known())
    assert rank.tolist() == [1, 3, 5]  # item 2: one above, two level; item 4: four above
    known = as_tensors([(0, 1), (0, 3)])
    assert full_ranks(scores, torch.tensor([0]), torch.tensor([2]), known).tolist() == [1.5]  # 5 is level


def test_a_model_that_scores_all_items_alike_lands_in_the_middle() -> None:
    rank = full_ranks(torch.zeros(1, 99), torch.tensor([0]), torch.tensor([1]), no_known())
    assert rank.item() == 50


@settings(max_examples=60, deadline=None)
@given(problem=problems(), seed=st.integers(0, 99))
def test_where_an_item_stands_in_the_catalogue_cannot_influence_a_rank(problem: tuple, seed: int) -> None:
    scores, row, positive, known = problem
    order = torch.from_numpy(np.random.default_rng(seed).permutation(scores.shape[1]))
    place = order.argsort() + 1  # new id of an old item
    moved_known = [(user, place[item - 1].item()) for user, item in known]
    before = full_ranks(scores, row, positive, as_tensors(known))
    after = full_ranks(scores[:, order], row, place[positive - 1], as_tensors(moved_known))
    assert before.tolist() == after.tolist()


def test_no_number_never_helps() -> None:
    scores = torch.tensor([[math.nan, 1.0, 2.0], [1.0, math.nan, 0.0], [math.nan] * 3])
    row, positive = torch.tensor([0, 1, 2]), torch.tensor([1, 1, 1])
    assert full_ranks(scores, row, positive, no_known()).tolist() == [3, 2, 3]
    candidates = torch.tensor([[2, 3], [2, 3], [2, 3]])
    assert sampled_ranks(scores, row, positive, candidates).tolist() == [3, 2, 3]


def test_a_positive_that_is_known_too_is_still_ranked() -> None:
    scores = torch.tensor([[1.0, 5.0, 3.0]])
    rank = full_ranks(scores, torch.tensor([0]), torch.tensor([1]), as_tensors([(0, 1), (0, 2)]))
    assert rank.tolist() == [2]

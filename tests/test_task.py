import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from finetune_kit.data.batch import Batch
from finetune_kit.losses import binary_cross_entropy, bpr, sampled_softmax
from finetune_kit.task import ItemTask, LabelTask
from finetune_kit.testing import batches


@settings(max_examples=30, deadline=None)
@given(batch=batches(num_target_items=9))
def test_scores_of_given_items_are_columns_of_all_scores(batch: Batch) -> None:
    torch.manual_seed(0)
    task, vectors = ItemTask(4, 9), torch.randn(len(batch.user), 4)
    scores = task.scores(vectors)
    assert scores.shape == (len(batch.user), 9)
    of = task.scores_of(vectors[batch.row], batch.negative)
    torch.testing.assert_close(of, scores[batch.row].gather(1, batch.negative - 1), atol=1e-5, rtol=1e-5)


def test_item_y_is_scored_by_row_y_minus_1_of_the_head() -> None:
    task = ItemTask(2, 3)
    task.head.weight.data = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    task.head.bias.data = torch.tensor([0.0, 0, 100])
    assert task.scores(torch.tensor([[2.0, 5]])).tolist() == [[2, 5, 107]]
    assert task.scores_of(torch.tensor([[2.0, 5]]), torch.tensor([[3, 1]])).tolist() == [[107, 2]]


@pytest.mark.parametrize(
    ("name", "loss"), [("bpr", bpr), ("bce", binary_cross_entropy), ("sampled-softmax", sampled_softmax)]
)
@settings(max_examples=15, deadline=None)
@given(batch=batches(num_target_items=9))
def test_a_users_vector_serves_all_of_their_instances(name: str, loss: object, batch: Batch) -> None:
    torch.manual_seed(0)
    task, vectors = ItemTask(4, 9, loss=name), torch.randn(len(batch.user), 4)
    scores = task.scores(vectors)[batch.row]
    expected = loss(scores.gather(1, batch.positive.unsqueeze(1) - 1).squeeze(1), scores.gather(1, batch.negative - 1))
    torch.testing.assert_close(task.loss(vectors, batch), expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(batch=batches(num_target_items=9))
def test_the_full_softmax_needs_no_negatives(batch: Batch) -> None:
    torch.manual_seed(0)
    task, vectors = ItemTask(4, 9, loss="softmax"), torch.randn(len(batch.user), 4)
    without = Batch(batch.user, batch.sequence, batch.row, batch.positive, batch.negative[:, :0])
    logs = F.log_softmax(task.scores(vectors), dim=1)
    expected = sum(-logs[r, p - 1] for r, p in zip(batch.row.tolist(), batch.positive.tolist(), strict=True)) / len(
        batch
    )
    torch.testing.assert_close(task.loss(vectors, without), expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(batch=batches(num_target_items=9))
def test_ranks_among_candidates_equal_a_slow_loop(batch: Batch) -> None:
    torch.manual_seed(0)
    task, vectors = ItemTask(4, 9), torch.randn(len(batch.user), 4).round()  # some level scores
    candidates = task.draw_candidates(batch, 7, torch.Generator().manual_seed(1))
    assert (candidates != batch.positive.unsqueeze(1)).all()
    expected = []
    for instance, row in enumerate(batch.row.tolist()):
        of = task.scores_of(vectors[row : row + 1].expand(len(batch), -1), batch.positive.unsqueeze(1))
        own, rank = of[instance, 0].item(), 1.0
        for candidate in candidates[instance].tolist():
            score = task.scores_of(vectors[row : row + 1], torch.tensor([[candidate]])).item()
            rank += 1.0 if score > own else 0.5 if score == own else 0.0
        expected.append(rank)
    assert task.ranks(vectors, batch, candidates).tolist() == expected


@settings(max_examples=15, deadline=None)
@given(batch=batches(num_target_items=4))
def test_a_label_is_learned_by_cross_entropy_and_ranked_among_all_other_classes(batch: Batch) -> None:
    torch.manual_seed(0)
    task, vectors = LabelTask(3, 4), torch.randn(len(batch.user), 3)
    logs = F.log_softmax(task.scores(vectors), dim=1)
    expected = [-logs[r, p - 1].item() for r, p in zip(batch.row.tolist(), batch.positive.tolist(), strict=True)]
    assert task.loss(vectors, batch).item() == pytest.approx(sum(expected) / len(expected), abs=1e-6)
    candidates = task.draw_candidates(batch, 99, torch.Generator())
    for positive, others in zip(batch.positive.tolist(), candidates.tolist(), strict=True):
        assert sorted([positive, *others]) == [1, 2, 3, 4]
    is_hit = task.ranks(vectors, batch, candidates) <= task.hit_rank
    assert torch.equal(is_hit, task.scores(vectors).argmax(dim=1)[batch.row] == batch.positive - 1)

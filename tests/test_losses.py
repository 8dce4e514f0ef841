import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from finetune_kit import losses
from finetune_kit.losses import binary_cross_entropy, bpr, next_item, sampled_softmax


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_bpr(positive: list[float], negative: list[list[float]]) -> float:
    pairs = [-math.log(sigmoid(p - n)) for p, row in zip(positive, negative, strict=True) for n in row]
    return sum(pairs) / len(pairs)


def slow_bce(positive: list[float], negative: list[list[float]]) -> float:
    of_positives = [-math.log(sigmoid(p)) for p in positive]
    of_negatives = [-math.log(1 - sigmoid(n)) for row in negative for n in row]
    return (sum(of_positives) / len(of_positives) + sum(of_negatives) / len(of_negatives)) / 2


def slow_softmax(positive: list[float], negative: list[list[float]]) -> float:
    shares = [math.exp(p) / (math.exp(p) + sum(map(math.exp, row))) for p, row in zip(positive, negative, strict=True)]
    return sum(-math.log(share) for share in shares) / len(shares)


@pytest.mark.parametrize(
    ("loss", "slow"), [(bpr, slow_bpr), (binary_cross_entropy, slow_bce), (sampled_softmax, slow_softmax)]
)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), instances=st.integers(1, 4), negatives=st.integers(1, 4))
def test_a_loss_equals_its_slow_loop(
    loss: object, slow: object, data: st.DataObject, instances: int, negatives: int
) -> None:
    scores = data.draw(arrays(float, (instances, 1 + negatives), elements=st.floats(-10, 10)))
    found = loss(torch.from_numpy(scores[:, 0].copy()), torch.from_numpy(scores[:, 1:].copy()))
    assert found.dim() == 0
    assert found.item() == pytest.approx(slow(scores[:, 0].tolist(), scores[:, 1:].tolist()), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(labels=arrays("int64", (3, 4), elements=st.integers(0, 5)).filter(lambda labels: labels.any()))
def test_the_next_item_loss_equals_its_slow_loop(labels: object) -> None:
    torch.manual_seed(0)
    hidden, output = torch.randn(3, 4, 2), torch.nn.Linear(2, 5)
    slow = []
    for window in range(3):
        for position in range(4):
            if label := int(labels[window, position]):
                exps = [math.exp(value) for value in output(hidden[window, position]).tolist()]
                slow.append(-math.log(exps[label - 1] / sum(exps)))
    found = next_item(hidden, torch.from_numpy(labels), output)
    assert found.item() == pytest.approx(sum(slow) / len(slow), abs=1e-5)


def test_the_next_item_loss_is_the_same_however_many_logits_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden, labels, output = torch.randn(5, 4, 2), torch.randint(0, 10, (5, 4)), torch.nn.Linear(2, 9)
    found = []
    for most in (losses.LOGITS, 9 * 3, 1):  # all positions, three, one
        monkeypatch.setattr(losses, "LOGITS", most)
        loss = next_item(hidden, labels, output)
        found.append([loss, *torch.autograd.grad(loss, [output.weight, output.bias])])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_losses_by_hand() -> None:
    positive, negative = torch.tensor([math.log(3.0)]), torch.tensor([[0.0]])
    # σ(log 3) = ¾; the authors' pair: −(log ¾ + log ½)/2; softmax of (log 3, 0): ¾
    assert bpr(positive, negative).item() == pytest.approx(math.log(4 / 3))
    assert binary_cross_entropy(positive, negative).item() == pytest.approx(math.log(8 / 3) / 2)
    assert sampled_softmax(positive, negative).item() == pytest.approx(math.log(4 / 3))


@pytest.mark.parametrize("loss", [bpr, binary_cross_entropy, sampled_softmax])
def test_enormous_scores_give_finite_losses_and_gradients(loss: object) -> None:
    scores = torch.tensor([[-1e4, 1e4], [1e4, -1e4]], requires_grad=True)
    found = loss(scores[:, 0], scores[:, 1:])
    found.backward()
    assert found.isfinite()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert scores.grad[0, 0] < 0 < scores.grad[0, 1]  # lift the positive, press the negative

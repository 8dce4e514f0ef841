import math

import numpy as np
import pytest

from finetune_kit.report.policy import binary_entropy, collapse_words, percent, policy_summary, random_summary

FOUR = np.array([[1, 0], [1, 0], [1, 1], [0, 0]])


def test_hard_gates_are_summed_up_as_worked_by_hand() -> None:
    summary = policy_summary(FOUR)
    assert (summary.users, summary.is_hard, summary.is_collapsed) == (4, True, False)
    assert summary.usage == (0.75, 0.25)
    assert summary.spread == pytest.approx((math.sqrt(3) / 4, math.sqrt(3) / 4))
    assert summary.entropy == pytest.approx(2 - 0.75 * math.log2(3))  # H(3/4) = 2 − 3/4 log2 3, twice, mean
    assert summary.information == pytest.approx(summary.entropy)  # hard gates leave nothing open
    assert (summary.choices, summary.commonest, summary.share, summary.alike) == (3, (1, 0), 0.5, 0.5)
    assert summary.effective == pytest.approx(2**1.5)  # H(1/2, 1/4, 1/4) = 1.5 bits
    assert summary.distance == pytest.approx(0.25)  # 1/2 − 1/4 for one choice, the other two as in the uniform one


def test_soft_gates_that_all_users_share_tell_nothing_of_the_user() -> None:
    summary = policy_summary(np.full((10, 3), 0.6))
    assert summary.entropy == pytest.approx(0.971, abs=1e-3)
    assert summary.information == pytest.approx(0)
    assert (summary.choices, summary.commonest, summary.is_hard) == (1, (1, 1, 1), False)
    assert summary.distance == pytest.approx(1 - 1 / 8)
    assert summary.is_collapsed


def test_soft_gates_on_one_side_that_differ_between_users_are_not_collapsed() -> None:
    summary = policy_summary(np.linspace(0.6, 0.9, 50)[:, None])
    assert summary.share == 1
    assert not summary.is_collapsed
    said = collapse_words("soft, seed 0", summary)
    assert said
    assert "all 50 users are on the same side of 0.5 in every block (fine-tuned: every block), but" in said


def test_coins_come_near_all_choices_and_stay_the_same() -> None:
    coins = random_summary(5000, 4)
    assert coins == random_summary(5000, 4)
    assert coins.choices == 16
    assert coins.effective == pytest.approx(16, rel=0.01)
    assert coins.distance < 0.05
    assert random_summary(10, 12).effective <= 10  # no more choices than users


@pytest.mark.parametrize(
    ("gates", "said"),
    [
        ([[1, 0, 0, 1]] * 5264, "x: all 5,264 users take the same blocks: 1 0 0 1 (fine-tuned: blocks 1, 4)"),
        ([[0, 0]] * 3, "x: all 3 users take the same blocks: 0 0 (fine-tuned: no block)"),
        ([[0, 1]] * 3, "x: all 3 users take the same blocks: 0 1 (fine-tuned: block 2)"),
        ([[0]] + [[1]] * 199, "x: 99.5 % of 200 users take the same blocks: 1 (fine-tuned: every block)"),
        (
            [[0.5, 0.25]] * 4,
            "x: all 4 users get (nearly) the same gates: 0.50 0.25 on average, with a standard deviation over users of "
            "at most 0",
        ),
        (FOUR, None),
    ],
)
def test_a_collapsed_policy_is_said_in_words(gates: object, said: str | None) -> None:
    assert collapse_words("x", policy_summary(np.array(gates))) == said


def test_a_share_is_whole_only_when_it_is() -> None:
    assert [percent(share) for share in (0, 0.0001, 0.9942, 0.99999, 1)] == [
        "0 %",
        "0.1 %",
        "99.4 %",
        "99.9 %",
        "100 %",
    ]


def test_entropy_is_zero_at_the_ends_and_one_in_the_middle() -> None:
    assert binary_entropy(np.array([0, 0.5, 1.0])).tolist() == [0, 1, 0]

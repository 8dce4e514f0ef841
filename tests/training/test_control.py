import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from finetune_kit.errors import FinetuneKitError
from finetune_kit.strategy import Strategy
from finetune_kit.task import ItemTask
from finetune_kit.testing import TinyBackbone, random_batch, randomise
from finetune_kit.training.control import MAX_CHOICES, SingleChoice, best_single_choice, choices_at_equal_usage
from ftkit_uaf.random import UafRandom


def strategy(num_blocks: int = 3) -> Strategy:
    torch.manual_seed(0)
    made = UafRandom(
        randomise(TinyBackbone(20, 12, TinyBackbone.Options(num_blocks=num_blocks))),
        ItemTask(TinyBackbone(2, 2).dim, 9),
    )
    with torch.no_grad():
        for block in made.backbone.blocks:
            for parameter in block.tuned.parameters():
                parameter.add_(torch.randn_like(parameter))
    return made.eval()


@pytest.mark.parametrize(
    ("gates", "counts"),
    [
        ([[1, 0, 0], [0, 1, 0]], {1}),
        ([[1, 1, 0], [0, 1, 0]], {2}),  # 1.5, rounded
        ([[1, 1, 0], [0, 1, 0], [0, 1, 0]], {1}),
        ([[0, 0, 0], [0, 0, 0]], {0}),
        ([[1.0, 1.0, 1.0]], {3}),
        ([[0.3, 0.3, 0.3]], {1}),
    ],
)
def test_equal_usage_is_the_mean_number_of_fine_tuned_blocks_rounded(
    gates: list[list[float]], counts: set[int]
) -> None:
    choices = [choice for choice, _ in choices_at_equal_usage(np.array(gates))]
    expected = [choice for choice in itertools.product((0, 1), repeat=3) if sum(choice) in counts]
    assert sorted(choices) == sorted(expected)


def test_a_single_policy_gives_every_user_the_same_gates() -> None:
    made, batch = strategy(), random_batch(6)
    encoded = SingleChoice(made, (1, 0, 1)).eval().encode(batch)
    gates = torch.tensor([[1.0, 0, 1]]).expand(6, -1)
    assert torch.equal(encoded.gates, gates)
    assert torch.equal(encoded.vectors, made.backbone.user_vectors(batch.sequence, gates))


@pytest.mark.parametrize(
    ("gates", "skipped", "numbers"),
    [
        ([[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [0, 0, 0]], (1, 1)),  # 0.5 skipped, rounded
        ([[0, 0, 0], [0, 0, 0]], [[1, 1, 0], [1, 1, 1]], (0, 3)),
        ([[0, 0, 1], [0, 0, 1]], [[0, 0, 0], [0, 0, 0]], (1, 0)),
        ([[1, 1, 0], [0, 1, 0]], [[0, 0, 1], [1, 0, 1]], (2, 1)),  # 1.5 and 1.5: both rounded up would be 4 of 3
    ],
)
def test_equal_usage_is_also_that_of_skipped_blocks(
    gates: list[list[int]], skipped: list[list[int]], numbers: tuple[int, int]
) -> None:
    found = list(choices_at_equal_usage(np.array(gates), np.array(skipped)))
    assert len(found) == len(set(found))
    every = itertools.product(itertools.product((0, 1), repeat=3), repeat=2)
    disjoint = [(tuned, out) for tuned, out in every if not np.multiply(tuned, out).any()]
    assert sorted(found) == [(tuned, out) for tuned, out in disjoint if (sum(tuned), sum(out)) == numbers]


def test_a_single_choice_that_skips_hands_over_all_three_shares() -> None:
    asked = []
    told = SimpleNamespace(encode_with=lambda batch, shares: asked.append(shares))
    SingleChoice(told, (1, 0, 0), (0, 0, 1)).encode(random_batch(2))
    assert asked[0].tolist() == [[[1, 0, 0], [0, 1, 0], [0, 0, 1]]] * 2


def test_validation_chooses_the_single_policy() -> None:
    made = strategy()
    asked = []

    def validator(policy: SingleChoice) -> object:
        asked.append(policy.gates)
        return lambda: {"mrr@5": {(0, 1, 0): 0.3}.get(policy.gates, 0.1)}

    experiment = SimpleNamespace(validator=validator, monitor="mrr@5")
    best = best_single_choice(experiment, made, np.array([[1, 0, 0], [0, 0, 1]]))
    assert best is not None
    assert best.gates == (0, 1, 0)
    assert sorted(asked) == [(0, 0, 1), (0, 1, 0), (1, 0, 0)]


def test_the_papers_eight_blocks_are_tried_at_any_usage_and_twelve_are_refused_with_the_number() -> None:
    for count in range(9):
        gates = np.array([[1] * count + [0] * (8 - count)])
        assert len(list(choices_at_equal_usage(gates))) <= MAX_CHOICES
    with pytest.raises(FinetuneKitError, match="924 single choices use as many blocks, more than 256"):
        best_single_choice(SimpleNamespace(), strategy(), np.tile([1, 0], (2, 6)))
    with pytest.raises(FinetuneKitError, match="560 single choices use as many blocks, more than 256"):
        gates, skipped = np.zeros((2, 8)), np.zeros((2, 8))  # 8! / (3! 2! 3!)
        gates[:, :3], skipped[:, 3:5] = 1, 1
        best_single_choice(SimpleNamespace(), strategy(), gates, skipped)

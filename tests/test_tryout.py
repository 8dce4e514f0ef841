import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from finetune_kit.seeding import generator
from finetune_kit.tryout import evaluating, made_up_sequence, relative_difference


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 9), st.integers(0, 3))
def test_made_up_users_have_items_behind_their_padding(num_users: int, length: int, num_items: int, seed: int) -> None:
    sequence = made_up_sequence(num_users, length, num_items, generator(seed))
    assert sequence.shape == (num_users, length)
    assert sequence.max() <= num_items
    for user in sequence.tolist():
        items = [item for item in user if item]
        assert items
        assert user == [0] * (length - len(items)) + items


def test_made_up_users_have_as_many_items_as_asked_for() -> None:
    sequence = made_up_sequence(3, 4, 9, generator(0), num_known=[4, 1, 3])
    assert (sequence != 0).sum(dim=1).tolist() == [4, 1, 3]
    assert ((made_up_sequence(64, 4, 9, generator(0), min_items=3) != 0).sum(dim=1) >= 3).all()


@pytest.mark.parametrize(
    ("expected", "found", "at_least", "difference"),
    [
        ([2.0, -4.0], [2.0, -3.0], 1e-12, 0.25),
        ([0.5, 0.0], [0.5, 0.25], 1.0, 0.25),
        ([0.0], [0.0], 1e-12, 0.0),
        ([], [], 1e-12, 0.0),
        ([1.0, math.nan], [1.0, 1.0], 1e-12, math.inf),
        ([1.0], [math.nan], 1.0, math.inf),
        ([math.inf], [math.inf], 1.0, math.inf),
    ],
)
def test_a_difference_by_hand(expected: list[float], found: list[float], at_least: float, difference: float) -> None:
    assert relative_difference(torch.tensor(expected), torch.tensor(found), at_least=at_least) == difference


def test_every_part_is_put_back_in_its_own_mode_also_after_an_error() -> None:
    module = nn.Sequential(nn.Dropout(), nn.Dropout())
    module[1].eval()
    with pytest.raises(ZeroDivisionError), evaluating(module):
        assert not any(part.training for part in module.modules())
        raise ZeroDivisionError
    assert [part.training for part in module.modules()] == [True, True, False]

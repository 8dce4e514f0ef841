import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune_kit.positions import Group, at_steps, joined, parted, time_major

layouts = st.booleans()
"""Whether hidden states lie time-major."""


def states(users: int, positions: int, is_time_major: bool) -> Tensor:
    torch.manual_seed(0)
    if is_time_major:
        return torch.randn(positions, users, 3, dtype=torch.float64).transpose(0, 1).requires_grad_()
    return torch.randn(users, positions, 3, dtype=torch.float64, requires_grad=True)


def gradient_of(output: Tensor, hidden: Tensor) -> Tensor:
    weight = torch.arange(output.numel(), dtype=output.dtype).view(output.shape)
    return torch.autograd.grad((output * weight).sum(), hidden)[0]


@settings(deadline=None, max_examples=40)
@given(positions=st.integers(1, 7), is_time_major=layouts, data=st.data())
def test_single_positions_are_those_of_an_index_and_so_are_gradients(
    positions: int, is_time_major: bool, data: st.DataObject
) -> None:
    stands = tuple(sorted(data.draw(st.sets(st.integers(0, 20), min_size=positions, max_size=positions)), reverse=True))
    steps = tuple(sorted(data.draw(st.sets(st.sampled_from(stands), min_size=1)), reverse=True))
    hidden = states(2, positions, is_time_major)
    found, expected = at_steps(hidden, stands, steps), hidden[:, [stands.index(step) for step in steps]]
    assert torch.equal(found, expected)
    assert torch.equal(gradient_of(found, hidden), gradient_of(expected, hidden))


@settings(deadline=None, max_examples=40)
@given(actions=st.lists(st.integers(0, 2), min_size=1, max_size=7), more=st.integers(0, 3), is_time_major=layouts)
def test_groups_taken_apart_and_joined_are_what_they_were_whatever_rows_are_repeated(
    actions: list[int], more: int, is_time_major: bool
) -> None:
    hidden = states(len(actions), 4, is_time_major)
    groups = []
    for action in set(actions):
        rows = [row for row, taken in enumerate(actions) if taken == action]
        groups.append(Group(torch.tensor(rows + rows[-1:] * more), len(rows)))
    output = joined([(part + 1) ** 2 for part in parted(hidden, groups)], groups)
    expected = (hidden + 1) ** 2
    assert torch.equal(output, expected)
    assert torch.equal(gradient_of(output, hidden), gradient_of(expected, hidden))
    if is_time_major and any(len(group.rows) > 1 for group in groups):
        assert time_major(output).data_ptr() == output.data_ptr()  # it still lies so


@pytest.mark.parametrize("steps", [(1, 0), (3, 0)])
def test_gradients_of_positions_keep_the_layout_that_they_came_in(steps: tuple[int, ...]) -> None:
    hidden = states(5, 4, is_time_major=True)
    output = at_steps(hidden, (3, 2, 1, 0), steps)
    gradient = torch.autograd.grad(output, hidden, torch.ones(len(steps), 5, 3).double().transpose(0, 1))[0]
    assert gradient.transpose(0, 1).is_contiguous()

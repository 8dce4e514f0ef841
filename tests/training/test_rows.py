import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune_kit.data.matched import Matched
from finetune_kit.errors import CheckpointError
from finetune_kit.training.rows import Axis, carry_over, find_axes


def shapes(**of):
    """Return a function from numbers of items to shapes."""
    return lambda source, target: {name: torch.Size(shape(source, target)) for name, shape in of.items()}


def test_what_grows_by_one_with_the_items_is_indexed_by_them_whatever_else_has_that_size():
    found = find_axes(
        shapes(
            embedding=lambda s, t: (s + 1, 4),
            head=lambda s, t: (t, 4),
            square=lambda s, t: (5, 4),  # as many as source items and the padding, by chance
            pairs=lambda s, t: (s, t, s + 1),
        ),
        4,
        5,
    )
    assert found == {
        "embedding": [Axis(0, "source", 1)],
        "head": [Axis(0, "target", 0)],
        "square": [],
        "pairs": [Axis(0, "source", 0), Axis(2, "source", 1), Axis(1, "target", 0)],
    }


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (lambda s, t: (s + 2, 4), "'x' has 6 rows for 4 source items and 7 for 5"),
        (lambda s, t: (2 * s,), "'x' has 8 rows for 4 source items and 10 for 5"),
        (lambda s, t: (4,) if s == 4 else (4, 1), "'x' is not there for every number of source items"),
    ],
)
def test_what_grows_otherwise_is_refused_by_name(shape, said):
    with pytest.raises(CheckpointError, match=said):
        find_axes(shapes(x=shape), 4, 5)


def test_rows_follow_their_items_and_new_ones_are_fresh():
    matched = {"source": Matched.of(["b", "c"], ["a", "c", "b"]), "target": Matched.of(["p"], ["p", "q"])}
    old = {
        "embedding": torch.tensor([[0.0], [1.0], [2.0]]),
        "pairs": torch.tensor([[1.0], [2.0]]),
        "other": torch.ones(3),
    }
    fresh = {"embedding": -torch.ones(4, 1), "pairs": -torch.ones(3, 2), "other": torch.zeros(3)}
    axes = {"embedding": [Axis(0, "source", 1)], "pairs": [Axis(0, "source", 0), Axis(1, "target", 0)], "other": []}
    carried = carry_over(old, fresh, axes, matched)
    assert carried["embedding"].tolist() == [[0], [-1], [2], [1]]
    assert carried["pairs"].tolist() == [[-1, -1], [2, -1], [1, -1]]
    assert carried["other"].tolist() == [1, 1, 1]
    assert fresh["embedding"].tolist() == [[-1]] * 4


def test_a_tensor_of_another_shape_is_named():
    with pytest.raises(CheckpointError, match=r"'x' is \(4,\) in the model for the new items, not \(3,\)"):
        carry_over({"x": torch.ones(3)}, {"x": torch.ones(4)}, {"x": []}, {})
    with pytest.raises(CheckpointError, match="'x' is not in the model for the new items"):
        carry_over({"x": torch.ones(3)}, {}, {"x": []}, {})


names = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8)


@given(names, names)
def test_any_two_vocabularies_are_matched_by_raw_id(old, new):
    matched = Matched.of(old, new)
    assert {old[index] for index in matched.old} == {*old} & {*new}
    assert [old[index] for index in matched.old] == [new[index] for index in matched.new]
    translated = matched.translate(np.arange(len(old) + 1))
    assert translated[0] == 0
    assert [new[index - 1] if index else None for index in translated[1:]] == [
        raw if raw in new else None for raw in old
    ]
    assert (
        str(matched)
        == f"{matched.num_known} known, {len(new) - matched.num_known} new, {len(old) - matched.num_known} gone"
    )

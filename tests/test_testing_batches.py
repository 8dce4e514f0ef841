"""The batches, windows and sequences that the contracts draw are as the loader makes them."""

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from finetune_kit.data.batch import Batch, Windows
from finetune_kit.testing import batches, random_batch, random_windows, sequences, windows


@settings(max_examples=60, deadline=None)
@given(batch=batches())
def test_drawn_batches_are_as_the_loader_makes_them(batch: Batch) -> None:
    check(batch)
    assert batch.source is None


@settings(max_examples=60, deadline=None)
@given(batch=batches(max_windows=3))
def test_drawn_batches_can_have_source_windows(batch: Batch) -> None:
    check(batch)
    assert batch.source is not None
    assert len(batch.source) <= 3
    check_windows(batch.source)


@pytest.mark.parametrize("seed", range(3))
def test_random_batches_are_as_the_loader_makes_them(seed: int) -> None:
    batch = random_batch(seed=seed, num_negatives=3)
    check(batch)
    assert batch.source is None
    assert torch.equal(random_batch(seed=seed, num_negatives=3, num_windows=5).sequence, batch.sequence)


@pytest.mark.parametrize("length", [1, 2, 7])
def test_random_batches_can_have_source_windows(length: int) -> None:
    batch = random_batch(length=length, num_windows=5)
    check(batch)
    assert batch.source is not None
    assert batch.source.inputs.shape == (5, length)
    check_windows(batch.source)


def test_the_labels_of_a_window_are_the_items_that_follow() -> None:
    window = random_windows(3, 6, num_items=1000, seed=1)
    both = window.labels[:, :-1] != 0
    assert torch.equal(window.labels[:, :-1][both], window.inputs[:, 1:][both])


@settings(max_examples=30, deadline=None)
@given(window=windows(num_items=5, max_windows=3, max_length=6))
def test_drawn_windows_are_as_the_loader_makes_them(window: Windows) -> None:
    assert window.inputs.max() <= 5
    check_windows(window)


def check(batch: Batch) -> None:
    tensors = {name: part for name, part in vars(batch).items() if name not in ("source", "share")}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.int64}
    assert len(set(batch.user.tolist())) == len(batch.user) == len(batch.sequence)
    assert set(batch.row.tolist()) == set(range(len(batch.user)))
    assert (batch.negative != batch.positive.unsqueeze(1)).all()
    assert batch.positive.min() >= 1
    assert (batch.sequence[:, -1] != 0).all()
    is_item = batch.sequence != 0
    assert (is_item[:, 1:] >= is_item[:, :-1]).all()  # padding in front only


def check_windows(window: Windows) -> None:
    assert window.inputs.shape == window.labels.shape
    assert torch.equal(window.inputs != 0, window.labels != 0)
    assert (window.labels[:, -1] != 0).all()
    is_item = window.inputs != 0
    assert (is_item[:, 1:] >= is_item[:, :-1]).all()
    assert torch.equal(window.inputs[:, 1:], torch.where(is_item[:, :-1], window.labels[:, :-1], window.inputs[:, 1:]))


@settings(max_examples=30, deadline=None)
@given(sequence=sequences(num_items=5, max_users=3, max_length=6))
def test_drawn_sequences_are_padded_in_front(sequence: Tensor) -> None:
    assert sequence.max() <= 5
    is_item = sequence != 0
    assert (is_item[:, 1:] >= is_item[:, :-1]).all()

"""Ranks by counting against ranks by sorting, on a catalogue of 20,000 items."""

import numpy as np
import pytest
import torch

from finetune_kit.evaluation.ranking import full_ranks

pytestmark = pytest.mark.benchmark(group="ranks of 256 positives among 20,000 items")


def by_sorting(scores, row, positive, known):
    scores = scores.clone()
    of_positive = scores[row, positive - 1].clone()
    scores[known[0], known[1] - 1] = -torch.inf
    ordered = scores[row].sort(dim=1, descending=True).values
    return 1 + (ordered > of_positive[:, None]).sum(dim=1)


@pytest.mark.parametrize("how", [full_ranks, by_sorting])
def test_ranks_of_a_batch(benchmark, how):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(256, 20_000, generator=generator)
    row, positive = torch.arange(256), torch.randint(1, 20_001, (256,), generator=generator)
    known = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    ranks = benchmark(how, scores, row, positive, known)
    assert np.array_equal(ranks.numpy(), by_sorting(scores, row, positive, known).numpy())

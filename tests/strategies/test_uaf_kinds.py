"""On users of planted kinds, does the learned policy treat the kinds differently?"""

import itertools

import numpy as np
import pytest

from finetune_kit.config import resolve_config
from finetune_kit.data.dataset import Dataset
from finetune_kit.files import read_table
from finetune_kit.training.device import make_fabric
from finetune_kit.training.run import Runner
from ftkit_datasets.synthetic import Synthetic, SyntheticOptions

MARGIN = 0.5
"""How far apart the mean gates of two kinds must lie in some block; the learned policy's lie 0.9 and more apart."""


def largest_difference(gates, kind):
    """Return how far apart the mean gates of two kinds lie, in the block where they do most."""
    means = [gates[kind == value].mean(axis=0) for value in np.unique(kind)]
    return max(np.abs(one - other).max() for one, other in itertools.combinations(means, 2))


@pytest.mark.slow
def test_a_learned_policy_treats_planted_kinds_of_users_differently_and_a_random_one_does_not(tmp_path):
    Synthetic(SyntheticOptions(users=2000, max_length=30)).prepare(tmp_path / "synthetic")
    dataset = Dataset.open(tmp_path / "synthetic")
    config = resolve_config(
        {
            "run": {"strategy": "uaf-hard", "device": "cpu"},
            "data": {"max_length": 30},
            # Two blocks of dilation 1 see 13 positions: what tells the kinds apart lies before, for the policy alone.
            "backbone": {"dim": 32, "num_blocks": 2, "dilations": [1]},
            "pretrain": {"epochs": 10},
            "finetune": {"epochs": 20, "patience": 0},
        }
    )
    runner = Runner(config, dataset, make_fabric("cpu"))
    runner.finetune(tmp_path / "run", runner.pretrain(tmp_path / "pretrained"))
    policy = read_table(tmp_path / "run" / "policy.parquet")
    gates = np.stack([policy["gate_0"], policy["gate_1"]], axis=1)
    kind = dataset.labels["kind"].value[policy["user"] - 1]
    assert largest_difference(gates, kind) > MARGIN
    for seed in range(20):
        # another stream than the one that drew the kinds, from seed 0
        random_gates = np.random.default_rng([1, seed]).integers(2, size=gates.shape)
        assert largest_difference(random_gates, kind) < MARGIN / 2

"""How large the measured models and data are, and made-up data of that size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from straight import StraightFinetune, StraightUafHard

from finetune_kit.config import Config, resolve_config
from finetune_kit.data.batch import Batch, Windows
from finetune_kit.data.dataset import Dataset
from finetune_kit.data.loading import draw_negatives
from finetune_kit.data.preparation import preparing
from finetune_kit.data.prepare import write_dataset
from finetune_kit.strategy import Strategy
from finetune_kit.testing import random_sequence, random_windows
from finetune_kit.training.assemble import build_strategy


@dataclass(frozen=True)
class Shape:
    """The shape of a model and of one batch of one instance per user."""

    users: int = 256
    length: int = 50
    dim: int = 128
    blocks: int = 8
    source_items: int = 50_000
    target_items: int = 20_000

    @property
    def dilations(self) -> list[int]:
        """Dilation of each block's first convolution, as the paper has them."""
        return [(1, 4)[k % 2] for k in range(self.blocks)]

    def config(self, strategy: str, **finetune: object) -> Config:
        """Return the configuration of a run of this shape."""
        return resolve_config(
            {
                "run": {"strategy": strategy},
                "data": {"max_length": self.length},
                "backbone": {"dim": self.dim, "num_blocks": self.blocks},
                "finetune": {"batch_size": self.users, "learning_rate": 1e-4, "patience": 0, **finetune},
            }
        )

    def strategy(self, name: str) -> Strategy:
        """Return a strategy over a fresh backbone; for speed, its weights do not matter."""
        return build_strategy(self.config(name), self.source_items, self.target_items, None)

    def batch(self) -> Batch:
        """Return a batch of users with an instance each."""
        random = torch.Generator().manual_seed(0)
        positive = torch.randint(1, self.target_items + 1, (self.users,), generator=random)
        return Batch(
            user=torch.arange(1, self.users + 1),
            sequence=random_sequence(self.users, self.length, self.source_items, min_items=self.length // 2),
            row=torch.arange(self.users),
            positive=positive,
            negative=draw_negatives(positive, self.target_items, 1, random),
        )

    def windows(self) -> Windows:
        """Return windows of the source domain, as many as there are users in a batch."""
        return random_windows(self.users, self.length, self.source_items)


def straight_of(strategy: Strategy) -> StraightUafHard | StraightFinetune:
    """Return the straight reading of a strategy over NextItNet, with the same weights."""
    backbone, head = strategy.backbone, strategy.task.head
    shape = Shape(blocks=len(backbone.blocks))
    sizes = backbone.num_items, head.out_features, backbone.dim, shape.dilations
    if hasattr(strategy, "policy"):
        model = StraightUafHard(*sizes, temperature=strategy.options.temperature)
    else:
        head_only = not any(map(strategy.trains, backbone.parameters()))
        model = StraightFinetune(*sizes, head_only=head_only)
    model.load_state_dict(strategy.state_dict())
    return model


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        name: ``paper`` or ``small``.
        step: Shape of the training steps.
        epoch: Shape of the models trained and evaluated on a dataset; its catalogues are the dataset's.
        catalogues: Source items of the pre-training rows.
        windows: Windows per pre-training step.
        windows_at_once: How many of these the timed reference, with its logits, holds at a time.
        windows_in_memory: Windows of a step whose memory is measured; the reference then holds the logits of all.
        num_negatives: Items drawn per step for the sampled softmax.
        rounds: Rounds timed of each row, after one that is not.
        dataset: Users, source items, target items of the made-up dataset.
        matmul: Rows and columns of the matrix product that tells the machine's peak.
    """

    name: str
    step: Shape
    epoch: Shape
    catalogues: tuple[int, ...]
    windows: int
    windows_at_once: int
    windows_in_memory: int
    num_negatives: int
    rounds: int
    dataset: tuple[int, int, int]
    matmul: int


PAPER = Size(
    name="paper",
    step=Shape(),
    epoch=Shape(dim=64, blocks=4, source_items=3358, target_items=319),
    catalogues=(50_000, 650_000),
    windows=128,
    windows_at_once=8,
    windows_in_memory=64,
    num_negatives=2048,
    rounds=7,
    dataset=(5264, 3358, 319),
    matmul=2048,
)
SMALL = replace(
    PAPER,
    name="small",
    step=Shape(users=16, length=16, dim=16, blocks=4, source_items=200, target_items=100),
    epoch=Shape(users=32, length=16, dim=16, blocks=2),
    catalogues=(1000, 5000),
    windows=8,
    windows_in_memory=8,
    num_negatives=100,
    rounds=3,
    dataset=(300, 200, 50),
    matmul=512,
)
SIZES = {size.name: size for size in (PAPER, SMALL)}

INSTANCES_PER_USER = 3.8
SOURCE_EVENTS = (10, 150)
"""Fewest source events of a made-up user, and how many more there are on average: MovieLens-1M without Horror."""


def make_up(folder: Path, num_users: int, num_source: int, num_target: int) -> Dataset:
    """Write a dataset of random events, popular items drawn more often, and open it."""
    rng = np.random.default_rng(0)
    fewest, more = SOURCE_EVENTS
    num_events = {
        "source": fewest + rng.exponential(more, num_users).astype(int),
        "target": 1 + rng.binomial(4, (INSTANCES_PER_USER - 1) / 4, num_users),
    }
    with preparing(folder) as preparation:
        for domain, num_items in (("source", num_source), ("target", num_target)):
            share = 1 / np.arange(1, num_items + 1)
            user = np.repeat(np.arange(num_users), num_events[domain])
            item = rng.choice(num_items, len(user), p=share / share.sum())
            item[:num_items] = np.arange(num_items)  # each at least once
            if domain == "target":  # each pair once
                once = np.unique(user * num_items + item)
                user, item = once // num_items, once % num_items
            preparation.connection.register(f"_{domain}", {"user": user, "item": item, "time": np.arange(len(user))})
            preparation.connection.execute(
                f"CREATE TABLE {domain} AS SELECT 'user' || user AS user, 'item' || item AS item, time, 0 AS tie "
                f"FROM _{domain}"
            )
        write_dataset(preparation, options={}, inputs=[])
    return Dataset.open(folder)

"""Strategies that peek in evaluation break a promise of the contract, and those that don't keep it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from finetune_kit.data.batch import Batch
from finetune_kit.strategy import Encoded, Strategy
from finetune_kit.testing import TinyBackbone
from test_testing_strategies import Head, NormalisesOverTheBatch, contract_of, is_kept

BLIND, ALONE = "test_evaluation_is_blind_and_leaves_no_trace", "test_users_do_not_influence_one_another"


class PeeksAtAnswers(Head):
    """Pulls users towards the answers that they are asked for."""

    def encode(self, batch: Batch) -> Encoded:
        vectors = super().encode(batch).vectors
        if self.training:
            return Encoded(vectors)
        return Encoded(vectors.index_add(0, batch.row, self.task.head.weight[batch.positive - 1]))


class CountsInstances(Head):
    """Tells by how many instances users have how well it will do."""

    def encode(self, batch: Batch) -> Encoded:
        vectors = super().encode(batch).vectors
        if self.training:
            return Encoded(vectors)
        return Encoded(vectors * torch.bincount(batch.row, minlength=len(vectors)).unsqueeze(1))


class AvoidsNegatives(Head):
    def encode(self, batch: Batch) -> Encoded:
        vectors = super().encode(batch).vectors
        if self.training or not batch.negative.numel():
            return Encoded(vectors)
        return Encoded(vectors.index_add(0, batch.row, -self.task.head.weight[batch.negative[:, 0] - 1]))


class RemembersAnswers(Head):
    """Keeps what evaluation asks for and learns it at the next training step."""

    remembered: Batch | None = None

    def encode(self, batch: Batch) -> Encoded:
        if not self.training:
            self.remembered = batch
        return super().encode(batch)

    def loss(self, batch: Batch, encoded: Encoded) -> Tensor:
        loss = super().loss(batch, encoded)
        if self.training and self.remembered is not None:
            known = self.remembered
            loss = loss + self.task.loss(self.backbone.user_vectors(known.sequence), known)
        return loss


class RemembersUsers(Head):
    """Encodes users by what it was asked of them before."""

    def build(self) -> None:
        super().build()
        self.asked: dict[int, int] = {}

    def encode(self, batch: Batch) -> Encoded:
        vectors = super().encode(batch).vectors
        if self.training:
            return Encoded(vectors)
        shift = torch.tensor([self.asked.get(user, 0) for user in batch.user.tolist()], device=vectors.device)
        self.asked |= dict(zip(batch.user[batch.row].tolist(), batch.positive.tolist(), strict=True))
        return Encoded(vectors + shift.unsqueeze(1))


class AdaptsAtEvaluation(Head):
    """Takes statistics of the users that it is measured on, as a normalisation that was left on does."""

    def build(self) -> None:
        super().build()
        self.register_buffer("mean", torch.zeros(self.backbone.dim))

    def encode(self, batch: Batch) -> Encoded:
        vectors = super().encode(batch).vectors
        if not self.training:
            self.mean.lerp_(vectors.detach().mean(dim=0), 0.1)
        return Encoded(vectors)


class DrawsAtEvaluation(Head):
    """Evaluation takes numbers from the noise of training."""

    def encode(self, batch: Batch) -> Encoded:
        vectors = super().encode(batch).vectors
        noise = torch.rand(vectors.shape, generator=self.noise).to(vectors.device)
        return Encoded(vectors + noise if self.training else vectors)


class LooksAtTheNextUser(Head):
    """Encodes a user with a share of whoever comes next in the batch."""

    def encode(self, batch: Batch) -> Encoded:
        vectors = super().encode(batch).vectors
        return Encoded(vectors if self.training else 0.9 * vectors + 0.1 * vectors.roll(1, dims=0))


@pytest.mark.parametrize(
    ("planted", "promise"),
    [
        (PeeksAtAnswers, BLIND),
        (CountsInstances, BLIND),
        (AvoidsNegatives, BLIND),
        (RemembersAnswers, BLIND),
        (RemembersUsers, BLIND),
        (AdaptsAtEvaluation, BLIND),
        (DrawsAtEvaluation, BLIND),
        (LooksAtTheNextUser, ALONE),
        (NormalisesOverTheBatch, ALONE),
    ],
)
def test_a_strategy_that_peeks_breaks_its_promise(planted: type[Strategy], promise: str, tmp_path: Path) -> None:
    assert not is_kept(contract_of(planted), promise, TinyBackbone, tmp_path)
    assert is_kept(contract_of(Head), promise, TinyBackbone, tmp_path)

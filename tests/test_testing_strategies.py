"""The contract of strategies can fail: each planted mistake breaks the promise that it should."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from finetune_kit import losses
from finetune_kit.backbone import Backbone, Context
from finetune_kit.data.batch import Batch
from finetune_kit.errors import PluginError
from finetune_kit.strategy import Encoded, Strategy
from finetune_kit.task import Task
from finetune_kit.testing import (
    BufferedBackbone,
    GlobalBackbone,
    StrategyContract,
    TinyBackbone,
    tiny_backbones,
)
from finetune_kit.testing.strategy_contract import item_task
from ftkit_uaf.branches import TwoBranchBlock, add_tuned_branches


class Head(Strategy):
    """Trains the head alone, and keeps every promise."""

    def build(self) -> None:
        self.freeze(self.backbone)


class Gated(Strategy):
    """Two branches with gates of one half, and keeps every promise."""

    def build(self) -> None:
        add_tuned_branches(self)

    def encode(self, batch: Batch) -> Encoded:
        gates = torch.full((len(batch.user), len(self.backbone.blocks)), 0.5, device=batch.user.device)
        return Encoded(self.backbone.user_vectors(batch.sequence, gates), gates)


class NothingTrains(Head):
    def build(self) -> None:
        self.freeze(self.backbone)
        self.freeze(self.task)


class OnlyGradientsAreStopped(Head):
    """Buffers and dropout go on as in training."""

    def build(self) -> None:
        self.backbone.requires_grad_(False)


class WritesIntoWhatIsFrozen(Head):
    def encode(self, batch: Batch) -> Encoded:
        if self.training:
            self.backbone.blocks[0].norm.weight.data.mul_(1.01)
        return super().encode(batch)


class EncodesUsersTwice(Head):
    """Encodes a user by other items too, so what is known of the user can't take their place."""

    def loss(self, batch: Batch, encoded: Encoded) -> Tensor:
        earlier = self.encode(replace(batch, sequence=batch.sequence[:, :-1]))
        return self.task.loss(encoded.vectors - earlier.vectors, batch)


class TrainsWhatItDoesNotUse(Head):
    def build(self) -> None:
        super().build()
        self.unused = nn.Linear(2, 2)


class StartsElsewhere(Head):
    def encode(self, batch: Batch) -> Encoded:
        return Encoded(super().encode(batch).vectors * 1.5)


class GateTheWrongWayRound(Gated):
    def build(self) -> None:
        super().build()
        for block in self.backbone.blocks:
            block.frozen, block.tuned = block.tuned, block.frozen


class ForgetsTheTrunk(TwoBranchBlock):
    def forward(self, hidden: Tensor, context: Context, gate: Tensor) -> Tensor:
        gate = gate[:, None, None]
        return gate * self.tuned(hidden, context) + (1 - gate) * (self.frozen(hidden, context) - 0.1 * hidden)


class GatesOutsideTheRange(Gated):
    def encode(self, batch: Batch) -> Encoded:
        encoded = super().encode(batch)
        return Encoded(encoded.vectors, encoded.gates * 3)


class SkipsMoreThanGatesLeave(Gated):
    def encode(self, batch: Batch) -> Encoded:
        encoded = super().encode(batch)
        return Encoded(encoded.vectors, encoded.gates, skipped=0 * encoded.gates + 0.6)


class WrongMixture(Gated):
    def build(self) -> None:
        super().build()
        for k, block in enumerate(self.backbone.blocks):
            wrong = ForgetsTheTrunk(nn.Identity())
            wrong.frozen, wrong.tuned = block.frozen, block.tuned
            self.backbone.blocks[k] = wrong


class LooksAhead(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        return self.block(hidden + 0.1 * hidden.roll(-1, dims=1), context)


class PeeksAtLaterItems(Head):
    def build(self) -> None:
        self.backbone.blocks = nn.ModuleList(LooksAhead(block) for block in self.backbone.blocks)
        super().build()


class CountsPadding(Head):
    def encode(self, batch: Batch) -> Encoded:
        return Encoded(super().encode(batch).vectors * batch.sequence.shape[1] / 7)


class NormalisesOverTheBatch(Head):
    def encode(self, batch: Batch) -> Encoded:
        vectors = super().encode(batch).vectors
        return Encoded(vectors - vectors.mean(dim=0))


class DrawsFromNowhere(Head):
    def loss(self, batch: Batch, encoded: Encoded) -> Tensor:
        noise = torch.rand(encoded.vectors.shape, generator=torch.Generator().manual_seed(torch.seed() % 2**31))
        return self.task.loss(encoded.vectors + noise, batch)


class NoiseGoesOn(Head):
    def start_epoch(self, epoch: int) -> None:
        """Keep the generator of the epoch before."""

    def loss(self, batch: Batch, encoded: Encoded) -> Tensor:
        noise = torch.rand(encoded.vectors.shape, generator=self.noise)
        return self.task.loss(encoded.vectors + noise.to(encoded.vectors.device), batch)


class KeepsAStateOutsideOfTheState(Head):
    def build(self) -> None:
        super().build()
        self.count = 0

    def encode(self, batch: Batch) -> Encoded:
        self.count += self.training
        return Encoded(super().encode(batch).vectors * (1 + self.count))


class ForgetsATensorOnTheCpu(Head):
    def loss(self, batch: Batch, encoded: Encoded) -> Tensor:
        return self.task.loss(encoded.vectors + torch.zeros(encoded.vectors.shape[-1]), batch)


class CountsOnNegatives(Head):
    def loss(self, batch: Batch, encoded: Encoded) -> Tensor:
        vectors = encoded.vectors[batch.row]
        positive = self.task.scores_of(vectors, batch.positive.unsqueeze(1)).squeeze(1)
        return losses.bpr(positive, self.task.scores_of(vectors, batch.negative))


class AddsToTheVectors(Head):
    """Merges by the default, although it adds something that no backbone has."""

    def build(self) -> None:
        super().build()
        self.shift = nn.Parameter(torch.zeros(self.backbone.dim))
        self._is_plain = True

    def encode(self, batch: Batch) -> Encoded:
        return Encoded(super().encode(batch).vectors + self.shift)

    def merged_backbone(self) -> Backbone:
        return copy.deepcopy(self.backbone)


class MergesIntoItself(Head):
    def merged_backbone(self) -> Backbone:
        return self.backbone


class MergesIntoMore(Gated):
    def merged_backbone(self) -> Backbone:
        return copy.deepcopy(self.backbone)


class RefusesToMergeWithoutAName(Gated):
    def merged_backbone(self) -> Backbone:
        raise PluginError("no")


class SpoilsTheEnd(Head):
    """What it does once training has ended is not in its trained state."""

    def finish_training(self) -> None:
        with torch.no_grad():
            self.backbone.item_embedding.weight[1:] += 1


class NeedsGlobalBlocks(Head):
    """Takes one backbone, and refuses others as it should."""

    def build(self) -> None:
        if self.backbone.is_causal:
            name = type(self.backbone).__name__
            raise PluginError(
                f"NeedsGlobalBlocks needs positions that see later ones, and {name} has none; use bert4rec"
            )
        super().build()


class RefusesWithoutAName(Head):
    def build(self) -> None:
        raise PluginError("this backbone won't do; use another")


class RefusesWithoutAdvice(Head):
    def build(self) -> None:
        raise PluginError(f"RefusesWithoutAdvice can't use {type(self.backbone).__name__}")


class TrainsOnTheSource(Head):
    """Needs source windows to learn, and keeps every promise."""

    needs_source_batches = True

    def build(self) -> None:
        super().build()
        self.source_output = nn.Linear(self.backbone.dim, self.backbone.num_items)

    def loss(self, batch: Batch, encoded: Encoded) -> Tensor:
        hidden = self.backbone(batch.source.inputs)
        return super().loss(batch, encoded) + losses.next_item(hidden, batch.source.labels, self.source_output)


def contract_of(planted: type[Strategy]) -> StrategyContract:
    class Contract(StrategyContract):
        def strategy_class(self) -> type[Strategy]:
            return planted

        def make_strategy(
            self, backbone_class: type[Backbone], seed: int = 0, make_task: Callable[[int], Task] = item_task
        ) -> Strategy:
            torch.manual_seed(seed)
            backbone = self.make_backbone(backbone_class)
            return planted(backbone, make_task(backbone.dim), seed=seed).eval()

    return Contract()


def promises(contract: object) -> Iterator[str]:
    return (name for name in dir(contract) if name.startswith("test_"))


def is_kept(contract: StrategyContract, promise: str, backbone: type[Backbone], tmp_path: Path) -> bool:
    code = getattr(type(contract), promise).__code__
    given = {"backbone_class": backbone, "any_backbone": backbone, "tmp_path": tmp_path}
    try:
        getattr(contract, promise)(*(given[name] for name in code.co_varnames[1 : code.co_argcount]))
    except (AssertionError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("strategy", [Head, Gated, TrainsOnTheSource])
@pytest.mark.parametrize("backbone", tiny_backbones())
def test_strategies_that_keep_every_promise_pass(
    strategy: type[Strategy], backbone: type[Backbone], tmp_path: Path
) -> None:
    contract = contract_of(strategy)
    broken = [promise for promise in promises(contract) if not is_kept(contract, promise, backbone, tmp_path)]
    assert not broken


@pytest.mark.parametrize(
    ("planted", "promise", "backbone"),
    [
        (NothingTrains, "a_step_has_a_finite_loss_and_something_trains", TinyBackbone),
        (CountsOnNegatives, "it_learns_profile_labels_too", TinyBackbone),
        (OnlyGradientsAreStopped, "what_is_frozen_stays_byte_identical", BufferedBackbone),
        (OnlyGradientsAreStopped, "what_is_frozen_stays_in_evaluation_mode", BufferedBackbone),
        (OnlyGradientsAreStopped, "the_leading_frozen_stages_compute_the_same_for_good", BufferedBackbone),
        (WritesIntoWhatIsFrozen, "what_is_frozen_stays_byte_identical", TinyBackbone),
        (WritesIntoWhatIsFrozen, "the_leading_frozen_stages_compute_the_same_for_good", TinyBackbone),
        (WritesIntoWhatIsFrozen, "what_leading_frozen_stages_compute_may_be_cached", TinyBackbone),
        (EncodesUsersTwice, "what_leading_frozen_stages_compute_may_be_cached", TinyBackbone),
        (TrainsWhatItDoesNotUse, "everything_that_trains_gets_a_gradient", TinyBackbone),
        (StartsElsewhere, "a_new_strategy_computes_what_the_pretrained_backbone_computes", TinyBackbone),
        (GatesOutsideTheRange, "gates_are_shares_one_per_user_and_block", TinyBackbone),
        (SkipsMoreThanGatesLeave, "gates_are_shares_one_per_user_and_block", TinyBackbone),
        (GateTheWrongWayRound, "gate_0_everywhere_is_the_pretrained_backbone", TinyBackbone),
        (WrongMixture, "gate_0_everywhere_is_the_pretrained_backbone", GlobalBackbone),
        (PeeksAtLaterItems, "a_causal_backbone_stays_causal", TinyBackbone),
        (CountsPadding, "more_padding_changes_no_user", TinyBackbone),
        (NormalisesOverTheBatch, "users_do_not_influence_one_another", TinyBackbone),
        (DrawsFromNowhere, "the_same_seed_gives_the_same_result", TinyBackbone),
        (NoiseGoesOn, "an_epochs_noise_does_not_depend_on_earlier_epochs", TinyBackbone),
        (KeepsAStateOutsideOfTheState, "saved_and_loaded_it_scores_the_same", TinyBackbone),
        (ForgetsATensorOnTheCpu, "an_accelerator_computes_the_same", TinyBackbone),
        (AddsToTheVectors, "merged_it_is_a_plain_backbone_or_says_why_not", TinyBackbone),
        (MergesIntoItself, "merged_it_is_a_plain_backbone_or_says_why_not", TinyBackbone),
        (MergesIntoMore, "merged_it_is_a_plain_backbone_or_says_why_not", TinyBackbone),
        (RefusesToMergeWithoutAName, "merged_it_is_a_plain_backbone_or_says_why_not", TinyBackbone),
        (SpoilsTheEnd, "what_is_frozen_stays_byte_identical", TinyBackbone),
        (SpoilsTheEnd, "saved_and_loaded_it_scores_the_same", TinyBackbone),
        (RefusesWithoutAName, "a_backbone_is_taken_or_refused_by_name", TinyBackbone),
        (RefusesWithoutAdvice, "a_backbone_is_taken_or_refused_by_name", TinyBackbone),
    ],
)
def test_a_planted_mistake_breaks_its_promise(
    planted: type[Strategy], promise: str, backbone: type[Backbone], tmp_path: Path
) -> None:
    assert not is_kept(contract_of(planted), f"test_{promise}", backbone, tmp_path)


def test_what_encodes_by_more_than_the_backbone_is_not_merged_into_one() -> None:
    class Doubles(Head):
        def encode(self, batch: Batch) -> Encoded:
            return Encoded(2 * super().encode(batch).vectors)

    with pytest.raises(PluginError, match="Doubles can't be merged into a plain TinyBackbone"):
        contract_of(Doubles).make_strategy(TinyBackbone).merged_backbone()


def test_a_backbone_that_is_refused_by_name_is_tried_for_its_refusal_alone(tmp_path: Path) -> None:
    contract = contract_of(NeedsGlobalBlocks)
    assert [contract.refusal(backbone) is None for backbone in tiny_backbones()] == [False, False, True]
    contract.test_it_takes_one_of_the_backbones()
    for backbone in tiny_backbones():
        contract.test_a_backbone_is_taken_or_refused_by_name(backbone)
    contract.backbones = [TinyBackbone]
    with pytest.raises(AssertionError, match="it refuses every backbone: NeedsGlobalBlocks needs"):
        contract.test_it_takes_one_of_the_backbones()

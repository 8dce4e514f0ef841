"""The strategy: what of a pre-trained backbone is reused, what is added, what is re-learned, and for whom."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from finetune_kit.backbone import Backbone
from finetune_kit.data.batch import Batch, Share
from finetune_kit.errors import PluginError
from finetune_kit.gathering import gathered
from finetune_kit.options import Options
from finetune_kit.processes import Processes, slices
from finetune_kit.sections import Pooling
from finetune_kit.seeding import generator
from finetune_kit.task import Task
from finetune_kit.trainable import Trainable

if TYPE_CHECKING:
    from typing_extensions import Self

    from finetune_kit.training.leading import LeadingStages


@dataclass(frozen=True)
class Encoded:
    """What a strategy makes of the users of a batch.

    Args:
        vectors: ``(users, dim)``, one vector per user, the head's input.
        gates: ``(users, blocks)`` in [0, 1], the share of the fine-tuned branch; None for strategies without gates.
        probabilities: ``(users, blocks)``, the probability that the policy gives to the fine-tuned branch, where
            gates are drawn or thresholded from one.
        skipped: ``(users, blocks)`` in [0, 1], the share of a block that is skipped; None where none can be. What gates
            and this leave of 1 is the frozen branch's.
    """

    vectors: Tensor
    gates: Tensor | None = None
    probabilities: Tensor | None = None
    skipped: Tensor | None = None


class Strategy(Trainable):
    """Base of every strategy; a training step is one `forward`, from a batch to its loss.

    For implementers: write `build`; override `encode` where users are not all encoded alike, `loss` to add terms,
    `start_epoch` (with `let_rest`, `wake` and `schedule_epochs`) for schedules, `finish_training` to change weights at
    the end, `idle_options` where one option can leave another without effect. Promises every strategy keeps, checked by
    `finetune_kit.testing.StrategyContract`: what is frozen stays byte-identical, everything else gets a gradient, and a
    batch's users don't influence one another in evaluation.

    Args:
        backbone: Pre-trained, or fresh where ``needs_pretrained`` is False. The strategy owns it and edits it.
        task: The head and its loss.
        options: A filled ``Options`` model; None takes the defaults.
        pooling: How a user vector is read off the hidden states.
        seed: Seeds what is random about the strategy itself (a random policy, noise at evaluation).
    """

    Options: ClassVar[type[Options]] = Options
    """The options model."""
    options: Any
    """The filled model; Any, so that a subclass may annotate its own."""
    needs_pretrained: ClassVar[bool] = True
    """Whether it starts from a pre-trained backbone; if not, it is given a freshly initialised one."""
    needs_source_batches: ClassVar[bool] = False
    """Whether its training step also wants windows of the source domain, in ``batch.source``."""
    evaluation_options: ClassVar[frozenset[str]] = frozenset()
    """Options that act in evaluation alone; `ftkit evaluate` may change them on a trained run."""
    keeps_copies: ClassVar[bool] = False
    """Whether it keeps whole copies of weights that it compares them with: tables can't be divided then."""
    is_deterministic: ClassVar[bool] = True
    """Whether evaluating twice gives the same numbers."""

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        options: Options | None = None,
        *,
        pooling: Pooling = "last",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        if backbone.mask_vector is not None and not self.needs_source_batches:
            backbone.mask_vector.requires_grad_(False)  # it stands for hidden items, which only source windows have
        self.task = task
        self.options = self.Options() if options is None else options
        self.pooling: Pooling = pooling
        self.seed = seed
        self.noise = generator(seed, "noise")
        self.leading: LeadingStages | None = None  # what knows the still stages' output, during a run
        plain = backbone.state_dict().keys()
        self.build()
        # build froze and trained, but added nothing; and what users are encoded by is the backbone alone
        self._is_plain = backbone.state_dict().keys() == plain and type(self).encode is Strategy.encode

    @classmethod
    def idle_options(cls, options: Any) -> Mapping[str, str]:
        """Return which of the options have no effect because of what others are, and why, e.g. ``{"k": "…"}``.

        For implementers: whoever sets one of them nevertheless is told the reason.
        """
        return {}

    def build(self) -> None:
        """Edit ``self.backbone`` and add modules: freeze, copy, patch. Called once, when constructed."""
        raise NotImplementedError(f"{type(self).__name__} must implement build()")

    def encode(self, batch: Batch) -> Encoded:
        """Return the user vectors of a batch, and the gates where there are any.

        During a run it goes on from what ``leading`` knows of the batch's users, by their ids; sequences other than
        theirs are for ``backbone.user_vectors``.
        """
        leading = None if self.leading is None else self.leading(batch.user)
        return Encoded(self.backbone.user_vectors(batch.sequence, pooling=self.pooling, leading=leading))

    def encode_with(self, batch: Batch, gates: Tensor) -> Encoded:
        """Return the user vectors of a batch under given gates ``(users, blocks)``, whatever a policy would say.

        For strategies with gates: it measures what a policy is worth. Override it where gates are not simply handed to
        the backbone's blocks, or vectors are changed after them. A strategy that skips blocks is given the shares of
        all three instead, ``(users, blocks, 3)``: fine-tuned, frozen, skipped.
        """
        return Encoded(self.backbone.user_vectors(batch.sequence, gates, pooling=self.pooling), gates)

    def loss(self, batch: Batch, encoded: Encoded) -> Tensor:
        """Return the scalar to minimise, nats per instance."""
        return self.task.loss(encoded.vectors, batch)

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of a batch: one training step."""
        return self.loss(batch, self.encode(batch))

    def draw(self, batch: Batch, *shape: int) -> Tensor:
        """Return numbers drawn from [0, 1) for each user of a batch in training, ``(users, *shape)``.

        For implementers: what `encode` draws must come from here. Where several processes share a batch, each draws for
        all its users and takes the rows of its own, so that users get the numbers that they would get in one process.
        """
        share = batch.share
        drawn = torch.rand(share.total if share else len(batch.user), *shape, generator=self.noise)
        own = drawn[share.start : share.stop] if share else drawn
        return own.to(batch.user.device)

    def parts(self, batch: Batch, number: int) -> list[tuple[Batch, float]]:
        """Return a batch in up to so many parts of whole users, each with its share of the instances."""
        windows = batch.source
        number = min(number, len(batch.user), len(batch.user) if windows is None else len(windows))
        cut = [batch.of_users(part) for part in slices(len(batch.user), number)]
        if windows is not None:
            for part, own in zip(cut, slices(len(windows), number), strict=True):
                part.source = windows[own]
        return [(part, len(part) / len(batch)) for part in cut]

    def shared_loss(self, batch: Batch, processes: Processes) -> Tensor:
        """Return the loss of a batch, of whose users each process encodes its own; the loss is computed in all.

        Raises:
            PluginError: When a subclass has a `forward` of its own, of which nothing is known.
        """
        if type(self).forward is not Strategy.forward:
            raise PluginError(
                f"{type(self).__name__} overrides `forward`, so nobody knows what of it is each user's; move what it "
                "does into `encode` and `loss`, or train in one process"
            )
        own, total = processes.shares(len(batch.user))[processes.rank], len(batch.user)
        num_rows = own.stop - own.start
        encoding = own if num_rows else slice(0, 1)  # who has no user helps to draw, and tells the shapes
        share = replace(batch.of_users(encoding), share=Share(encoding.start, encoding.stop, total))
        return self.loss(batch, gathered(self.encode(share), num_rows, total, processes))

    def start_epoch(self, epoch: int) -> None:
        """Prepare an epoch, counted from 1; the noise of training becomes a function of (seed, epoch).

        A run that goes on within an epoch calls it too: what it sets may depend on the epoch alone, not on weights.
        """
        self.noise = generator(self.seed, "noise", epoch)

    def finish_training(self) -> None:
        """Do what is left once training has ended (merge, interpolate); the best epoch's weights are in place."""

    def merged_backbone(self) -> Backbone:
        """Return a plain backbone that computes what this strategy's `encode` does, a copy of its own.

        For implementers: override it where what `build` added can be folded into the blocks' weights.

        Raises:
            PluginError: When it can't: what was added is not a change of weights, or differs between users.
        """
        if not self._is_plain:
            raise PluginError(
                f"{type(self).__name__} can't be merged into a plain {type(self.backbone).__name__}: what it added is "
                "not a change of the blocks' weights, or differs between users; use the run as it is"
            )
        return copy.deepcopy(self.backbone)

    def remarks(self, best_epoch: int) -> list[str]:
        """Return what a reader of the numbers must know about a training whose best epoch this was, one line each."""
        return []

    @property
    def frozen_stages(self) -> int:
        """How many leading stages stay frozen for all users: 0 none, 1 the embedding, k + 2 up to block k.

        All stages and `Backbone.finish` where it is the number of blocks + 1.
        """
        return self._count_leading(lambda part: not any(map(self.trains, part.parameters(recurse=False))))

    @property
    def still_stages(self) -> int:
        """How many leading stages compute the same for the whole epoch: those that are frozen, and those that rest.

        Only what `freeze` or `let_rest` put into evaluation mode counts.
        """
        still = {id(part) for part in (*self._frozen, *self._resting)}
        trained = {id(parameter) for parameter in self.parameters() if parameter.requires_grad}
        return self._count_leading(
            lambda part: id(part) in still and trained.isdisjoint(map(id, part.parameters(recurse=False)))
        )

    def backbone_stages(self) -> list[list[nn.Module]]:
        """Return the modules of each stage of the backbone: first those outside of blocks, then each block's."""
        blocks = [list(block.modules()) for block in self.backbone.blocks]
        inside = {id(part) for block in blocks for part in block}
        return [[part for part in self.backbone.modules() if id(part) not in inside], *blocks]

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; what is known of still stages is kept if they have not changed."""
        super().train(mode)
        if self.leading is not None:
            self.leading.doubt()
        return self

    def _count_leading(self, counts: Callable[[nn.Module], bool]) -> int:
        return sum(1 for _ in takewhile(lambda stage: all(map(counts, stage)), self.backbone_stages()))

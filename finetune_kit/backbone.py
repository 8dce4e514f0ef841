"""The backbone: the sequential network that is pre-trained on the source domain, cut into residual blocks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from finetune_kit.data.batch import Windows
from finetune_kit.errors import PluginError
from finetune_kit.options import Options
from finetune_kit.positions import as_computed, at_steps
from finetune_kit.sections import Pooling

HIDDEN_SHARE = 0.2
"""Share of the items that a backbone that is not causal has to guess in training (BERT4Rec's, on MovieLens-1M)."""


@dataclass(frozen=True)
class Context:
    """What the blocks of a backbone need to know of a batch, prepared once per batch.

    A backbone whose blocks need more (positions, an attention mask) derives its own and extends `trailing` and `rows`.

    Args:
        mask: ``(users, length, 1)``, 1.0 at items and 0.0 at padding; None lets padding through like an item.
    """

    mask: Tensor | None
    given: tuple[int, ...] = field(default=(), kw_only=True)
    """Where the hidden states stand that a block is given, if ``wanted`` is set, in steps before the last position."""
    wanted: tuple[int, ...] | None = field(default=None, kw_only=True)
    """Where alone the block shall compute its output, in the same steps; None: at all positions that it is given."""

    def masked(self, hidden: Tensor) -> Tensor:
        """Return hidden states ``(users, length, dim)`` with zeros at padding."""
        return hidden if self.mask is None else hidden * self.mask.to(hidden.dtype)

    def trailing(self, length: int) -> Context:
        """Return the context of the last ``length`` positions."""
        return replace(self, mask=None if self.mask is None else self.mask[:, -length:])

    def rows(self, users: Tensor) -> Context:
        """Return the context of some of the batch's users, by their rows ``(some,)`` int64."""
        return replace(self, mask=None if self.mask is None else self.mask[users])

    def at(self, steps: tuple[int, ...]) -> Context:
        """Return the context of single positions, in steps before the last one."""
        return replace(self, mask=None if self.mask is None else self.mask[:, [-1 - step for step in steps]])


class Steps(NamedTuple):
    """Positions that a block is given and computes, in steps before the last one, earliest first."""

    given: tuple[int, ...]
    """Where the hidden states stand that it is given."""
    wanted: tuple[int, ...] | None = None
    """Where alone it shall compute its output; None: at all positions that it is given."""


class Leading(NamedTuple):
    """What the first stages of a backbone make of a batch's users: the embedding, and blocks from the first on."""

    hidden: Tensor
    """``(users, positions, dim)``, at the positions that the other stages need; ``(users, dim)``, the user vectors,
    where no stage is left."""
    num_stages: int
    """How many stages: 1 the embedding, k + 2 up to block k."""


class Backbone(nn.Module):
    """A sequential network in parts that strategies can take hold of: embed ▸ blocks ▸ finish.

    For implementers: set the attributes below in ``__init__``, and override `embed` or `finish` where an
    embedding look-up and the identity are not enough. Each block maps ``(hidden, context)``, hidden states
    ``(users, length, dim)``, to the same shape. A block may carry two facts:

    * ``reach``: how many positions back an output looks; lets `user_vectors` skip positions that the last
      one can't see. Absent means all of them.
    * ``inputs_for(wanted, length)``: the single positions that it must be given for its output at some, all in steps
      before the last one, earliest first; None where it can't tell. Such a block minds ``context.wanted``, which
      skips still more than ``reach`` does.
    * ``sites``: names of the submodules at which a patch (an adapter) can be put.

    Args:
        num_items: Items of the source domain; ids run from 1 to ``num_items``, 0 pads.
        max_length: The longest sequence it will be given.
        options: A filled ``Options`` model; None takes the defaults.
    """

    Options: ClassVar[type[Options]] = Options
    """The options model."""
    options: Any
    """The filled model; Any, so that a subclass may annotate its own."""
    is_causal: bool = True
    """Whether no position sees a later one. If not, the backbone learns the source domain by guessing hidden items
    and needs a ``mask_vector``."""
    mask_vector: nn.Parameter | None
    """``(dim,)``, what stands for a hidden item, whose id is ``num_items + 1``; for backbones that are not causal."""

    dim: int
    """Width of hidden states."""
    item_embedding: nn.Embedding
    """``(num_items + 1, dim)``; row 0 is the padding."""
    blocks: nn.ModuleList
    """The residual blocks, first to last."""

    def __init__(self, num_items: int, max_length: int, options: Options | None = None) -> None:
        super().__init__()
        self.num_items = num_items
        self.max_length = max_length
        self.options = self.Options() if options is None else options
        self.register_parameter("mask_vector", None)

    def prepare(self, sequence: Tensor) -> Context:
        """Return what the blocks need to know of item ids ``(users, length)``."""
        return Context(mask=self.item_mask(sequence))

    def embed(self, sequence: Tensor) -> Tensor:
        """Return the first hidden states, ``(users, length, dim)``, of item ids ``(users, length)``."""
        return self.look_up(sequence)

    def look_up(self, sequence: Tensor) -> Tensor:
        """Return item embeddings ``(users, length, dim)``, the mask vector where an item is hidden."""
        if self.mask_vector is None:
            return self.item_embedding(sequence)
        is_hidden = sequence == self.num_items + 1
        vectors = self.item_embedding(sequence.masked_fill(is_hidden, 0))
        return torch.where(is_hidden.unsqueeze(-1), self.mask_vector.to(vectors.dtype), vectors)

    def start(self, sequence: Tensor) -> tuple[Tensor, Context]:
        """Return the first hidden states, and what the blocks need to know, of item ids ``(users, length)``."""
        return self.embed(sequence), self.prepare(sequence)

    def item_mask(self, sequence: Tensor) -> Tensor | None:
        """Return 1.0 at items and 0.0 at padding, ``(users, length, 1)``; None counts padding as items.

        For implementers: override this, not `prepare`, where padding shall count.
        """
        return padding_mask(sequence, self.item_embedding.weight.dtype)

    def finish(self, hidden: Tensor, context: Context) -> Tensor:
        """Return the last hidden states from those after the last block, both ``(users, length, dim)``."""
        return hidden

    def forward(
        self,
        sequence: Tensor,
        gates: Tensor | None = None,
        *,
        last_only: bool = False,
        leading: Leading | None = None,
    ) -> Tensor:
        """Return the hidden states of every position, ``(users, length, dim)``.

        Args:
            sequence: Item ids ``(users, length)``, left-padded with 0.
            gates: ``(users, blocks)`` in [0, 1], handed to blocks that take one; None where none does. Blocks that
                choose among more take several numbers each: ``(users, blocks, n)``.
            last_only: Compute just the positions that the last one depends on; only the last is then right,
                and the result may have fewer positions.
            leading: What `lead` returned for these users, where it is known; some blocks are then left to run.
        """
        plan = self._plan(sequence.shape[1], last_only=last_only)
        if leading is None:
            first, stands = 0, _all_steps(sequence.shape[1])
            hidden, context = self.start(sequence)
            hidden = as_computed(hidden)
        else:
            first = leading.num_stages - 1
            stands, hidden, context = plan[first].given, leading.hidden, self.prepare(sequence)
        hidden, _ = self._through(range(first, len(self.blocks)), hidden, stands, context, plan, gates)
        return self.finish(hidden, context.trailing(hidden.shape[1]))

    def lead(self, sequence: Tensor, num_stages: int, *, pooling: Pooling = "last") -> Leading:
        """Return what the first stages make of item ids ``(users, length)``, for `user_vectors` to go on from.

        Args:
            sequence: Item ids ``(users, length)``, left-padded with 0.
            num_stages: How many stages, at least 1: 1 the embedding, k + 2 up to block k.
            pooling: As `user_vectors` will be asked.
        """
        if num_stages > len(self.blocks):
            return Leading(self.user_vectors(sequence, pooling=pooling), num_stages)
        plan = self._plan(sequence.shape[1], last_only=self.is_causal and pooling == "last")
        hidden, context = self.start(sequence)
        hidden, stands = as_computed(hidden), _all_steps(sequence.shape[1])
        hidden, stands = self._through(range(num_stages - 1), hidden, stands, context, plan)
        return Leading(at_steps(hidden, stands, plan[num_stages - 1].given), num_stages)

    def user_vectors(
        self,
        sequence: Tensor,
        gates: Tensor | None = None,
        *,
        pooling: Pooling = "last",
        leading: Leading | None = None,
    ) -> Tensor:
        """Return one vector per user, ``(users, dim)``.

        Args:
            sequence: Item ids ``(users, length)``, left-padded with 0.
            gates: As in `forward`.
            pooling: ``"last"`` takes the last position (the paper), ``"mean"`` averages over the positions
                that are not padding (the authors' code, which has no mask, averages over all of them).
            leading: As in `forward`.
        """
        if leading is not None and leading.num_stages > len(self.blocks):
            return leading.hidden
        if pooling == "last":
            return self.forward(sequence, gates, last_only=self.is_causal, leading=leading)[:, -1]
        hidden = self.forward(sequence, gates, leading=leading)
        mask = self.item_mask(sequence)
        if mask is None:
            return hidden.mean(dim=1)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)

    def source_task(self, windows: Windows, noise: torch.Generator | None) -> Windows:
        """Return what is predicted of source windows, at all positions that then have a label.

        A causal backbone predicts, at each position, the item that follows: the windows as they are. One that sees
        later items would only have to look; it guesses items that are hidden from it (Cloze; Sun et al.,
        *BERT4Rec*, CIKM 2019).

        Args:
            windows: For next-item prediction.
            noise: Decides which items are hidden; None hides each window's last, as an evaluation does.

        Raises:
            PluginError: When the backbone is not causal and has no ``mask_vector``.
        """
        if self.is_causal:
            return windows
        if self.mask_vector is None:
            raise PluginError(
                f"{type(self).__name__} sees later items, so predicting the next one would be reading it off; give it "
                "a mask_vector, a Parameter (dim,), and it is pre-trained on hidden items instead"
            )
        return windows.hide(self.num_items + 1, HIDDEN_SHARE, noise)

    def _through(
        self,
        blocks: range,
        hidden: Tensor,
        stands: tuple[int, ...],
        context: Context,
        plan: list[Steps],
        gates: Tensor | None = None,
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Return hidden states after some of the blocks, and where they stand, in steps before the last position.

        Args:
            blocks: Which blocks, by index.
            hidden: ``(users, positions, dim)``, before the first of them.
            stands: Where these stand.
            context: Of all positions.
            plan: What `_plan` returned.
            gates: As in `forward`.
        """
        for k in blocks:
            given, wanted = plan[k]
            part = context.trailing(len(given)) if wanted is None else replace(context, given=given, wanted=wanted)
            block, hidden = self.blocks[k], at_steps(hidden, stands, given)
            hidden = block(hidden, part) if gates is None else block(hidden, part, gates[:, k])
            stands = given if wanted is None else wanted
        return hidden, stands

    def _plan(self, length: int, *, last_only: bool) -> list[Steps]:
        """Return, for each block, the positions that it is given and those that it computes.

        Args:
            length: Positions of the sequence.
            last_only: Whether the last position alone has to come out right.
        """
        if not last_only:
            return [Steps(_all_steps(length))] * len(self.blocks)
        needed: tuple[int, ...] = (0,)
        plan: list[Steps] = []
        for block in reversed(self.blocks):
            inputs_for, reach = getattr(block, "inputs_for", None), getattr(block, "reach", None)
            given = inputs_for(needed, length) if inputs_for else None
            if given is None:
                plan.append(Steps(_all_steps(length if reach is None else min(length, needed[0] + reach + 1))))
            else:
                plan.append(Steps(given, needed))
            needed = plan[-1].given
        return plan[::-1]


def _all_steps(length: int) -> tuple[int, ...]:
    """Return where the last positions stand, in steps before the last one, earliest first."""
    return tuple(reversed(range(length)))


def padding_mask(sequence: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return 1.0 at items and 0.0 at padding, ``(users, length, 1)``, of item ids ``(users, length)``."""
    return (sequence != 0).unsqueeze(-1).to(dtype)


def normal_embedding(num_items: int, dim: int, std: float) -> nn.Embedding:
    """Return an item embedding ``(num_items + 1, dim)`` drawn from N(0, std²), the padding row zero."""
    embedding = nn.Embedding(num_items + 1, dim)
    with torch.no_grad():
        nn.init.normal_(embedding.weight, std=std)
        embedding.weight[0] = 0
    return embedding

"""Turn a sequential model that someone else wrote into a backbone, without editing it.

A backbone is embed ▸ blocks ▸ finish. What stands before the blocks, and what each block is handed beside the hidden
states (masks, positions, rotary tables), is found by letting the model itself run up to its last block, every block
replaced by a `Slot` that lets the hidden states through and notes its other arguments. So only three things must be
told: where the item embedding is, where the blocks are, and what comes after them.

Whether that describes the model is tried out at once, on random items (`finetune_kit.wrapping.check`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from finetune_kit.backbone import Backbone, Context
from finetune_kit.errors import CheckpointError, PluginError
from finetune_kit.layers import rolled
from finetune_kit.options import Options
from finetune_kit.tryout import evaluating
from finetune_kit.wrapping.calls import Path, WrappedContext, rows_per_user
from finetune_kit.wrapping.check import Output, check, failing_in_one_sentence
from finetune_kit.wrapping.parts import (
    Finish,
    block_names,
    find_embedding,
    finishing,
    refuse_bad_arguments,
    turn_off_fast_paths,
)
from finetune_kit.wrapping.slots import Recorder, Recording, Slot, WrappedBlock, ending_early
from finetune_kit.wrapping.trial import TakesNoPart, leave_out_what_takes_no_part, shaken, try_out

Inputs = Callable[[Tensor], "Tensor | Mapping[str, Any]"]
"""From item ids ``(users, length)`` to the model's argument, or to its arguments by name."""


class WrappedBackbone(Backbone):
    """A model that someone else wrote, as a backbone; `wrap` makes one, a plugin's class derives from this.

    Args:
        module: The model; it is copied, so it stays as it is. Maps item ids to hidden states ``(users, length, dim)``;
            what it makes of these (scores, a loss) does not matter, and layers used for that alone are left out.
        embedding: Dotted name of its item embedding, an ``nn.Embedding`` of width ``dim`` whose row 0 is padding and
            whose rows 1 to ``num_items`` are the items.
        blocks: Dotted name of its residual blocks (a ModuleList or Sequential), or of several, or of single blocks,
            in the order in which they are called.
        max_length: The longest sequence it takes.
        finish: Dotted name, or names, of what is called after the blocks (a last LayerNorm), or a function from the
            copied model and hidden states to the last hidden states.
        inputs: What the model is called with, from item ids ``(users, length)``; absent, the item ids alone.
        output: What the model makes of the last hidden states, a function of the model, them and the item ids; only
            for the check that the backbone computes what the model does. Absent, the model must return the hidden
            states: alone, first in a tuple, or as ``last_hidden_state``.
        padding: Which side the model wants its padding on; everyone else hands it ids padded on the left.
        is_causal: Whether no position sees a later one.
        ignores_padding: Whether more padding changes nothing; False accepts a model in which it does.
        num_items: Items of the source domain, where the embedding has further rows behind theirs.
        sites: Names of submodules of every block at which a patch can be put, each ``(users, length, dim)`` → same.
        options: A filled ``Options`` model; None takes the defaults.

    Raises:
        PluginError: When a name leads nowhere or not to what it should, or the backbone does not compute what the
            model computes; in one sentence.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        embedding: str,
        blocks: str | Sequence[str],
        max_length: int,
        finish: str | Sequence[str] | Finish | None = None,
        inputs: Inputs | None = None,
        output: Output | None = None,
        padding: Literal["left", "right"] = "left",
        is_causal: bool = True,
        ignores_padding: bool = True,
        num_items: int | None = None,
        sites: Sequence[str] = (),
        options: Options | None = None,
    ) -> None:
        refuse_bad_arguments(module, max_length, padding)
        table, num_items = find_embedding(module, embedding, num_items)
        super().__init__(num_items, max_length, options)
        self.dim = table.embedding_dim
        self.is_causal = is_causal
        if not is_causal:
            self.mask_vector = nn.Parameter(torch.zeros_like(table.weight[0]).normal_(std=0.02))
        self.module = copy.deepcopy(module)
        self.finishing = finishing(self.module, finish)
        self._embedding, self._inputs, self._padding = embedding, inputs, padding
        turn_off_fast_paths(self.module)
        with shaken(self.module), evaluating(self.module):
            names = block_names(self.module, blocks)
            trial = try_out(self, names)
            self._take_out_blocks(names, trial.num_outputs, sites)
            with failing_in_one_sentence():
                self._rows_per_user = self._count_rows_per_user(trial.sequence)
                check(self, trial, output, ignores_padding=ignores_padding)
                leave_out_what_takes_no_part(self, trial.sequence)
        self.train(module.training)

    def _take_out_blocks(self, names: Sequence[str], num_outputs: Sequence[int], sites: Sequence[str]) -> None:
        """Make the model's blocks the backbone's, and leave slots in their places."""
        self._recorder, self._block_names = Recorder(), list(names)
        self._rows_per_user: Sequence[Mapping[Path, int]] = ()
        self.blocks = nn.ModuleList()
        for k, name in enumerate(names):
            self.blocks.append(WrappedBlock(k, self.module.get_submodule(name), sites))
            self.module.set_submodule(name, Slot(k, num_outputs[k], self._recorder))

    @property
    def item_embedding(self) -> nn.Embedding:  # pyrefly: ignore[bad-override]  # the model's own, not a second one
        """The model's item embedding, ``(num_items + 1, dim)`` or with more rows."""
        return cast("nn.Embedding", self.module.get_submodule(self._embedding))

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a new item embedding takes the place of the model's."""
        if name == "item_embedding":
            self.module.set_submodule(self._embedding, value)
        else:
            super().__setattr__(name, value)

    def load_original(self, state: Mapping[str, Tensor]) -> None:
        """Load a ``state_dict`` of the model, by its own names; weights of layers that were left out are passed over.

        Raises:
            CheckpointError: When weights are missing, unknown or of another shape.
        """
        weights, own = {self._own_name(name): tensor for name, tensor in state.items()}, self.state_dict()
        left_out = [f"module.{name}." for name, part in self.module.named_modules() if isinstance(part, TakesNoPart)]
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(tuple(left_out))}
        if differ := sorted((own.keys() - {"mask_vector"}) ^ weights.keys()):
            who = "the model alone has" if differ[0] in own else "they alone have"
            raise CheckpointError(
                f"the weights given are another model's: {len(differ)} names differ, e.g. {differ[0]!r}, which {who}"
            )
        for name, tensor in weights.items():
            if tensor.shape != own[name].shape:
                raise CheckpointError(
                    f"{name!r} is {tuple(tensor.shape)} in the weights given and {tuple(own[name].shape)} in the model"
                )
        self.load_state_dict(weights, strict=False)

    def _own_name(self, name: str) -> str:
        """Return what a weight of the model is called in the backbone."""
        for k, block in enumerate(self._block_names):
            if name.startswith(f"{block}."):
                return f"blocks.{k}.block.{name.removeprefix(f'{block}.')}"
        return f"module.{name}"

    def start(self, sequence: Tensor) -> tuple[Tensor, WrappedContext]:
        """Return the first hidden states of item ids ``(users, length)``, and what the blocks are handed.

        Raises:
            PluginError: When the model does not call its blocks as it did when it was wrapped.
        """
        sequence, shift = self.arranged(sequence)
        recording = Recording(self.blocks, len(self._block_names), (*sequence.shape, self.dim))
        with self._recorder.on(recording), self._hiding(sequence), ending_early():
            self.call_module(sequence.masked_fill(sequence == self.num_items + 1, 1))
        if recording.hidden is None or len(recording.calls) != len(self._block_names):
            raise PluginError(f"the model called {len(recording.calls)} of its {len(self._block_names)} blocks")
        mask = self.item_mask(sequence)
        return recording.hidden, WrappedContext(mask, tuple(recording.calls), shift, self._rows_per_user)

    def arranged(self, sequence: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return item ids ``(users, length)`` padded where the model wants it, and how far each was moved left."""
        if self._padding == "left":
            return sequence, None
        shift = (sequence == 0).sum(dim=1)
        return rolled(sequence, shift), shift

    def call_module(self, sequence: Tensor) -> Any:
        """Return what the model returns for item ids ``(users, length)``, padded on the side that it wants."""
        inputs = sequence if self._inputs is None else self._inputs(sequence)
        return self.module(**inputs) if isinstance(inputs, Mapping) else self.module(inputs)

    def prepare(self, sequence: Tensor) -> WrappedContext:
        """Return what the blocks are handed beside the hidden states of item ids ``(users, length)``."""
        return self.start(sequence)[1]

    def embed(self, sequence: Tensor) -> Tensor:
        """Return the hidden states that the first block is given, ``(users, length, dim)``."""
        return self.start(sequence)[0]

    def finish(self, hidden: Tensor, context: Context) -> Tensor:
        """Return the last hidden states, padding on the left again, both ``(users, length, dim)``."""
        assert isinstance(context, WrappedContext)
        hidden = self.finishing(self.module, hidden)
        if context.shift is None:
            return hidden
        # Padding on the right sees the items; moved to the left, it would stand before what it has seen.
        return rolled(context.masked(hidden), -context.shift)

    @torch.no_grad()
    def _count_rows_per_user(self, sequence: Tensor) -> Sequence[Mapping[Path, int]]:
        """Return which of the blocks' other arguments are per user, seen from batches of two sizes."""
        twice = torch.cat([sequence, sequence])
        calls = zip(self.prepare(sequence).calls, self.prepare(twice).calls, strict=True)
        return [rows_per_user(one, len(sequence), other, len(twice)) for one, other in calls]

    def _hiding(self, sequence: Tensor) -> AbstractContextManager[Any]:
        """Put the mask vector in the place of hidden items' embeddings, for as long as this lasts."""
        if self.mask_vector is None:
            return nullcontext()
        is_hidden, mask_vector = (sequence == self.num_items + 1).unsqueeze(-1), self.mask_vector

        def hide(_module: nn.Module, _args: Any, vectors: Tensor) -> Tensor:
            return torch.where(is_hidden, mask_vector.to(vectors.dtype), vectors)

        return self.item_embedding.register_forward_hook(hide)


def wrap(
    module: nn.Module, *, embedding: str, blocks: str | Sequence[str], max_length: int, **how: Any
) -> WrappedBackbone:
    """Return a model that someone else wrote as a backbone; all arguments are those of `WrappedBackbone`.

    Raises:
        PluginError: When what was told does not describe the model; says what differs, in one sentence.
    """
    return WrappedBackbone(module, embedding=embedding, blocks=blocks, max_length=max_length, **how)

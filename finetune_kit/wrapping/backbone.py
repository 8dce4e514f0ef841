"""Turn a sequential model that someone else wrote into a backbone, without editing it.

A backbone is embed ▸ blocks ▸ finish. What stands before the blocks, and what each block is handed beside the hidden
states (masks, positions, rotary tables), is found by letting the model itself run up to its last block, every block
replaced by a `Slot` that lets the hidden states through and notes its other arguments. So only three things must be
told: where the item embedding is, where the blocks are, and what comes after them.

Whether that describes the model is tried out at once, on random items (`finetune_kit.wrapping.check`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from finetune_kit.backbone import Backbone, Context
from finetune_kit.errors import PluginError
from finetune_kit.options import Options
from finetune_kit.wrapping import check
from finetune_kit.wrapping.slots import (
    LastBlockReached,
    Recording,
    Slot,
    WrappedBlock,
    WrappedContext,
    rolled,
    rows_per_user,
)

Finish = Callable[[nn.Module, Tensor], Tensor]
"""From the model and the hidden states after its last block to the last hidden states."""
Output = Callable[[nn.Module, Tensor], Any]
"""From the model and the last hidden states to what the model returns."""
Inputs = Callable[[Tensor], "Tensor | Mapping[str, Any]"]
"""From item ids ``(users, length)`` to the model's argument, or to its arguments by name."""


class WrappedBackbone(Backbone):
    """A model that someone else wrote, as a backbone; `wrap` makes one, a plugin's class derives from this.

    Args:
        module: The model; it is copied, so it stays as it is. Maps item ids to hidden states ``(users, length, dim)``;
            what it makes of these (scores, a loss) does not matter, and layers used for that alone are left out.
        embedding: Dotted name of its item embedding, an ``nn.Embedding`` of ``num_items + 1`` rows of width ``dim``,
            row 0 for padding.
        blocks: Dotted name of its residual blocks (a ModuleList or Sequential), or of several, or of single blocks,
            in the order in which they are called.
        max_length: The longest sequence it takes.
        finish: Dotted name, or names, of what is called after the blocks (a last LayerNorm), or a function from the
            copied model and hidden states to the last hidden states.
        output: What the model makes of the last hidden states, a function of the model and them; only for the check
            that the backbone computes what the model does. Absent, the model must return the hidden states: alone,
            first in a tuple, or as ``last_hidden_state``.
        inputs: What the model is called with, from item ids ``(users, length)``; absent, the item ids alone.
        padding: Which side the model wants its padding on; ids come with it on the left.
        is_causal: Whether no position sees a later one.
        sites: Names of submodules of every block at which a patch can be put, each ``(users, length, dim)`` → same.
        ignores_padding: Whether more padding changes nothing; False accepts a model in which it does.
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
        finish: str | Sequence[str] | Finish = (),
        output: Output | None = None,
        inputs: Inputs | None = None,
        padding: Literal["left", "right"] = "left",
        is_causal: bool = True,
        ignores_padding: bool = True,
        sites: Sequence[str] = (),
        options: Options | None = None,
    ) -> None:
        table = find(module, embedding, "embedding")
        if not isinstance(table, nn.Embedding):
            raise PluginError(f"embedding={embedding!r} is a {type(table).__name__}; name the items' nn.Embedding")
        super().__init__(table.num_embeddings - 1, max_length, options)
        self.dim = table.embedding_dim
        self.module = copy.deepcopy(module)
        self.is_causal = is_causal
        if not is_causal:
            self.mask_vector = nn.Parameter(torch.zeros_like(table.weight[0]).normal_(std=0.02))
        self._embedding, self._inputs, self._padding = embedding, inputs, padding
        self._finish = _steps(self.module, finish)
        _turn_off_fast_paths(self.module)
        self._paths = list(_paths_of_blocks(self.module, [blocks] if isinstance(blocks, str) else blocks))
        trial = check.try_out(self, self._paths)
        self.blocks = nn.ModuleList()
        for k, path in enumerate(self._paths):
            block = WrappedBlock(k, find(self.module, path, "blocks"), trial.num_outputs[k], sites)
            self.blocks.append(block)
            self.module.set_submodule(path, Slot(k, block))
        self._rows_per_user: tuple[tuple[int, ...], ...] = ()
        self._rows_per_user = self._count_rows_per_user(trial.sequence)
        check.check(self, trial, module, output, ignores_padding=ignores_padding)
        check.leave_out_what_takes_no_part(self, trial.sequence)

    @property
    def item_embedding(self) -> nn.Embedding:  # pyrefly: ignore[bad-override]  # the model's own, not a second one
        """The model's item embedding, ``(num_items + 1, dim)``."""
        return cast("nn.Embedding", self.module.get_submodule(self._embedding))

    def start(self, sequence: Tensor) -> tuple[Tensor, WrappedContext]:
        """Return the first hidden states of item ids ``(users, length)``, and what the blocks are handed."""
        mask = (sequence != 0).unsqueeze(-1).to(self.item_embedding.weight.dtype)
        sequence, shift = self.arranged(sequence)
        recording = Recording(len(self._paths))
        with self._recording(recording), self._hiding(sequence):
            try:
                self.call_module(sequence.masked_fill(sequence == self.num_items + 1, 1))
            except LastBlockReached:
                pass
            else:
                raise PluginError(
                    f"the model called {len(recording.calls)} of its {len(self._paths)} blocks; name only blocks that "
                    "it calls"
                )
        assert recording.hidden is not None
        return recording.hidden, WrappedContext(mask, tuple(recording.calls), shift, self._rows_per_user)

    def arranged(self, sequence: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return item ids ``(users, length)`` padded where the model wants it, and how far each was moved left."""
        if self._padding == "left":
            return sequence, None
        shift = (sequence == 0).sum(dim=1)
        return rolled(sequence, shift), shift

    def arranged_as(self, hidden: Tensor, sequence: Tensor) -> Tensor:
        """Return hidden states ``(users, length, dim)`` with padding where the model wants it."""
        shift = self.arranged(sequence)[1]
        return hidden if shift is None else rolled(hidden, shift)

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
        hidden = self._finish(self.module, hidden)
        assert isinstance(context, WrappedContext)
        return hidden if context.shift is None else rolled(hidden, -context.shift)

    @torch.no_grad()
    def _count_rows_per_user(self, sequence: Tensor) -> tuple[tuple[int, ...], ...]:
        """Return which of the blocks' other arguments are per user, seen from batches of two sizes."""
        twice = torch.cat([sequence, sequence])
        calls, others = self.prepare(sequence).calls, self.prepare(twice).calls
        return rows_per_user(calls, len(sequence), others, len(twice))

    @contextmanager
    def _recording(self, recording: Recording) -> Iterator[None]:
        """Let every slot note its call, for as long as this lasts."""
        slots = [cast("Slot", self.module.get_submodule(path)) for path in self._paths]
        try:
            for slot in slots:
                slot.recording = recording
            yield
        finally:
            for slot in slots:
                slot.recording = None

    def _hiding(self, sequence: Tensor) -> Any:
        """Put the mask vector in the place of hidden items' embeddings, for as long as this lasts."""
        if self.mask_vector is None:
            return nullcontext()
        is_hidden, mask_vector = (sequence == self.num_items + 1).unsqueeze(-1), self.mask_vector

        def hide(_module: nn.Module, _args: Any, vectors: Tensor) -> Tensor:
            return torch.where(is_hidden, mask_vector.to(vectors.dtype), vectors)

        return self.item_embedding.register_forward_hook(hide)


def wrap(module: nn.Module, *, embedding: str, blocks: str | Sequence[str], max_length: int, **how: Any) -> Backbone:
    """Return a model that someone else wrote as a backbone; all arguments are those of `WrappedBackbone`.

    Raises:
        PluginError: When what was told does not describe the model; says what differs, in one sentence.
    """
    return WrappedBackbone(module, embedding=embedding, blocks=blocks, max_length=max_length, **how)


def find(module: nn.Module, name: str, what: str) -> nn.Module:
    """Return the submodule of a dotted name.

    Raises:
        PluginError: When there is none; says how far the name leads and what is there.
    """
    here, walked = module, "the model"
    for part in name.split("."):
        parts = dict(here.named_children())
        if part not in parts:
            there = ", ".join(map(repr, parts)) or "no parts"
            raise PluginError(f"{what}={name!r}: {walked} has no {part!r}; it has {there}")
        here, walked = parts[part], f"{walked}.{part}" if walked != "the model" else repr(part)
    return here


def _steps(module: nn.Module, finish: str | Sequence[str] | Finish) -> Finish:
    """Return what comes after the blocks as one function of the model and hidden states."""
    if callable(finish):
        return finish
    names = [finish] if isinstance(finish, str) else list(finish)
    for name in names:
        find(module, name, "finish")
    return Steps(names)


@dataclass(frozen=True)
class Steps:
    """Calls submodules one after the other, by their dotted names."""

    names: list[str]

    def __call__(self, module: nn.Module, hidden: Tensor) -> Tensor:
        """Return what the last one returns for ``hidden`` ``(users, length, dim)``."""
        for name in self.names:
            hidden = module.get_submodule(name)(hidden)
        return hidden


def _paths_of_blocks(module: nn.Module, names: Sequence[str]) -> Iterator[str]:
    """Yield the dotted name of every single block."""
    for name in names:
        found = find(module, name, "blocks")
        if isinstance(found, nn.ModuleList | nn.Sequential):
            yield from (f"{name}.{child}" for child, _ in found.named_children())
        else:
            yield name


def _turn_off_fast_paths(module: nn.Module) -> None:
    """Let ``nn.TransformerEncoder`` compute in evaluation what it computes in training.

    Its fused kernels read the weights of the layers that stood there at first, and so ignore whatever a strategy puts
    in their places; and they drop padding, which changes shapes.
    """
    for part in module.modules():
        if isinstance(part, nn.TransformerEncoder):
            part.enable_nested_tensor = part.use_nested_tensor = False
        if isinstance(part, nn.TransformerEncoderLayer):
            part.activation_relu_or_gelu = 0  # the fast path needs one of the two that it has fused

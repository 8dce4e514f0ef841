"""What stands in the places of a wrapped model's blocks, and what it notes there.

A slot keeps nothing of its block: strategies copy, patch and replace the blocks of a backbone, and must not leave
a stale copy behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from finetune_kit.errors import PluginError
from finetune_kit.wrapping.calls import Call, WrappedContext


class WrappedBlock(nn.Module):
    """A block of a wrapped model; calls it with what the model would have handed it.

    Args:
        k: Its index.
        block: The model's own; returns hidden states, alone or first in a tuple.
        sites: Names of submodules of ``block`` at which a patch can be put.
    """

    def __init__(self, k: int, block: nn.Module, sites: Sequence[str] = ()) -> None:
        super().__init__()
        self.k = k
        self.block = block
        self.sites = tuple(f"block.{site}" for site in sites)

    def forward(self, hidden: Tensor, context: WrappedContext) -> Tensor:
        """Return the shape of ``hidden`` ``(users, length, dim)``."""
        output = context.calls[self.k].on(self.block, hidden)
        return output[0] if isinstance(output, tuple) else output


class LastBlockReached(Exception):
    """Ends a run of the model whose only purpose was to find what the blocks are handed."""


@contextmanager
def ending_early() -> Iterator[None]:
    """Let a run of the model end at its last block.

    What `torch.export` notes of the modules that it is in is wound back: it counts on every one to be left normally.
    """
    entered = {}
    if torch.compiler.is_exporting():
        from torch.fx.experimental.proxy_tensor import get_proxy_mode

        entered = getattr(getattr(get_proxy_mode(), "tracer", None), "module_stack", entered)
    depth = len(entered)
    with suppress(LastBlockReached):
        yield
    while len(entered) > depth:
        entered.popitem()


@dataclass
class Recording:
    """One run of the model up to its last block.

    Args:
        blocks: The backbone's blocks, whatever a strategy has made of them.
        num_blocks: Blocks of the model.
        shape: Of hidden states, ``(users, length, dim)``.
        calls: How the blocks were called so far.
        hidden: What the first block was given.
    """

    blocks: nn.ModuleList
    num_blocks: int
    shape: tuple[int, ...]
    calls: list[Call] = field(default_factory=list)
    hidden: Tensor | None = None

    def note(self, k: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Note how block ``k`` is called; return the hidden states that it was given.

        Raises:
            LastBlockReached: When it is the last, so that there is nothing left to note.
            PluginError: When it is not the block's turn.
        """
        place, hidden = self._find_hidden(k, args, kwargs)
        if k != len(self.calls):
            raise PluginError(
                f"block {k} was called after {len(self.calls)} others; a wrapped model must call its blocks once each, "
                "in the order of blocks=, in training too (no layer drop)"
            )
        self.hidden = hidden if k == 0 else self.hidden
        self.calls.append(Call(args, kwargs, place))
        if len(self.calls) == self.num_blocks:
            raise LastBlockReached
        return hidden

    def _find_hidden(self, k: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int | str, Tensor]:
        """Return where the hidden states stand among arguments, and them: the first of their shape."""
        tensors = {place: value for place, value in (*enumerate(args), *kwargs.items()) if isinstance(value, Tensor)}
        for place, value in tensors.items():
            if tuple(value.shape) == self.shape and value.is_floating_point():
                return place, value
        given = ", ".join(f"{place}: {tuple(value.shape)}" for place, value in tensors.items()) or "no tensors"
        raise PluginError(
            f"block {k} is given {given}, none of them hidden states (users, length, dim) = {self.shape}; users must "
            "be the first dimension (batch_first=True?), and the embedding as wide as the blocks"
        )


class Recorder:
    """What all slots of a backbone share: the recording that is going on, if one is."""

    def __init__(self) -> None:
        self.recording: Recording | None = None

    @contextmanager
    def on(self, recording: Recording) -> Iterator[None]:
        """Let the slots note into a recording, for as long as this lasts."""
        self.recording = recording
        try:
            yield
        finally:
            self.recording = None


class Slot(nn.Module):
    """Stands in the model where a block stood: notes how it is called and lets hidden states through.

    Args:
        k: Index of the block.
        num_outputs: Length of the tuple that the block returns, hidden states first; 0 if it returns them alone.
        recorder: Where it notes.
    """

    def __init__(self, k: int, num_outputs: int, recorder: Recorder) -> None:
        super().__init__()
        self.k = k
        self.num_outputs = num_outputs
        self._recorder = recorder

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the block: nn.TransformerEncoder, e.g., looks into its first layer."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            recorder: Recorder | None = self.__dict__.get("_recorder")
            if recorder is None or recorder.recording is None:
                raise
            inside = recorder.recording.blocks[self.k].modules()
            block = next((part.block for part in inside if isinstance(part, WrappedBlock)), None)
            return getattr(block, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the hidden states as they came, in the form in which the block returns them."""
        assert self._recorder.recording is not None, "a slot is only called by WrappedBackbone.start"
        hidden = self._recorder.recording.note(self.k, args, kwargs)
        return (hidden, *[None] * (self.num_outputs - 1)) if self.num_outputs else hidden

"""A module that knows what of it trains: frozen parts stay untouched, the rest can be saved and loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from finetune_kit.errors import CheckpointError

if TYPE_CHECKING:
    from typing_extensions import Self


class Trainable(nn.Module):
    """What the training loop trains; one training step is one ``forward``, from a batch to its loss."""

    def __init__(self) -> None:
        super().__init__()
        self._frozen: list[nn.Module] = []

    def start_epoch(self, epoch: int) -> None:
        """Prepare an epoch, counted from 1."""

    def freeze(self, module: nn.Module, but: Iterable[nn.Module | nn.Parameter] = ()) -> None:
        """Freeze a module for good: no gradients, and evaluation mode even in training (so buffers stay too).

        Args:
            module: What to freeze, with everything inside it.
            but: What goes on training inside it: modules, or single parameters, whose modules are in evaluation mode
                all the same (dropout off, no statistics taken).
        """
        spared = {id(part) for kept in but for part in ([kept] if isinstance(kept, nn.Parameter) else kept.modules())}
        for part in module.modules():
            if id(part) not in spared:
                self._frozen.append(part)
                for parameter in part.parameters(recurse=False):
                    if id(parameter) not in spared:
                        parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; what is frozen stays in evaluation mode."""
        super().train(mode)
        for part in self._frozen:
            part.training = False
        return self

    def trained_state(self) -> dict[str, Tensor]:
        """Return by name what training changes: parameters with a gradient, and buffers that are not frozen."""
        frozen = {id(tensor) for part in self._frozen for tensor in part.buffers(recurse=False)}
        return {
            name: tensor.detach()
            for name, tensor in self.state_dict(keep_vars=True).items()
            if (tensor.requires_grad if isinstance(tensor, nn.Parameter) else id(tensor) not in frozen)
        }

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `trained_state` returned, from any device.

        Raises:
            CheckpointError: When names or shapes differ from what this module trains.
        """
        own = self.trained_state()
        if differ := sorted(own.keys() ^ state.keys()):
            raise CheckpointError(
                "the weights belong to another strategy, backbone or options: "
                f"{len(differ)} names differ, e.g. {differ[0]!r}"
            )
        for name, tensor in state.items():
            if own[name].shape != tensor.shape:
                raise CheckpointError(
                    f"{name!r} is {tuple(tensor.shape)} in the weights and {tuple(own[name].shape)} in the model"
                )
        with torch.no_grad():
            for name, tensor in state.items():
                own[name].copy_(tensor)

    def num_parameters(self) -> tuple[int, int]:
        """Return how many parameters train and how many there are."""
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in self.parameters()]
        return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)

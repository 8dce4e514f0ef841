"""A module that knows what of it trains: frozen parts stay untouched, the rest can be saved and loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from finetune_kit.errors import CheckpointError, PluginError

if TYPE_CHECKING:
    from typing_extensions import Self

    from finetune_kit.processes import Processes


class Trainable(nn.Module):
    """What the training loop trains; one training step is one ``forward``, from a batch to its loss."""

    def __init__(self) -> None:
        super().__init__()
        self._frozen: list[nn.Module] = []
        self._resting: list[nn.Module] = []
        self._resting_parameters: list[nn.Parameter] = []
        self._mode = True  # ``training`` itself is False where the whole module is frozen or rests

    @property
    def schedule_epochs(self) -> int:
        """Epochs of a schedule before the one from which on everything trains; early stopping counts from there."""
        return 0

    def start_epoch(self, epoch: int) -> None:
        """Prepare an epoch, counted from 1."""

    def prepared(self, batch: Any) -> Any:
        """Return a batch with all that is drawn once for all of it, before it is cut among parts and processes."""
        return batch

    def parts(self, batch: Any, number: int) -> list[tuple[Any, float]]:
        """Return a prepared batch in up to so many parts, each with the weight that its loss has in the whole one's.

        Raises:
            PluginError: When its batches can't be cut.
        """
        raise PluginError(f"{type(self).__name__} does not say how its batches are cut; set accumulate to 1")

    def shared_loss(self, batch: Any, processes: Processes) -> Tensor:
        """Return the loss of a prepared batch that all processes have, of which each computes its share.

        The average of its gradient over processes is the gradient of the whole batch's loss.

        Raises:
            PluginError: When its batches can't be shared.
        """
        raise PluginError(f"{type(self).__name__} does not say how its batches are shared; train in one process")

    def freeze(self, module: nn.Module, but: Iterable[nn.Module | nn.Parameter] = ()) -> None:
        """Freeze a module for good: no gradients, and evaluation mode even in training (so buffers stay too).

        Args:
            module: What to freeze, with everything inside it.
            but: What goes on training inside it: modules, or single parameters, whose modules are in evaluation mode
                all the same (dropout off, no statistics taken).
        """
        parts, parameters = _parts(module, but)
        self._frozen += parts
        for parameter in parameters:
            parameter.requires_grad_(False)

    def let_rest(self, module: nn.Module, but: Iterable[nn.Module | nn.Parameter] = ()) -> None:
        """Let a module rest, as if it were frozen, until `wake` or another `let_rest`; all else is awake.

        For schedules, called in `start_epoch`. What rests still counts as trained (`trains`, `trained_state`,
        `num_parameters`). It has no gradient, not even a zero, so the optimizer passes it over: neither its moments nor
        weight decay move it.

        Args:
            module: What rests, with everything inside it.
            but: What is awake inside it, as in `freeze`.
        """
        self.wake()
        self._resting, parameters = _parts(module, but)
        self._resting_parameters = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in self._resting_parameters:
            parameter.requires_grad_(False).grad = None
        self.train(self._mode)

    def wake(self) -> None:
        """Let nothing rest; what is frozen stays so."""
        for parameter in self._resting_parameters:
            parameter.requires_grad_(True)
        self._resting, self._resting_parameters = [], []
        self.train(self._mode)

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; what is frozen or rests stays in evaluation mode."""
        self._mode = mode
        super().train(mode)
        for part in (*self._frozen, *self._resting):
            part.training = False
        return self

    def trains(self, parameter: nn.Parameter) -> bool:
        """Return whether training changes a parameter, be it in a later epoch."""
        return parameter.requires_grad or any(parameter is resting for resting in self._resting_parameters)

    def trained_state(self) -> dict[str, Tensor]:
        """Return by name what training changes: parameters that train, and buffers that are not frozen."""
        frozen = {id(tensor) for part in self._frozen for tensor in part.buffers(recurse=False)}
        return {
            name: tensor.detach()
            for name, tensor in self.state_dict(keep_vars=True).items()
            if (self.trains(tensor) if isinstance(tensor, nn.Parameter) else id(tensor) not in frozen)
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
        sizes = [(parameter.numel(), self.trains(parameter)) for parameter in self.parameters()]
        return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def _parts(module: nn.Module, but: Iterable[nn.Module | nn.Parameter]) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """Return a module and all modules inside it, and the parameters these hold themselves, without what is spared."""
    spared = {id(part) for kept in but for part in ([kept] if isinstance(kept, nn.Parameter) else kept.modules())}
    parts = [part for part in module.modules() if id(part) not in spared]
    parameters = [parameter for part in parts for parameter in part.parameters(recurse=False)]
    return parts, [parameter for parameter in parameters if id(parameter) not in spared]

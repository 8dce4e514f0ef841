"""What the tensors of a module were at the start of training."""

from __future__ import annotations

from torch import Tensor, nn


class Snapshot(nn.Module):
    """A copy of a module's tensors, by name; moves between devices with its owner, and is not saved.

    A strategy is always built over the pre-trained weights, also when a run is loaded, so a snapshot made in `build` is
    the same again.

    Args:
        module: Whose parameters and buffers are copied.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._buffer_of: dict[str, str] = {}  # a buffer's name may have no dots
        for k, (name, tensor) in enumerate(module.state_dict().items()):
            self._buffer_of[name] = f"tensor{k}"
            self.register_buffer(f"tensor{k}", tensor.detach().clone(), persistent=False)

    def __getitem__(self, name: str) -> Tensor:
        """Return what the tensor of that name was."""
        return self.get_buffer(self._buffer_of[name])

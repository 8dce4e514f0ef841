"""A pretend accelerator: finds tensors left on the wrong device, on a machine that has no other device.

Under `pretend_device`, ``"pretend"`` is a device like ``"cuda"``. Its tensors compute real values, on the
CPU, but an operation that mixes them with CPU tensors raises as CUDA would. What CUDA allows stays allowed:
scalars of the CPU, copies between devices, and tensors of the CPU as indices::

    with pretend_device() as device:
        model = Model().to(device)
        model(torch.arange(3))              # RuntimeError: expected all tensors to be on the same device …
        model(torch.arange(3).to(device))   # computes what it computes on the CPU

Rests on torch's interface for device backends written in Python; autocast does nothing here, and Adam can't
be fused. Import this module at the top of a test's file: torch counts the devices at a process's first
backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators import CPUAccelerator
from lightning_fabric.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
"""What ``tensor.device.type`` says."""

_ATEN = torch.ops.aten
_COPIES = {_ATEN.copy_.default, _ATEN._to_copy.default}
"""Operations that may take tensors of any two devices."""
_INDEXING = {
    _ATEN.index.Tensor,
    _ATEN.index_put_.default,
    _ATEN.index_put.default,
    _ATEN._index_put_impl_.default,
}
"""Operations on a tensor of the accelerator that may take indices from the CPU."""


@contextmanager
def pretend_device() -> Iterator[torch.device]:
    """Run a block in which the pretend accelerator exists; yield its device.

    Tensors made on it are of no use after the block.
    """
    swap = torch.__future__.get_swap_module_params_on_conversion()
    lift = torch._C._only_lift_cpu_tensors()
    # Module.to keeps the identity of parameters, as on CUDA, so an optimizer made before it stays right.
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device="pretend") makes its value on the CPU first
    try:
        with _PretendMode():
            yield torch.device(NAME, 0)
    finally:
        torch._C._set_only_lift_cpu_tensors(lift)
        torch.__future__.set_swap_module_params_on_conversion(swap)


def pretend_fabric() -> Fabric:
    """Return a fabric that trains on the pretend accelerator; use it within `pretend_device`."""
    return Fabric(strategy=SingleDeviceStrategy(torch.device(NAME, 0), accelerator=_PretendAccelerator()))


class _PretendAccelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        """Accept the pretend device, which needs no setting up."""


class _PretendModule:
    """What torch asks of ``torch.pretend``, as it asks ``torch.cuda``."""

    is_initialized = is_available = staticmethod(lambda: True)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(lambda seed: None)
    synchronize = staticmethod(lambda device=None: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])


_setup_privateuseone_for_python_backend(NAME, backend_module=_PretendModule)
_autocast = torch.library.Library("_", "IMPL")  # must stay alive
_autocast.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")


class PretendTensor(Tensor):
    """A tensor that says it is on the pretend accelerator; ``held`` has its values on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls: type[PretendTensor], real: Tensor) -> PretendTensor:
        """Wrap values of the CPU."""
        self = Tensor._make_wrapper_subclass(
            cls,
            real.size(),
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            layout=real.layout,
            device=torch.device(NAME, 0),
        )
        self.held = real
        return self

    def __repr__(self, **_: Any) -> str:
        return f"PretendTensor({self.held})"

    def tolist(self) -> Any:
        """Return the values as numbers in lists."""
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(  # pyrefly: ignore[bad-override]  (torch declares the arguments without types)
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


class _PretendMode(TorchDispatchMode):
    """Catches what has no tensor argument, e.g. ``torch.zeros(3, device="pretend")``."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Check the devices of an operation, compute it on the CPU, and put the result where it belongs."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_device = any(isinstance(tensor, PretendTensor) for tensor in tensors)
    if on_device:
        _refuse_mixture(func, args, tensors)
    if kwargs.get("device") is not None:
        on_device = torch.device(kwargs["device"]).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    wrapper = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, PretendTensor)}
    compute = _INSTEAD.get(func, func) if on_device else func
    real_args, real_kwargs = tree_map_only(PretendTensor, lambda tensor: tensor.held, (args, kwargs))
    result = compute(*real_args, **real_kwargs)
    if func is _ATEN.copy_.default:
        return args[0]
    if not on_device:
        return result
    if torch.Tag.inplace_view in func.tags:  # transpose_, squeeze_, …: the wrapper's own shape changes too
        with no_dispatch():
            func(*args, **kwargs)
    return tree_map_only(
        Tensor, lambda tensor: wrapper[id(tensor)] if id(tensor) in wrapper else PretendTensor(tensor), result
    )


def _refuse_mixture(func: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    """Raise for CPU tensors among those of the accelerator, where CUDA would."""
    if func in _COPIES or (func in _INDEXING and isinstance(args[0], PretendTensor)):
        return
    strays = [tuple(tensor.shape) for tensor in tensors if not isinstance(tensor, PretendTensor) and tensor.dim() > 0]
    if strays or (func in _INDEXING and not isinstance(args[0], PretendTensor)):
        shapes = strays or [tuple(args[0].shape)]
        raise RuntimeError(
            f"expected all tensors to be on the same device, but {func} found {NAME}:0 and cpu "
            f"(shapes on cpu: {shapes})"
        )


def _gru_cell(
    input_gates: Tensor,
    hidden_gates: Tensor,
    hidden: Tensor,
    input_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute a GRU's step, which accelerators have as one kernel and CPUs don't."""
    reset_i, update_i, new_i = (input_gates if input_bias is None else input_gates + input_bias).chunk(3, 1)
    reset_h, update_h, new_h = (hidden_gates if hidden_bias is None else hidden_gates + hidden_bias).chunk(3, 1)
    reset, update = (reset_i + reset_h).sigmoid(), (update_i + update_h).sigmoid()
    new = (new_i + reset * new_h).tanh()
    return new + update * (hidden - new), torch.cat([reset, update, new, hidden, new_h], 1)


def _gru_cell_backward(gradient: Tensor, workspace: Tensor, has_bias: bool) -> tuple[Tensor | None, ...]:
    """Compute the gradients of `_gru_cell`: of both gates, the hidden state and both biases."""
    reset, update, new, hidden, new_h = workspace.chunk(5, 1)
    d_update = gradient * (hidden - new) * update * (1 - update)
    d_new = gradient * (1 - update) * (1 - new * new)
    d_reset = d_new * new_h * reset * (1 - reset)
    d_input = torch.cat([d_reset, d_update, d_new], 1)
    d_hidden = torch.cat([d_reset, d_update, d_new * reset], 1)
    biases = [d_input.sum(0), d_hidden.sum(0)] if has_bias else [None, None]
    return d_input, d_hidden, gradient * update, *biases


_INSTEAD: dict[Any, Callable[..., Any]] = {
    _ATEN._thnn_fused_gru_cell.default: _gru_cell,
    _ATEN._thnn_fused_gru_cell_backward.default: _gru_cell_backward,
}
"""Operations that the CPU does not have."""

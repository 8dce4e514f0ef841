"""Tries a model out on random items: before it is taken apart, and to see which of its layers take part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from finetune_kit.errors import PluginError, one_line
from finetune_kit.tryout import made_up_sequence

if TYPE_CHECKING:
    from finetune_kit.wrapping.backbone import WrappedBackbone

NUM_USERS, LENGTH = 3, 8


@dataclass(frozen=True)
class Trial:
    """What the model did on random items before it was taken apart.

    Args:
        sequence: ``(users, length)``, item ids, padded on the left but for the first user.
        output: What the model returned.
        num_outputs: Per block, the length of the tuple that it returned; 0 for one that returned a tensor.
    """

    sequence: Tensor
    output: Any
    num_outputs: list[int]


@torch.no_grad()
def try_out(backbone: WrappedBackbone, names: Sequence[str]) -> Trial:
    """Run the untouched model, in evaluation mode, on random items and note what its blocks return.

    Raises:
        PluginError: When it fails, or its blocks are not called once each, in the order given.
    """
    sequence = random_items(backbone)
    returned: list[tuple[str, Any]] = []

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _block, _args, output: returned.append((name, output))

    handles = [backbone.module.get_submodule(name).register_forward_hook(note(name)) for name in names]
    try:
        output = backbone.call_module(backbone.arranged(sequence)[0])
    except Exception as error:  # the model may raise anything
        raise PluginError(
            f"the model can't be called with item ids {tuple(sequence.shape)}: {one_line(error, with_type=True)}; "
            "tell what it is called with by inputs="
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    called = [name for name, _ in returned]
    if called != list(names):
        raise PluginError(
            f"the model called its blocks in the order {called}, not each once as {list(names)}; blocks= takes all "
            "blocks that take part, in the order in which they are called"
        )
    return Trial(sequence, output, [_num_outputs(k, output) for k, (_, output) in enumerate(returned)])


def _num_outputs(k: int, output: Any) -> int:
    """Return the length of the tuple that a block returned, 0 for a tensor."""
    first = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(first, Tensor):
        raise PluginError(f"block {k} returned a {type(first).__name__}; hidden states come alone or first in a tuple")
    return len(output) if isinstance(output, tuple) else 0


def random_items(backbone: WrappedBackbone) -> Tensor:
    """Return item ids ``(users, length)``, every user's with more padding than the one's before."""
    length = min(LENGTH, backbone.max_length)
    num_known = [length - min(user, length - 1) for user in range(NUM_USERS)]
    random = torch.Generator().manual_seed(0)
    sequence = made_up_sequence(NUM_USERS, length, backbone.num_items, random, num_known=num_known)
    return sequence.to(backbone.item_embedding.weight.device)


@contextmanager
def shaken(module: nn.Module) -> Iterator[None]:
    """Change every weight by about a tenth, for as long as this lasts.

    A new model hides mistakes: its last LayerNorm, e.g., does nothing yet, and would not be missed.
    """
    random = torch.Generator().manual_seed(0)
    before = [(parameter, parameter.detach().clone()) for parameter in module.parameters()]
    try:
        with torch.no_grad():
            for parameter, value in before:
                if value.is_floating_point():
                    parameter.mul_(1 + 0.1 * torch.randn(value.shape, generator=random).to(value))
        yield
    finally:
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)


@contextmanager
def all_trainable(module: nn.Module) -> Iterator[None]:
    """Let every weight that can have a gradient want one for as long as this lasts, also where its owner froze it."""
    before = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    try:
        yield
    finally:
        for parameter, was_trainable in before:
            parameter.requires_grad_(was_trainable)


class TakesNoPart(nn.Module):
    """Stands where a layer stood that the hidden states do not depend on."""


def leave_out_what_takes_no_part(backbone: WrappedBackbone, sequence: Tensor) -> None:
    """Take away layers that the hidden states do not depend on (a pooler, an output layer tied to the embedding).

    They would be trained, saved and counted for nothing.
    """
    model = backbone.module
    with torch.no_grad():
        before = backbone(sequence)
        left_out = {name: model.get_submodule(name) for name in _without_part(backbone, sequence)}
        for name in left_out:
            model.set_submodule(name, TakesNoPart())
        try:
            is_same = torch.equal(backbone(sequence), before)
        except Exception:  # the model looks at what it does not use, e.g. for its dtype
            is_same = False
    if not is_same:
        for name, part in left_out.items():
            model.set_submodule(name, part)


def _without_part(backbone: WrappedBackbone, sequence: Tensor) -> list[str]:
    """Return the outermost parts of the model that are not called and whose weights the hidden states do not need.

    Weights of the item embedding don't count: an output layer that shares them is still left out.
    """
    called: set[nn.Module] = set()
    handles = [part.register_forward_pre_hook(lambda part, _: called.add(part)) for part in backbone.module.modules()]
    with torch.enable_grad(), all_trainable(backbone):
        weights = [weight for weight in backbone.module.parameters() if weight.requires_grad]
        gradients = torch.autograd.grad(backbone(sequence).square().sum(), weights, allow_unused=True)
    for handle in handles:
        handle.remove()
    needed = {id(weight) for weight, gradient in zip(weights, gradients, strict=True) if gradient is not None}
    needed -= {id(backbone.item_embedding.weight)}
    names: list[str] = []
    for name, part in backbone.module.named_modules():
        own = {id(weight) for weight in part.parameters()}
        is_inside = name.startswith(tuple(f"{outer}." for outer in names))
        if name and own and part not in called and not own & needed and not is_inside and not _holds(part, called):
            names.append(name)
    return names


def _holds(part: nn.Module, called: set[nn.Module]) -> bool:
    """Return whether anything inside a part was called: a ModuleDict, e.g., is not called itself."""
    return any(inner in called for inner in part.modules())

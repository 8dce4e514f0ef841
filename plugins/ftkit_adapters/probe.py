"""Whether what was put into a backbone's blocks does what it should; tried on random items, with copies.

Libraries that inject adapters recognise layers by their class and replace them. That goes wrong without a word where a
model does not call the layer (it reads its weight), where the layer computes otherwise than its class, or where
evaluation takes another path than training. All of these show in what the backbone computes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from finetune_kit.backbone import Backbone
from finetune_kit.seeding import generator, seeded
from finetune_kit.tryout import made_up_sequence, relative_difference

NUM_USERS, MAX_LENGTH, LEARNING_RATE = 4, 9, 0.05
TOLERANCE = 1e-5
"""How much of the largest value is rounding; what is tried out must have a larger effect."""


def find_fault(backbone: Backbone, merged: Callable[[Backbone], Backbone]) -> str | None:
    """Return what is wrong with the trainable parts inside of a backbone's blocks, or None; changes nothing.

    Args:
        backbone: With all frozen but what was put in.
        merged: From a trained copy to a plain backbone that computes the same.
    """
    backbone, random = copy.deepcopy(backbone).eval(), generator(0, "probe")
    sequence = made_up_sequence(NUM_USERS, min(backbone.max_length, MAX_LENGTH), backbone.num_items, random)
    frozen_before = {name: tensor.detach().clone() for name, tensor in _frozen(backbone)}
    with seeded(0, "probe"):
        before = backbone(sequence)
        if not before.requires_grad:
            return "nothing of it takes part in the computation"
        if idle := _take_a_step(backbone, before, torch.randn(before.shape, generator=random)):
            return f"{idle} takes no part in the computation"
        with_gradients = backbone(sequence).detach()
        with torch.no_grad():
            fault = _fault_of_outputs(backbone, merged, sequence, before.detach(), with_gradients)
    changed = [name for name, tensor in _frozen(backbone) if not torch.equal(tensor, frozen_before[name])]
    return f"it changes {changed[0]}, which is frozen" if fault is None and changed else fault


def _frozen(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield parameters that don't train, by name."""
    yield from ((name, parameter) for name, parameter in module.named_parameters() if not parameter.requires_grad)


def _take_a_step(backbone: Backbone, hidden: Tensor, direction: Tensor) -> str | None:
    """Move hidden states ``(users, length, dim)`` along a direction; return the name of what has no gradient."""
    trained = {name: parameter for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.Adam(trained.values(), LEARNING_RATE)
    (hidden * direction).sum().backward()
    optimizer.step()
    return next((name for name, parameter in trained.items() if parameter.grad is None), None)


def _fault_of_outputs(
    backbone: Backbone, merged: Callable[[Backbone], Backbone], sequence: Tensor, before: Tensor, with_gradients: Tensor
) -> str | None:
    """Return what is wrong with what a trained backbone computes of item ids ``(users, length)``, or None."""
    after = backbone(sequence)
    effect = relative_difference(before, with_gradients, at_least=1.0)
    if math.isinf(effect):
        return "it computes what is no number"
    if effect <= TOLERANCE:
        return "it has no effect"
    tolerance = max(TOLERANCE, 1e-2 * effect)
    if relative_difference(with_gradients, after, at_least=1.0) > tolerance:
        return "without gradients the backbone computes something else than with them"
    if relative_difference(after, merged(backbone)(sequence), at_least=1.0) > tolerance:
        return "merged into the weights it computes something else"
    changed = sequence.clone()
    changed[:, -1] = changed[:, -1] % backbone.num_items + 1
    earlier = [hidden[:, :-1] for hidden in (after, backbone(changed))]
    if backbone.is_causal and relative_difference(*earlier, at_least=1.0) > tolerance:
        return "with it, positions see later ones"
    return None

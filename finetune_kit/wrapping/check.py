"""Checks that a wrapped model computes what the model computed, and is what it says; answers in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from finetune_kit.errors import PluginError, one_line
from finetune_kit.tryout import relative_difference
from finetune_kit.wrapping.calls import WrappedContext
from finetune_kit.wrapping.trial import NUM_USERS, Trial

if TYPE_CHECKING:
    from finetune_kit.wrapping.backbone import WrappedBackbone

NUM_LATER = 2
"""Items that are changed to see whether earlier positions notice."""

Output = Callable[[nn.Module, Tensor, Tensor], Any]
"""From the model, its last hidden states and the item ids it was called with, to what it returns."""


@torch.no_grad()
def check(backbone: WrappedBackbone, trial: Trial, output: Output | None, *, ignores_padding: bool) -> None:
    """Compare a wrapped model, in evaluation mode, with what it did before and with what it says of itself.

    Raises:
        PluginError: Naming the first thing that is not so.
    """
    hidden = _check_blocks(backbone, trial.sequence)
    _check_finish(backbone, trial, hidden, output)
    _check_causality(backbone, trial.sequence)
    _check_users(backbone, trial.sequence, ignores_padding=ignores_padding)
    _check_length(backbone)


@contextmanager
def failing_in_one_sentence() -> Iterator[None]:
    """Turn whatever a model raises into one sentence."""
    try:
        yield
    except PluginError:
        raise
    except Exception as error:  # the model may raise anything
        raise PluginError(
            f"the model fails when its blocks are called from outside: {one_line(error, with_type=True)}; does it use "
            "what its blocks return beside hidden states?"
        ) from error


def differs(one: Tensor, other: Tensor) -> str | None:
    """Return by how much two tensors differ, in words, or None where they are equal but for rounding."""
    difference = relative_difference(one, other, at_least=1.0)
    if difference == float("inf"):
        return "in that something is not a number"
    # Sums in another order differ by less, another computation by more.
    tolerance = max(1e-4, 10 * torch.finfo(one.dtype).eps)
    return None if difference <= tolerance else f"by up to {difference:.3g} of the largest value"


def _check_blocks(backbone: WrappedBackbone, sequence: Tensor) -> Tensor:
    """Check what each block returns, twice; return the hidden states after the last."""
    hidden, context = backbone.start(sequence)
    for k, block in enumerate(backbone.blocks):
        sites: Sequence[str] = getattr(block, "sites", ())
        with _shapes_of(block, sites) as shapes:
            returned = block(hidden, context)
        if returned.shape != hidden.shape:
            raise PluginError(
                f"block {k} returned {_shape(returned)} for an input of {_shape(hidden)}; a residual block "
                "must keep its shape"
            )
        for site in sites:
            _check_site(k, site, shapes.get(site), _shape(hidden))
        if not _forgets(block, hidden, backbone.prepare(sequence), returned):
            raise PluginError(
                f"block {k} remembers how it was called before: it fills something that it is handed, e.g. a cache of "
                "keys and values; turn that off by inputs=, e.g. use_cache=False"
            )
        hidden = returned
    return hidden


def _forgets(block: nn.Module, hidden: Tensor, context: WrappedContext, returned: Tensor) -> bool:
    """Return whether a block does what it did although something else went through it before.

    Strategies call a block and its copies with one context.
    """
    assert context.mask is not None
    items = context.mask.squeeze(-1) != 0
    try:
        block(-hidden, context)
        again = block(hidden, context)
    except Exception:  # a mask, e.g., that does not fit twice as many keys
        return False
    return again.shape == returned.shape and not differs(again[items].nan_to_num(), returned[items].nan_to_num())


@contextmanager
def _shapes_of(block: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[tuple[int, ...]]]]:
    """Note what submodules are given and return while this lasts, by name; those not called are not in it."""
    shapes: dict[str, list[tuple[int, ...]]] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _site, args, output: shapes.update({name: [_shape(args[0] if args else None), _shape(output)]})

    there = dict(block.named_modules())
    for name in names:
        if name not in there:
            known = ", ".join(repr(path.removeprefix("block.")) for path in there if path.startswith("block."))
            raise PluginError(f"no site {name.removeprefix('block.')!r} in the blocks; there are {known}")
    handles = [there[name].register_forward_hook(note(name)) for name in names]
    try:
        yield shapes
    finally:
        for handle in handles:
            handle.remove()


def _check_site(k: int, site: str, shapes: list[tuple[int, ...]] | None, wanted: tuple[int, ...]) -> None:
    if shapes != [wanted, wanted]:
        found = "is not called" if shapes is None else f"makes {shapes[1]} of {shapes[0]}"
        raise PluginError(
            f"site {site.removeprefix('block.')!r} of block {k} {found}; a patch needs a submodule that is given "
            f"(users, length, dim) = {wanted} and returns it"
        )


def _shape(value: Any) -> tuple[int, ...]:
    """Return the shape of a tensor, nothing for anything else."""
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _check_finish(backbone: WrappedBackbone, trial: Trial, hidden: Tensor, output: Output | None) -> None:
    """Check that the wrapped model computes what the model computed."""
    sequence = backbone.arranged(trial.sequence)[0]  # positions are compared as the model arranges them
    last = backbone.finishing(backbone.module, hidden)
    if not isinstance(last, Tensor) or last.shape != hidden.shape:
        returned = _shape(last) or type(last).__name__
        raise PluginError(
            f"finish= returned {returned} for hidden states {tuple(hidden.shape)}; it must keep their shape"
        )
    if not last.isfinite().all():
        raise PluginError(
            "hidden states are not finite where there is padding: a position that may look at nothing but padding has "
            "no attention to give; wrap it with padding='right', or mask padding otherwise"
        )
    expected, found = _main(trial.output), last if output is None else _main(output(backbone.module, last, sequence))
    shapes = [_shape(value) or type(value).__name__ for value in (expected, found)]
    if shapes[0] != shapes[1] or not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        if output is not None:
            raise PluginError(f"output= returned {shapes[1]}, but the model returns {shapes[0]}")
        raise PluginError(
            f"the model returns {shapes[0]}, not hidden states {shapes[1]}; tell what it makes of them, "
            "e.g. output=lambda model, hidden, ids: model.head(hidden)"
        )
    if expected.shape[:2] == sequence.shape:
        expected, found = expected[sequence != 0], found[sequence != 0]
    if difference := differs(expected, found):
        raise PluginError(
            f"the wrapped model's output differs from the original's {difference}; something that it computes between "
            "or after its blocks is neither among blocks= nor in finish="
        )


def _main(output: Any) -> Any:
    """Return the hidden states (or what else is first) of what a model returns."""
    if hasattr(output, "last_hidden_state"):
        return output.last_hidden_state
    if hasattr(output, "logits"):
        return output.logits
    return output[0] if isinstance(output, tuple) else output


def _check_causality(backbone: WrappedBackbone, sequence: Tensor) -> None:
    """Check that no position sees a later one, if so said; name the part in which one does."""
    earlier = sequence.shape[1] - NUM_LATER
    if not backbone.is_causal or earlier < 1 or backbone.num_items < 2:
        return
    full = sequence[:1]  # has no padding
    other = full.clone()
    other[:, earlier:] = other[:, earlier:] % backbone.num_items + 1
    for name, one, two in _parts(backbone, full, other, earlier):
        if difference := differs(one[:, :earlier], two[:, :earlier]):
            raise PluginError(
                f"{name} is not causal: changing the last {NUM_LATER} items changed earlier positions {difference}; "
                "give it a causal mask, or say is_causal=False"
            )


def _parts(
    backbone: WrappedBackbone, full: Tensor, other: Tensor, earlier: int
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield each part's name and what it makes of two sequences that are the same up to ``earlier``."""
    (hidden, context), (changed, _) = backbone.start(full), backbone.start(other)
    yield "what comes before the blocks", hidden, changed
    noise = torch.Generator().manual_seed(0)
    for k, block in enumerate(backbone.blocks):
        changed = hidden.clone()
        changed[:, earlier:] += torch.randn(changed[:, earlier:].shape, generator=noise).to(changed)
        changed, hidden = block(changed, context), block(hidden, context)
        yield f"block {k}", hidden, changed
    yield "what comes after the blocks", backbone(full), backbone(other)


def _check_users(backbone: WrappedBackbone, sequence: Tensor, *, ignores_padding: bool) -> None:
    """Check that a user's vector is the same alone as in a batch, and with less padding in front."""
    together = backbone(sequence)[:, -1]
    for user in range(NUM_USERS):
        own = sequence[user : user + 1]
        if difference := differs(backbone(own)[:, -1], together[user : user + 1]):
            raise PluginError(
                f"the users of a batch change one another's vectors {difference}; users must be the first dimension "
                "(batch_first=True?)"
            )
        bare = own[:, own[0] != 0]
        if ignores_padding and (difference := differs(backbone(bare)[:, -1], together[user : user + 1])):
            raise PluginError(
                f"padding changes a user's vector {difference}; hand the model a mask or positions that leave padding "
                "out by inputs=, try padding='right', or accept it with ignores_padding=False"
            )


def _check_length(backbone: WrappedBackbone) -> None:
    """Check that the model takes a sequence of ``max_length``."""
    longest = torch.ones(1, backbone.max_length, dtype=torch.int64, device=backbone.item_embedding.weight.device)
    try:
        backbone.start(longest)
    except Exception as error:  # the model may raise anything
        raise PluginError(
            f"the model takes no sequence of max_length={backbone.max_length} items: {one_line(error, with_type=True)}"
        ) from error

"""Tries out, on random items and at once, whether a wrapped model was described rightly; answers in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from finetune_kit.errors import PluginError

if TYPE_CHECKING:
    from finetune_kit.wrapping.backbone import WrappedBackbone

NUM_USERS, LENGTH, NUM_LATER = 3, 8, 2
TOLERANCE = 1e-4
"""Relative to the largest hidden state: sums in another order differ by less, another computation by more."""


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
def try_out(backbone: WrappedBackbone, paths: Sequence[str]) -> Trial:
    """Run the untouched model on random items and note what its blocks return.

    Raises:
        PluginError: When it fails, or its blocks are not called once each, in the order given.
    """
    sequence = random_items(backbone)
    called: list[str] = []
    num_outputs: dict[str, int] = {}

    def note(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_block: nn.Module, _args: Any, output: Any) -> None:
            called.append(path)
            num_outputs[path] = len(output) if isinstance(output, tuple) else 0

        return hook

    handles = [backbone.module.get_submodule(path).register_forward_hook(note(path)) for path in paths]
    try:
        with evaluating(backbone.module):
            output = backbone.call_module(backbone.arranged(sequence)[0])
    except Exception as error:  # the model may raise anything
        raise PluginError(
            f"the model can't be called with item ids {tuple(sequence.shape)}: {type(error).__name__}: {error}; "
            "tell wrap what it is called with by inputs="
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if called != list(paths):
        raise PluginError(
            f"the model called its blocks in the order {called}, not each once as {list(paths)}; give wrap all blocks "
            "that take part, in the order in which they are called"
        )
    return Trial(sequence, output, [num_outputs[path] for path in paths])


@torch.no_grad()
def check(
    backbone: WrappedBackbone,
    trial: Trial,
    module: nn.Module,
    output: Callable[[nn.Module, Tensor], Any] | None,
    *,
    ignores_padding: bool,
) -> None:
    """Compare a wrapped model with what it did before, and with what it says of itself.

    Raises:
        PluginError: Naming the first thing that is not so.
    """
    with evaluating(backbone):
        _check_blocks(backbone, trial.sequence)
        hidden = backbone(trial.sequence)
        _check_output(backbone, trial, hidden, module, output)
        _check_causality(backbone, trial.sequence)
        if ignores_padding:
            _check_padding(backbone, trial.sequence)


def random_items(backbone: WrappedBackbone) -> Tensor:
    """Return item ids ``(users, length)``, every user's with more padding than the one's before."""
    length = min(LENGTH, backbone.max_length)
    random = torch.Generator().manual_seed(0)
    sequence = torch.randint(1, backbone.num_items + 1, (NUM_USERS, length), generator=random)
    for user in range(NUM_USERS):
        sequence[user, : min(user, length - 1)] = 0
    return sequence.to(backbone.item_embedding.weight.device)


def _check_blocks(backbone: WrappedBackbone, sequence: Tensor) -> None:
    """Check the shape of what each block is given and returns, and that its sites take part."""
    hidden, context = backbone.start(sequence)
    wanted = (*sequence.shape, backbone.dim)
    if tuple(hidden.shape) != wanted:
        raise PluginError(
            f"the first block is given {tuple(hidden.shape)}, not (users, length, dim) = {wanted}; an embedding of "
            "another width, or users that are not the first dimension (batch_first=True?), can't be wrapped"
        )
    for k, block in enumerate(backbone.blocks):
        with _called(block, getattr(block, "sites", ())) as shapes:
            hidden = block(hidden, context)
        if tuple(hidden.shape) != wanted:
            raise PluginError(
                f"block {k} returned {tuple(hidden.shape)} for an input of {wanted}; a residual block must keep its "
                "shape"
            )
        for site in getattr(block, "sites", ()):
            if shapes.get(site) != wanted:
                found = f"returned {shapes[site]}" if site in shapes else "was not called"
                raise PluginError(
                    f"site {site.removeprefix('block.')!r} of block {k} {found}; a patch needs a submodule that is "
                    f"called and returns (users, length, dim) = {wanted}"
                )


@contextmanager
def _called(block: nn.Module, names: Sequence[str]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Note the shapes that submodules return while this lasts, by name; those not called are not in it."""
    shapes: dict[str, tuple[int, ...]] = {}
    handles = []
    for name in names:
        try:
            site = block.get_submodule(name)
        except AttributeError:
            there = ", ".join(repr(path.removeprefix("block.")) for path, _ in block.named_modules() if "." in path)
            raise PluginError(f"no site {name.removeprefix('block.')!r} in the blocks; there are {there}") from None

        def note(_site: nn.Module, _args: Any, output: Any, name: str = name) -> None:
            shapes[name] = tuple(output.shape) if isinstance(output, Tensor) else ()

        handles.append(site.register_forward_hook(note))
    try:
        yield shapes
    finally:
        for handle in handles:
            handle.remove()


def _check_output(
    backbone: WrappedBackbone,
    trial: Trial,
    hidden: Tensor,
    module: nn.Module,
    output: Callable[[nn.Module, Tensor], Any] | None,
) -> None:
    """Check that the wrapped model computes what the model computed."""
    items = trial.sequence != 0
    if not hidden[items].isfinite().all():
        raise PluginError(
            "hidden states are not finite where a sequence begins with padding: a position that may look at nothing "
            "but padding has no attention to give; wrap it with padding='right', or mask padding otherwise"
        )
    items = backbone.arranged(trial.sequence)[0] != 0
    hidden = backbone.arranged_as(hidden, trial.sequence)  # from here on, as the model arranges positions
    expected = _main(trial.output)
    found = hidden if output is None else _main(output(module, hidden))
    if output is None and (not isinstance(expected, Tensor) or expected.shape != hidden.shape):
        shape = tuple(expected.shape) if isinstance(expected, Tensor) else type(expected).__name__
        raise PluginError(
            f"the model returns {shape}, not hidden states {tuple(hidden.shape)}; tell wrap what it makes of them, "
            "e.g. output=lambda model, hidden: model.head(hidden)"
        )
    if found.shape[:2] == items.shape:
        found, expected = found[items], expected[items]
    difference = (found - expected).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
        raise PluginError(
            f"the wrapped model's output differs from the original's by up to {difference:.3g}; something that it "
            "computes between or after its blocks is neither among blocks= nor in finish="
        )


def _main(output: Any) -> Any:
    """Return the hidden states (or what else is first) of what a model returns."""
    if hasattr(output, "last_hidden_state"):
        return output.last_hidden_state
    return output[0] if isinstance(output, tuple) else output


def _check_causality(backbone: WrappedBackbone, sequence: Tensor) -> None:
    """Check that no position sees a later one, if so said; name the part in which one does."""
    earlier = sequence.shape[1] - NUM_LATER
    if not backbone.is_causal or earlier < 1 or backbone.num_items < 2:
        return
    full = sequence[:1].expand(NUM_USERS, -1)  # without padding
    other = full.clone()
    other[:, earlier:] = other[:, earlier:] % backbone.num_items + 1
    (one, context), (two, _) = backbone.start(full), backbone.start(other)
    parts: list[tuple[str, Tensor, Tensor]] = [("what comes before the blocks", one, two)]
    noise = torch.Generator().manual_seed(0)
    for k, block in enumerate(backbone.blocks):
        later = one.clone()
        later[:, earlier:] += torch.randn(later[:, earlier:].shape, generator=noise).to(later)
        parts.append((f"block {k}", block(one, context), block(later, context)))
        one = block(one, context)
    parts.append(("the model", backbone(full), backbone(other)))
    for name, here, there in parts:
        difference = (here[:, :earlier] - there[:, :earlier]).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, here.abs().max().item()):
            raise PluginError(
                f"{name} is not causal: changing the last {NUM_LATER} items changed earlier positions by up to "
                f"{difference:.3g}; give it a causal mask, or say is_causal=False"
            )


def _check_padding(backbone: WrappedBackbone, sequence: Tensor) -> None:
    """Check that users' vectors are the same with less padding in front, and alone."""
    for user in range(NUM_USERS):
        own = sequence[user : user + 1]
        difference = (backbone(own)[:, -1] - backbone(own[:, own[0] != 0])[:, -1]).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, backbone(own)[:, -1].abs().max().item()):
            raise PluginError(
                f"padding changes a user's vector by up to {difference:.3g}; hand the model a mask or positions that "
                "leave padding out by inputs=, try padding='right', or accept it with ignores_padding=False"
            )


def leave_out_what_takes_no_part(backbone: WrappedBackbone, sequence: Tensor) -> None:
    """Take away layers that the hidden states do not depend on (a pooler, an output layer tied to the embedding)."""
    called: set[nn.Module] = set()
    handles = [part.register_forward_pre_hook(lambda part, _: called.add(part)) for part in backbone.module.modules()]
    with evaluating(backbone), torch.enable_grad():
        parameters = {id(tensor): tensor for tensor in backbone.parameters()}
        used = [tensor for tensor in parameters.values() if tensor.requires_grad and tensor is not backbone.mask_vector]
        gradients = torch.autograd.grad(backbone(sequence).square().sum(), used, allow_unused=True)
    for handle in handles:
        handle.remove()
    takes_part = {id(tensor) for tensor, gradient in zip(used, gradients, strict=True) if gradient is not None}
    tables = set(map(id, backbone.item_embedding.parameters()))
    for name, part in list(backbone.module.named_modules()):
        tensors = {id(tensor) for tensor in part.parameters()}
        is_tied = part not in called and tensors <= tables
        if name and tensors and part not in called and (is_tied or not tensors & takes_part):
            backbone.module.set_submodule(name, TakesNoPart())


class TakesNoPart(nn.Module):
    """Stands where a layer stood that the hidden states do not depend on."""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode for as long as this lasts."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode

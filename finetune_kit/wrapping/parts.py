"""The parts of a model, by their dotted names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from finetune_kit.errors import PluginError, did_you_mean

Finish = Callable[[nn.Module, Tensor], Tensor]
"""From the model and the hidden states after its last block to the last hidden states."""


def find(module: nn.Module, name: str, argument: str) -> nn.Module:
    """Return the submodule of a dotted name.

    Args:
        module: The model.
        name: Its parts' names, outermost first.
        argument: Of `wrap`, whose value the name is; named in errors.

    Raises:
        PluginError: When there is none; says how far the name leads and what is there.
    """
    here, walked = module, "the model"
    for part in name.split("."):
        parts = dict(here.named_children())
        if part not in parts:
            there = ", ".join(map(repr, parts)) or "no parts"
            raise PluginError(f"{argument}={name!r} leads nowhere: {walked} has no {part!r}; it has {there}")
        here, walked = parts[part], repr(part) if here is module else f"{walked[:-1]}.{part}'"
    return here


def refuse_bad_arguments(module: object, max_length: object, padding: str) -> None:
    """Check what Python does not: `wrap` is called by people, in notebooks.

    Raises:
        PluginError: For a model that is none, a length that is none, or a side that is none.
    """
    if not isinstance(module, nn.Module):
        hint = "; give an instance, not the class" if isinstance(module, type) else ""
        raise PluginError(f"{module!r} is no nn.Module{hint}")
    if not isinstance(max_length, int) or max_length < 1:
        raise PluginError(f"max_length={max_length!r} is no length; give a whole number, at least 1")
    if padding not in ("left", "right"):
        raise PluginError(
            f"padding={padding!r} is no side.{did_you_mean(padding, ['left', 'right'])} Use left or right"
        )


def find_embedding(module: nn.Module, name: str, num_items: int | None) -> tuple[nn.Embedding, int]:
    """Return the item embedding and how many items it has.

    Raises:
        PluginError: When the name does not lead to an ``nn.Embedding``, or it has too few rows.
    """
    table = find(module, name, "embedding")
    if not isinstance(table, nn.Embedding):
        raise PluginError(f"embedding={name!r} is a {type(table).__name__}; name the items' nn.Embedding")
    num_items = table.num_embeddings - 1 if num_items is None else num_items
    if not 1 <= num_items < table.num_embeddings:
        raise PluginError(
            f"embedding={name!r} has {table.num_embeddings} rows, which is too few for padding and {num_items} items"
        )
    return table, num_items


def block_names(module: nn.Module, blocks: str | Sequence[str]) -> list[str]:
    """Return the dotted name of every single block.

    Raises:
        PluginError: When a name leads nowhere, or there are no blocks.
    """
    names = [blocks] if isinstance(blocks, str) else list(blocks)
    found = [name for given in names for name in _inside(given, find(module, given, "blocks"))]
    if not found:
        raise PluginError(f"blocks={blocks!r} holds no blocks; name a ModuleList, or blocks one by one")
    if twice := [name for name in found if found.count(name) > 1]:
        raise PluginError(f"blocks={blocks!r} names {twice[0]!r} twice; name every block once")
    return found


def _inside(name: str, part: nn.Module) -> Iterator[str]:
    if isinstance(part, nn.ModuleList | nn.Sequential):
        yield from (f"{name}.{child}" for child, _ in part.named_children())
    else:
        yield name


@dataclass(frozen=True)
class Steps:
    """Calls submodules one after the other, by their dotted names."""

    names: tuple[str, ...]

    def __call__(self, module: nn.Module, hidden: Tensor) -> Tensor:
        """Return what the last one returns for ``hidden`` ``(users, length, dim)``."""
        for name in self.names:
            hidden = module.get_submodule(name)(hidden)
        return hidden


def finishing(module: nn.Module, finish: str | Sequence[str] | Finish | None) -> Finish:
    """Return what comes after the blocks as one function of the model and hidden states.

    Raises:
        PluginError: When a name leads nowhere.
    """
    if callable(finish):
        return finish
    finish = () if finish is None else finish
    names = (finish,) if isinstance(finish, str) else tuple(finish)
    for name in names:
        find(module, name, "finish")
    return Steps(names)


def turn_off_fast_paths(module: nn.Module) -> None:
    """Let ``nn.TransformerEncoder`` compute in evaluation what it computes in training.

    Its fused kernels read the weights of the layers that stood there at first, and so ignore whatever a strategy puts
    in their places; and they drop padding, which changes shapes.
    """
    for part in module.modules():
        if isinstance(part, nn.TransformerEncoder):
            part.enable_nested_tensor = part.use_nested_tensor = False
        if isinstance(part, nn.TransformerEncoderLayer):
            part.activation_relu_or_gelu = 0  # the fast path needs one of the two that it has fused

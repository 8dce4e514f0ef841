"""What an interrupted training goes on from, on disk: one safetensors file with a checksum of all that is in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from finetune_kit.config import differences
from finetune_kit.errors import CheckpointError, one_line
from finetune_kit.files import write_tensors
from finetune_kit.foreign import refuse_large_header
from finetune_kit.memory import is_out_of_memory
from finetune_kit.processes import here

CHECKSUM = "checksum"
START_OVER = "delete it to start over"


@dataclass
class Begun:
    """An epoch under way, between two of its steps.

    Args:
        loss: The sum of its steps' losses, a scalar.
        steps: Steps done. To go on, that many batches are drawn again, and passed over.
        seconds: Time spent on them.
        random: Where the generators stood (`random_states`), as long as they have not been put there again.
    """

    loss: Tensor
    steps: int = 0
    seconds: float = 0.0
    random: dict[str, Tensor] = field(default_factory=dict)


def write_state(path: Path, parts: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
    """Write tensors, by part and name, and plain JSON values beside them."""
    tensors = {f"{part}/{name}": tensor.detach().cpu() for part, own in parts.items() for name, tensor in own.items()}
    texts = {name: json.dumps(value) for name, value in facts.items()}
    write_tensors(path, tensors, {**texts, CHECKSUM: _checksum(tensors, texts)})


def read_state(path: Path, parts: tuple[str, ...]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return what `write_state` wrote: tensors by part and name, all ``parts`` among them, and the values.

    Raises:
        CheckpointError: When it is torn, cut short, or was changed since.
    """
    try:
        refuse_large_header(path)
        with safe_open(str(path), framework="pt") as file:
            texts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or one_line(error)}; make it readable") from error
    except Exception as error:  # safetensors' own
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"{path} can't be read: {one_line(error)}; {START_OVER}") from error
    if texts.pop(CHECKSUM, None) != _checksum(tensors, texts):
        raise CheckpointError(f"{path} is damaged: its checksum is not the recorded one; {START_OVER}")
    found: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        found.setdefault(part, {})[name] = tensor
    return found, {name: json.loads(text) for name, text in texts.items()}


def own_state(path: Path) -> Path:
    """Return the file that this process's state stands in; others' beside it, where each has its part of the tables."""
    processes = here()
    return path if processes.mesh is None else path.with_name(f"{path.stem}-{processes.rank}{path.suffix}")


def all_there(path: Path) -> bool:
    """Return whether every process has a state to go on from; all call it at once.

    Raises:
        CheckpointError: When there are states, but not those of as many processes that divide tables as there are now.
    """
    (lacking,) = here().largest(int(not own_state(path).exists()))
    if lacking and (others := sorted(path.parent.glob(f"{path.stem}*{path.suffix}"))):
        raise CheckpointError(
            f"{others[0]} is of other processes: run.tables=divided goes on with as many as it was begun with, and "
            f"run.tables=whole without; give the same, or {START_OVER}"
        )
    return not lacking


def write_together(path: Path, write: Callable[[Path], None]) -> None:
    """Write the states of all processes, and put them in the place of the last ones when all are whole."""
    own = own_state(path)
    fresh = own.with_name(f".{own.name}.whole")
    write(fresh)
    here().largest(0)  # waits for the others
    fresh.replace(own)
    here().largest(0)


def refuse_apart(path: Path, epochs: int, steps: int) -> None:
    """Raise if processes go on from different places: they were killed while their states took the last ones' place.

    Raises:
        CheckpointError: In all of them.
    """
    most = here().largest(epochs, steps)
    least = [-number for number in here().largest(-epochs, -steps)]
    if most != least:
        raise CheckpointError(f"{path} and those of the other processes are of different steps; {START_OVER}")


def _checksum(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    """Return the SHA-256 of names, types, shapes and bytes of tensors on the CPU, and of texts."""
    digest = hashlib.sha256(json.dumps(sorted(texts.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def refuse_other_state(path: Path, was: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise if a state belongs to something else than what is at hand.

    Raises:
        CheckpointError: Naming everything that differs, with both values.
    """
    if told := differences(was, now):
        raise CheckpointError(f"{path} belongs to a run with other values: {told}; give those, or {START_OVER}")


def random_states(module: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Return where torch's global generators, and those that a module and its parts have as attributes, stand."""
    states = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return {**states, **{f"module/{name}": generator.get_state() for name, generator in _generators(module)}}


def set_random_states(module: nn.Module, device: torch.device, states: Mapping[str, Tensor]) -> None:
    """Put generators where `random_states` found them.

    Raises:
        CheckpointError: When the module has other generators.
    """
    generators = {f"module/{name}": generator for name, generator in _generators(module)}
    if differ := sorted(generators.keys() ^ {name for name in states if name.startswith("module/")}):
        raise CheckpointError(f"the state is of another module: generators differ, e.g. {differ[0]!r}; {START_OVER}")
    for name, generator in generators.items():
        generator.set_state(states[name])
    torch.set_rng_state(states["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    if device.type == "mps":
        torch.mps.set_rng_state(states["mps"])


def _generators(module: nn.Module) -> Iterator[tuple[str, torch.Generator]]:
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, torch.Generator):
                yield f"{path}.{name}", value

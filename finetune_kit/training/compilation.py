"""Blocks through `torch.compile`, where the option ``run.compile`` asks for it."""

from __future__ import annotations

import torch
import torch._dynamo.config
from torch import nn

from finetune_kit.errors import OptionError, one_line

VARIANTS = 64
"""How many kernels a function may be compiled to, for other shapes and strides, before torch gives up on it."""


def compile_blocks(module: nn.Module, device: torch.device) -> None:
    """Compile every block of a module, those of a backbone and those of a policy alike.

    Each block's ``compile`` says what of it is compiled: `torch.nn.Module` compiles ``forward``. Weights, their names
    and what they compute stay as they are, up to rounding.

    Args:
        module: Has blocks in a ``blocks`` of some part.
        device: Where it will run.

    Raises:
        OptionError: Where compiling does not work on this machine.
    """
    try:
        torch.compile(torch.sigmoid)(torch.ones(2, device=device))
    except Exception as error:
        raise OptionError(
            f"run.compile: torch.compile does not work here ({one_line(error, first=True)}); on a CPU it needs a C++ "
            "compiler such as g++. Install one, leave --compile out, or set it to false"
        ) from error
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    for part in module.modules():
        for block in getattr(part, "blocks", ()):
            block.compile(dynamic=True)

"""Backbones small enough for tests, each with something that a careless strategy gets wrong."""

from __future__ import annotations

from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from finetune_kit.backbone import Backbone, Context, normal_embedding
from finetune_kit.options import Options

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class PreviousItem(nn.Module):
    """Linear map of a position and the one before it, ``(users, length, dim)`` → same shape."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.here = nn.Linear(dim, dim)
        self.before = nn.Linear(dim, dim, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the map of ``(users, length, dim)``."""
        return self.here(hidden) + self.before(F.pad(hidden, (0, 0, 1, 0))[:, :-1])


class TinyBlock(nn.Module):
    """Residual block ``E + tanh(LN(mix(E)))`` that looks one position back."""

    sites = ("mix",)
    reach = 1

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mix: nn.Module = PreviousItem(dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        """Return the shape of ``hidden`` ``(users, length, dim)``."""
        return hidden + torch.tanh(self.norm(self.mix(context.masked(hidden))))


class RunningMean(nn.Module):
    """Subtracts the batch's mean in training and a running mean in evaluation, as BatchNorm does."""

    mean: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return ``(users, length, dim)`` less a mean; training moves the running mean to the batch's."""
        if not self.training:
            return hidden - self.mean
        mean = hidden.mean(dim=(0, 1))  # (dim,)
        with torch.no_grad():
            self.mean.lerp_(mean, 0.1)
        return hidden - mean


class BufferedBlock(TinyBlock):
    """A `TinyBlock` with a running mean, a count of training steps, and dropout."""

    num_steps: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.centre = RunningMean(dim)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        """Return the shape of ``hidden`` ``(users, length, dim)``."""
        if self.training:
            self.num_steps += 1
        mixed = self.norm(self.mix(context.masked(hidden)))
        return hidden + self.dropout(torch.tanh(self.centre(mixed)))


class GlobalBlock(nn.Module):
    """Residual block in which every position sees the mean over all of the user's items."""

    sites = ("mix",)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mix: nn.Module = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        """Return the shape of ``hidden`` ``(users, length, dim)``."""
        assert context.mask is not None
        count = context.mask.sum(dim=1, keepdim=True).clamp(min=1)  # (users, 1, 1)
        mean = context.masked(hidden).sum(dim=1, keepdim=True) / count  # (users, 1, dim)
        return hidden + torch.tanh(self.norm(self.mix(hidden + mean)))


class TinyOptions(Options):
    """Options of the tiny backbones."""

    dim: int = 8
    """Width of hidden states."""
    num_blocks: int = 2
    """Residual blocks."""


class TinyBackbone(Backbone):
    """Causal; blocks look one position back and have one site, before a LayerNorm."""

    Options = TinyOptions
    options: TinyOptions
    _block: type[nn.Module] = TinyBlock

    def __init__(self, num_items: int, max_length: int, options: TinyOptions | None = None) -> None:
        super().__init__(num_items, max_length, options)
        self.dim = self.options.dim
        self.item_embedding = normal_embedding(num_items, self.dim, std=1.0)
        self.blocks = nn.ModuleList(self._block(self.dim) for _ in range(self.options.num_blocks))


class BufferedBackbone(TinyBackbone):
    """Like `TinyBackbone`, with dropout and buffers that training changes: both rest in what is frozen."""

    _block = BufferedBlock


class GlobalBackbone(TinyBackbone):
    """Not causal, no reach; has parameters outside of embedding and blocks (a last LayerNorm)."""

    is_causal = False
    _block = GlobalBlock

    def __init__(self, num_items: int, max_length: int, options: TinyOptions | None = None) -> None:
        super().__init__(num_items, max_length, options)
        self.mask_vector = nn.Parameter(torch.randn(self.dim))
        self.norm = nn.LayerNorm(self.dim)

    def finish(self, hidden: Tensor, context: Context) -> Tensor:
        """Return ``(users, length, dim)`` normalised."""
        return self.norm(hidden)


def tiny_backbones() -> list[type[Backbone]]:
    """Return the tiny backbones that contracts are tried on."""
    return [TinyBackbone, BufferedBackbone, GlobalBackbone]


@st.composite
def backbones(
    draw: st.DrawFn,
    num_items: int = 20,
    max_length: int = 8,
    *,
    min_dim: int = 2,
    max_dim: int = 9,
    max_blocks: int = 3,
    causal: bool | None = None,
) -> Backbone:
    """Draw small backbones with random weights, as if pre-trained, in evaluation mode.

    Args:
        draw: Hypothesis hands it in.
        num_items: Items of the source domain; `batches` draws from as many.
        max_length: The longest sequence.
        min_dim: The least width; of width 1, a LayerNorm forgets its input.
        max_dim: The greatest width.
        max_blocks: Most residual blocks.
        causal: Whether none sees later items, or all do; None draws both.
    """
    kinds = [kind for kind in (TinyBackbone, BufferedBackbone, GlobalBackbone) if causal in (None, kind.is_causal)]
    kind = draw(st.sampled_from(kinds))
    options = TinyOptions(dim=draw(st.integers(min_dim, max_dim)), num_blocks=draw(st.integers(1, max_blocks)))
    return randomise(kind(num_items, max_length, options), seed=draw(st.integers(0, 99))).eval()


def randomise(module: ModuleT, seed: int = 0) -> ModuleT:
    """Fill parameters and floating-point buffers with random numbers, as if pre-trained; return the module.

    Weights that layers start with (zeros, ones) would hide mistakes. The padding's embedding stays zero.
    """
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                scale = (
                    0.3 if name.endswith(("bias", "mean")) else tensor.shape[-1] ** -0.5 if tensor.dim() > 1 else 0.2
                )
                centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                tensor.copy_(centre + scale * torch.randn(tensor.shape, generator=random))
        for part in module.modules():
            if isinstance(part, Backbone):
                cast("nn.Embedding", part.item_embedding).weight.mul_(part.dim**0.5)[0] = 0
    return module

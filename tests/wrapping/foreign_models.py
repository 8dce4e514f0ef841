"""Models as others write them: each hands its blocks something else beside the hidden states."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from finetune_kit.options import Options
from finetune_kit.wrapping import WrappedBackbone

NUM_ITEMS, DIM, HEADS, MAX_LENGTH = 20, 8, 2, 16


class Attention(nn.Module):
    """Residual attention, then a residual linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True, dropout=0.1)
        self.norm = nn.LayerNorm(DIM)
        self.linear = nn.Linear(DIM, DIM)
        self.dropout = nn.Dropout(0.1)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        mixed, _ = self.attention(hidden, hidden, hidden, attn_mask=mask, need_weights=False)
        hidden = hidden + self.dropout(mixed)
        return hidden + self.dropout(self.linear(self.norm(hidden)).tanh())


class Foreign(nn.Module):
    """One mask per user and head, ``(users · heads, length, length)``, True where a position may not look."""

    block: ClassVar[type[nn.Module]] = Attention

    def __init__(self, num_blocks: int = 2, num_items: int = NUM_ITEMS) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items + 1, DIM, padding_idx=0)
        self.places = nn.Embedding(MAX_LENGTH + 1, DIM)
        self.blocks = nn.ModuleList(self.block() for _ in range(num_blocks))
        self.norm = nn.LayerNorm(DIM)
        self.pooler = nn.Linear(DIM, DIM)

    def place(self, ids: Tensor) -> Tensor:
        return (ids != 0).cumsum(1) * (ids != 0)

    def mask(self, ids: Tensor) -> Tensor:
        """Return ``(users, length, length)``: later positions and padding, but for oneself."""
        itself = torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)
        later = torch.ones_like(itself).triu(1)
        return (later | (ids == 0).unsqueeze(1)) & ~itself

    def step(self, block: nn.Module, hidden: Tensor, ids: Tensor) -> Tensor:
        return block(hidden, self.mask(ids).repeat_interleave(HEADS, dim=0))

    def forward(self, ids: Tensor) -> Any:
        hidden = self.items(ids) + self.places(self.place(ids))
        for block in self.blocks:
            hidden = self.step(block, hidden, ids)
        return self.norm(hidden)


class MaskPerUser(Foreign):
    """One mask per user, by name, ``(users, 1, length, length)``."""

    class block(Attention):
        def forward(self, hidden: Tensor, *, mask: Tensor) -> Tensor:
            return super().forward(hidden, mask.expand(-1, HEADS, -1, -1).flatten(0, 1))

    def step(self, block, hidden, ids):
        return block(hidden, mask=self.mask(ids).unsqueeze(1))


class KeywordHidden(Foreign):
    """Hidden states by name, behind the mask."""

    class block(Attention):
        def forward(self, mask: Tensor, hidden_states: Tensor) -> Tensor:
            return super().forward(hidden_states, mask)

    def step(self, block, hidden, ids):
        return block(self.mask(ids).repeat_interleave(HEADS, dim=0), hidden_states=hidden)


class Rotated(Foreign):
    """Positions per user and a table for all, in a tuple; the mask per user in a dictionary."""

    class block(Attention):
        def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], masks: dict[str, Any]) -> Tensor:
            place, table = rotary
            mask = masks["padding"].repeat_interleave(HEADS, dim=0) | masks["causal"]
            return super().forward(hidden * (1 + 0.1 * table[place].cos()), mask & ~masks["itself"])

    def step(self, block, hidden, ids):
        itself = torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)
        masks = {"padding": (ids == 0).unsqueeze(1), "causal": torch.ones_like(itself).triu(1), "itself": itself}
        table = torch.arange((MAX_LENGTH + 1) * DIM, device=ids.device).view(MAX_LENGTH + 1, DIM) * 0.1
        return block(hidden, (self.place(ids), table), masks)


class Tupled(Foreign):
    """Blocks return a tuple, the model too."""

    class block(Attention):
        def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(hidden, mask), mask

    def step(self, block, hidden, ids):
        return super().step(block, hidden, ids)[0]

    def forward(self, ids):
        return super().forward(ids), "something else"


class TwoStacks(Foreign):
    """Blocks in a Sequential, a ModuleList and alone."""

    def __init__(self) -> None:
        super().__init__(num_blocks=4)
        first, second, third, last = self.blocks
        self.lower, self.upper, self.last = nn.Sequential(first, second), nn.ModuleList([third]), last
        del self.blocks

    def forward(self, ids):
        hidden = self.items(ids) + self.places(self.place(ids))
        for block in (*self.lower, *self.upper, self.last):
            hidden = self.step(block, hidden, ids)
        return self.norm(hidden)


class Bidirectional(Foreign):
    """Every position sees all items."""

    def mask(self, ids):
        itself = torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)
        return (ids == 0).unsqueeze(1) & ~itself


class Encoder(nn.Module):
    """PyTorch's own encoder, as SASRec is often written; wants its padding on the right."""

    def __init__(self, num_items: int = NUM_ITEMS, num_blocks: int = 2, *, norm_first: bool = False) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items + 1, DIM, padding_idx=0)
        self.places = nn.Embedding(MAX_LENGTH, DIM)
        layer = nn.TransformerEncoderLayer(
            DIM, HEADS, 2 * DIM, dropout=0.2, activation="gelu", batch_first=True, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, num_blocks, nn.LayerNorm(DIM), enable_nested_tensor=not norm_first)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.items(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        later = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).triu(1)
        return self.encoder(hidden, mask=later, src_key_padding_mask=ids == 0)


class EncoderOptions(Options):
    """Options of the wrapped encoder."""

    num_blocks: int = 2
    """Layers."""


class WrappedEncoder(WrappedBackbone):
    """`Encoder`, as a plugin's class has it."""

    Options = EncoderOptions
    options: EncoderOptions

    def __init__(self, num_items: int, max_length: int, options: EncoderOptions | None = None) -> None:
        options = options or EncoderOptions()
        super().__init__(
            Encoder(num_items, options.num_blocks),
            embedding="items",
            blocks="encoder.layers",
            finish="encoder.norm",
            padding="right",
            max_length=max_length,
            sites=["dropout1", "dropout2"],
            options=options,
        )

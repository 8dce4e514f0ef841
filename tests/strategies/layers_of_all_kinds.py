"""Small backbones whose blocks have the layers that strategies acting on weights or on layers could get wrong."""

import torch
from torch import Tensor, nn

from finetune_kit.backbone import Context
from finetune_kit.testing import TinyBackbone


def sees_earlier_items_only(mask: Tensor, num_heads: int) -> Tensor:
    """Return ``(users · heads, length, length)``, True where a position must not look; itself it always may."""
    length = mask.shape[1]
    is_later = torch.ones(length, length, device=mask.device).triu(1).bool()
    is_hidden = (is_later | (mask == 0).mT) & ~torch.eye(length, device=mask.device).bool()  # (users, length, length)
    return is_hidden.repeat_interleave(num_heads, dim=0)


class AttentionBlock(nn.Module):
    """Attention whose three input maps are packed into one weight."""

    sites = ("feedforward",)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, 2, batch_first=True)
        self.feedforward = nn.Linear(dim, dim)

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        mask = sees_earlier_items_only(context.mask, 2)
        attended = self.attention(hidden, hidden, hidden, attn_mask=mask, need_weights=False)[0]
        return hidden + torch.tanh(self.feedforward(hidden + attended))


class EncoderBlock(nn.Module):
    """PyTorch's own Transformer layer, which has a fused kernel for evaluation."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(dim, 2, 2 * dim, dropout=0.5, batch_first=True)

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        return self.layer(hidden, sees_earlier_items_only(context.mask, 2))


class GruBlock(nn.Module):
    """A recurrent layer, which keeps a flat list of its weights; without biases, padding leaves its state zero."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gru = nn.GRU(dim, dim, batch_first=True, bias=False)

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        return hidden + self.gru(context.masked(hidden))[0]


class GruCellBlock(nn.Module):
    """One recurrent step per position."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(dim, dim, bias=False)

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        inputs, states = context.masked(hidden), [torch.zeros_like(hidden[:, 0])]
        for position in range(hidden.shape[1]):
            states.append(self.cell(inputs[:, position], states[-1]))
        return hidden + torch.stack(states[1:], dim=1)


class DilatedBlock(nn.Module):
    """PyTorch's own dilated convolution; it sees later positions too."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, 3, padding="same", dilation=2)

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        return hidden + self.conv(context.masked(hidden).mT).mT


class DilatedBackbone(TinyBackbone):
    is_causal = False
    _block = DilatedBlock


class AttentionBackbone(TinyBackbone):
    _block = AttentionBlock


class EncoderBackbone(TinyBackbone):
    _block = EncoderBlock


class GruBackbone(TinyBackbone):
    _block = GruBlock


class GruCellBackbone(TinyBackbone):
    _block = GruCellBlock

"""LP-FT: linear probing, then fine-tuning: train everything, but only once the head fits the pre-trained features.

Kumar, Raghunathan, Jones, Ma, Liang: *Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution*, ICLR 2022, https://arxiv.org/abs/2202.10054. While fine-tuning learns a random head, the gradient
through that head changes the backbone as well, and distorts its features. So, with backbone parameters B, head v and
loss L:

    epochs 1 … P:    v ← argmin_v L(v, B⁰)            linear probing
    epochs P + 1 …:  v, B ← argmin_{v, B} L(v, B)     fine-tuning, starting from that v and from B⁰

| symbol | attribute | shape |
| --- | --- | --- |
| B | ``backbone`` | as in the backbone |
| v | ``task.head`` | (answers, dim), (answers,) |
| P | ``options.probe_epochs`` | scalar |

While the head is probed the backbone rests: no gradient, no weight decay, no dropout, and running statistics stand
still.

Differences from the paper: the probe runs for a number of epochs, not to convergence as in the paper's analysis, and
fine-tuning goes on from its last epoch, which need not be its best, with the same learning rate and with the moments
that Adam has of the head. Early stopping is ours: patience counts from the first epoch of fine-tuning on, and the best
epoch may be one of the probe (`remarks`). All strategies here start from a small head already
(`finetune_kit/task.py`), so the distortion that LP-FT cures is smaller to begin with.
"""

from __future__ import annotations

from pydantic import Field

from finetune_kit.options import Options
from finetune_kit.strategy import Strategy


class LpFtOptions(Options):
    """Options of LP-FT."""

    probe_epochs: int = Field(5, ge=1)
    """P: epochs in which the head alone is trained."""


class LpFt(Strategy):
    """Train the head, then everything."""

    Options = LpFtOptions
    options: LpFtOptions

    def build(self) -> None:
        """Leave everything trainable; `start_epoch` lets the backbone rest while the head is probed."""

    @property
    def schedule_epochs(self) -> int:
        """Epochs before the one from which on everything trains: those of the probe."""
        return self.options.probe_epochs

    def start_epoch(self, epoch: int) -> None:
        """Let the backbone rest in the epochs of the probe."""
        super().start_epoch(epoch)
        if epoch <= self.options.probe_epochs:
            self.let_rest(self.backbone)
        else:
            self.wake()

    def remarks(self, best_epoch: int) -> list[str]:
        """Return a warning where the best epoch is one of the probe."""
        length = self.options.probe_epochs
        if best_epoch > length:
            return []
        return [f"the best epoch, {best_epoch}, is one of the {length} of the probe: the backbone is as pre-trained"]

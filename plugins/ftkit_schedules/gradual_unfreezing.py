"""Gradual unfreezing: train the head first, then one block more each time, from the last to the first.

Howard, Ruder: *Universal Language Model Fine-tuning for Text Classification* (ULMFiT), ACL 2018,
https://arxiv.org/abs/1801.06146, section 3.3. The last layers hold the least general knowledge, so they are the first
to change. With B blocks and E epochs per phase, in epoch t (from 1) there train the head and

    u(t) = ⌊(t − 1) / E⌋

of the last blocks; once u(t) > B, everything does, with the embedding and what else stands outside of the blocks.

| symbol | attribute or variable | shape |
| --- | --- | --- |
| B | ``len(backbone.blocks)`` | scalar |
| E | ``options.epochs_per_block`` | scalar |
| u(t) | ``num_awake`` | scalar |
| E (B + 1) | ``schedule_epochs`` | scalar |

Blocks that are not yet due rest: no gradient, no weight decay, no dropout, and running statistics stand still.

Differences from the paper: only the unfreezing is here. ULMFiT combines it with a smaller learning rate for each lower
layer (discriminative fine-tuning) and with a rate that first rises and then falls (slanted triangular), and fine-tunes
a language model on the target domain before; here the rate is one and constant. E is 1 there. Early stopping is ours:
patience counts from the epoch on in which everything trains, and the best epoch may lie before it (`remarks`).
"""

from __future__ import annotations

from pydantic import Field

from finetune_kit.options import Options
from finetune_kit.strategy import Strategy


class GradualUnfreezingOptions(Options):
    """Options of gradual unfreezing."""

    epochs_per_block: int = Field(1, ge=1)
    """Epochs of each phase: first the head alone, then with one block more each; in the paper 1."""


class GradualUnfreezing(Strategy):
    """Train everything in the end, the head first and the embedding last."""

    Options = GradualUnfreezingOptions
    options: GradualUnfreezingOptions

    def build(self) -> None:
        """Leave everything trainable; `start_epoch` lets rest what is not yet due."""

    @property
    def schedule_epochs(self) -> int:
        """Epochs before the one from which on everything trains: a phase for the head and one for each block."""
        return self.options.epochs_per_block * (len(self.backbone.blocks) + 1)

    def start_epoch(self, epoch: int) -> None:
        """Let rest what is not yet due, a function of the epoch alone."""
        super().start_epoch(epoch)
        if epoch > self.schedule_epochs:
            self.wake()
            return
        num_awake = self._num_awake(epoch)
        self.let_rest(self.backbone, but=self.backbone.blocks[len(self.backbone.blocks) - num_awake :])

    def remarks(self, best_epoch: int) -> list[str]:
        """Return what had been trained, where the best epoch lies within the schedule."""
        if best_epoch > self.schedule_epochs:
            return []
        trained = f"{self._num_awake(best_epoch)} of {len(self.backbone.blocks)} blocks"
        return [
            f"the best epoch, {best_epoch}, lies in the schedule of {self.schedule_epochs} epochs: until then only the "
            f"head and the last {trained} have been trained"
        ]

    def _num_awake(self, epoch: int) -> int:
        """Return u(t)."""
        return (epoch - 1) // self.options.epochs_per_block

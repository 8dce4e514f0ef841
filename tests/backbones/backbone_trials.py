"""What the tests of backbones share: sizes small enough, a source domain to learn, and marks to put at sites."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from finetune_kit.backbone import Backbone
from finetune_kit.data.batch import Windows
from finetune_kit.seeding import generator, seeded
from finetune_kit.training.pretrain import NextItem

NUM_ITEMS, LENGTH = 12, 9


def windows_of_cycles(seed: int, num_windows: int = 64, num_items: int = NUM_ITEMS, length: int = LENGTH) -> Windows:
    """Return windows in which each user goes round three items of their own: the next is that of three ago."""
    cycles = torch.rand(num_windows, num_items, generator=generator(seed, "cycles")).argsort(dim=1)[:, :3] + 1
    sequence = cycles.repeat(1, length // 3 + 1)[:, : length + 1]
    return Windows(sequence[:, :-1], sequence[:, 1:])


def loss_after_learning_cycles(
    make: Callable[[], Backbone], num_steps: int = 120, learning_rate: float = 1e-2, seed: int = 0
) -> float:
    """Return the loss on unseen cycles, nats per item, of a new backbone that was pre-trained on others."""
    with seeded(seed, "cycles"):
        model = NextItem(make())
        optimizer = torch.optim.Adam(model.parameters(), learning_rate)
        model.train()
        for step in range(num_steps):
            model(windows_of_cycles(step + 1)).backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        return model.eval()(windows_of_cycles(0)).item()


class Doubled(nn.Module):
    """A patch that can't be overlooked."""

    def __init__(self, site: nn.Module) -> None:
        super().__init__()
        self.site = site

    def forward(self, hidden: Tensor) -> Tensor:
        return 2 * self.site(hidden)


def sites_without_effect(backbone: Backbone, sequence: Tensor) -> list[str]:
    """Return the sites at which a patch changes no user's vector, in evaluation and without gradients."""
    unheard = []
    with torch.no_grad():
        before = backbone.eval().user_vectors(sequence)
        for k, block in enumerate(backbone.blocks):
            assert block.sites
            for site in block.sites:
                patched = copy.deepcopy(backbone)
                place = patched.blocks[k]
                place.set_submodule(site, Doubled(place.get_submodule(site)))
                if torch.isclose(patched.user_vectors(sequence), before, atol=1e-4).all(dim=1).any():
                    unheard.append(f"{k}.{site}")
    return unheard

"""The contract of backbones can fail, and what makes backbones for tests makes what it says."""

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from finetune_kit.backbone import Backbone, Context
from finetune_kit.data.batch import Batch
from finetune_kit.errors import OptionError
from finetune_kit.testing import (
    BackboneContract,
    StrategyContract,
    TinyBackbone,
    backbones,
    batches,
    installed_backbone,
    randomise,
)


class TestHeadOnInstalledBackbones(StrategyContract):
    strategy = "finetune-cls"
    backbones = (
        installed_backbone("nextitnet", dim=8, num_blocks=2),
        installed_backbone("nextitnet", dim=8, num_blocks=1, mask_padding=False),  # padding matters to it
    )


def test_an_installed_backbone_is_called_like_a_class() -> None:
    made = installed_backbone("nextitnet", dim=6, num_blocks=3)
    assert (made.__name__, made.is_causal) == ("nextitnet", True)
    assert (made(20, 12).dim, len(made(20, 12).blocks), made(20, 12).max_length) == (6, 3, 12)
    with pytest.raises(OptionError, match=r"no option backbone.dmi"):
        installed_backbone("nextitnet", dmi=6)(20, 12)


@settings(max_examples=30, deadline=None)
@given(backbone=backbones(), batch=batches())
def test_drawn_backbones_take_drawn_batches(backbone: Backbone, batch: Batch) -> None:
    assert backbone.user_vectors(batch.sequence).shape == (len(batch.user), backbone.dim)
    assert 2 <= backbone.dim <= 9
    assert 1 <= len(backbone.blocks) <= 3
    assert not backbone.training


@settings(max_examples=10, deadline=None)
@given(backbone=backbones(causal=False))
def test_drawn_backbones_are_of_the_causality_asked_for(backbone: Backbone) -> None:
    assert not backbone.is_causal


class SeesTheNext(TinyBackbone):
    def embed(self, sequence: Tensor) -> Tensor:
        hidden = super().embed(sequence)
        return hidden + hidden.roll(-1, dims=1)


class LiesAboutReach(TinyBackbone):
    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        for block in self.blocks:
            block.reach = 0


class SeesPadding(TinyBackbone):
    def prepare(self, sequence: Tensor) -> Context:
        return Context(None)


class MixesUsers(TinyBackbone):
    def finish(self, hidden: Tensor, context: Context) -> Tensor:
        return hidden - hidden.mean(dim=0)


class MasksOnTheCpu(TinyBackbone):
    def embed(self, sequence: Tensor) -> Tensor:
        return super().embed(sequence) + torch.arange(sequence.shape[1]).unsqueeze(-1)


@pytest.mark.parametrize(
    ("planted", "promise"),
    [
        (SeesTheNext, "no_position_sees_a_later_one"),
        (LiesAboutReach, "the_last_position_alone_is_the_same"),
        (SeesPadding, "more_padding_changes_no_user"),
        (MixesUsers, "users_do_not_influence_one_another"),
        (MasksOnTheCpu, "an_accelerator_computes_the_same"),
    ],
)
def test_a_planted_backbone_breaks_its_promise(planted: type[Backbone], promise: str) -> None:
    class Contract(BackboneContract):
        made: type[Backbone]

        def make(self) -> Backbone:
            return randomise(self.made(20, 16)).eval()

    sound, broken = Contract(), Contract()
    sound.made, broken.made = TinyBackbone, planted
    getattr(sound, f"test_{promise}")()
    with pytest.raises((AssertionError, RuntimeError)):
        getattr(broken, f"test_{promise}")()

"""The promises that every policy keeps, for every backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from finetune_kit.backbone import Backbone
from finetune_kit.policy import Policy, make_policy
from finetune_kit.pretend import pretend_device
from finetune_kit.testing.backbones import randomise, tiny_backbones
from finetune_kit.testing.batches import random_sequence

NUM_ITEMS, LENGTH, MAX_LENGTH = 20, 7, 12


class PolicyContract:
    """Derive, name the policy, and pytest collects its promises; each is tried on every tiny backbone."""

    policy: ClassVar[str]
    """Name of the installed policy."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Its options, where the defaults won't do."""
    backbones: ClassVar[list[type[Backbone]]] = tiny_backbones()
    """The backbones it is tried on."""
    learns: ClassVar[bool] = True
    """Whether it has parameters."""
    is_personal: ClassVar[bool] = True
    """Whether users with other histories get other decisions; a control may treat all alike."""
    ignores_padding: ClassVar[bool] = True
    """Whether more padding changes nothing."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Try every promise on every backbone, for one output per block, for two and for three."""
        if "backbone_class" in metafunc.fixturenames:
            metafunc.parametrize("backbone_class", self.backbones, ids=lambda backbone: backbone.__name__)
        if "num_outputs" in metafunc.fixturenames:
            metafunc.parametrize("num_outputs", [1, 2, 3])

    def make(self, backbone: Backbone, num_outputs: int = 2) -> Policy:
        """Return the policy with random weights, the same at each call, in evaluation mode."""
        return randomise(make_policy(self.policy, backbone, num_outputs, self.options)).eval()

    def make_backbone(self, backbone_class: type[Backbone]) -> Backbone:
        """Return a backbone with random weights, the same at each call."""
        return randomise(backbone_class(NUM_ITEMS, MAX_LENGTH), seed=1)

    def sequence(self) -> Tensor:
        """Return item ids ``(users, length)``."""
        return random_sequence(5, LENGTH, NUM_ITEMS)

    def test_it_decides_on_every_block_of_every_user(self, backbone_class: type[Backbone], num_outputs: int) -> None:
        """Decisions are finite, ``(users, blocks, outputs)``."""
        backbone = self.make_backbone(backbone_class)
        decisions = self.make(backbone, num_outputs)(self.sequence())
        assert decisions.shape == (5, len(backbone.blocks), num_outputs)
        assert decisions.isfinite().all()

    def test_users_do_not_influence_one_another(self, backbone_class: type[Backbone]) -> None:
        """A user alone gets the decisions that they get in a batch."""
        policy, sequence = self.make(self.make_backbone(backbone_class)), self.sequence()
        alone = torch.cat([policy(own.unsqueeze(0)) for own in sequence])
        torch.testing.assert_close(alone, policy(sequence), atol=1e-5, rtol=1e-5)

    def test_more_padding_changes_no_decision(self, backbone_class: type[Backbone]) -> None:
        """Decisions are the same with more zeros in front."""
        if not self.ignores_padding:
            return
        policy, sequence = self.make(self.make_backbone(backbone_class)), self.sequence()
        padded = nn.functional.pad(sequence, (MAX_LENGTH - LENGTH, 0))
        torch.testing.assert_close(policy(padded), policy(sequence), atol=1e-5, rtol=1e-5)

    def test_users_with_other_histories_get_other_decisions(self, backbone_class: type[Backbone]) -> None:
        """Users with other histories get other decisions, unless it says it treats all alike."""
        if not (self.learns and self.is_personal):
            return
        decisions = self.make(self.make_backbone(backbone_class))(self.sequence())
        assert not torch.allclose(decisions[0], decisions[1], atol=1e-4)

    def test_it_shares_nothing_with_the_backbone(self, backbone_class: type[Backbone]) -> None:
        """It shares nothing with the backbone, and all of it trains."""
        backbone = self.make_backbone(backbone_class)
        policy = self.make(backbone)
        own = [parameter.data_ptr() for parameter in policy.parameters()]
        assert bool(own) == self.learns
        assert not set(own) & {parameter.data_ptr() for parameter in backbone.parameters()}
        assert not {id(part) for part in policy.modules()} & {id(part) for part in backbone.modules()}
        if self.learns:
            policy.train()(self.sequence()).square().sum().backward()
        missing = [name for name, parameter in policy.named_parameters() if parameter.grad is None]
        assert not missing, f"no gradient: {missing}"

    def test_an_accelerator_computes_the_same(self, backbone_class: type[Backbone]) -> None:
        """An accelerator computes the same; no tensor is left on the CPU."""
        policy, sequence = self.make(self.make_backbone(backbone_class)), self.sequence()
        expected = policy(sequence)
        with pretend_device() as device:
            found = self.make(self.make_backbone(backbone_class)).to(device)(sequence.to(device)).cpu()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)

"""The promises that every backbone keeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from finetune_kit.backbone import Backbone
from finetune_kit.files import write_tensors
from finetune_kit.options import resolve
from finetune_kit.plugins import installed
from finetune_kit.pretend import pretend_device
from finetune_kit.testing.backbones import randomise
from finetune_kit.testing.batches import random_sequence, random_windows

NUM_ITEMS, LENGTH, MAX_LENGTH = 20, 11, 16


class BackboneContract:
    """Derive, name the backbone, and pytest collects its promises.

    For implementers: override `make` for a backbone that is not installed under a name.
    """

    backbone: ClassVar[str]
    """Name of the installed backbone."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Its options; keep it small."""
    ignores_padding: ClassVar[bool] = True
    """Whether more padding changes nothing."""

    def make(self) -> Backbone:
        """Return the backbone with random weights, the same at each call, in evaluation mode."""
        component = installed().component("backbone", self.backbone)
        backbone = component.load()
        options = resolve(backbone.Options, {**component.preset, **self.options}, "backbone")
        return randomise(backbone(NUM_ITEMS, MAX_LENGTH, options)).eval()

    def sequence(self) -> Tensor:
        """Return item ids ``(users, length)``."""
        return random_sequence(5, LENGTH, NUM_ITEMS)

    def test_it_says_what_it_is(self) -> None:
        """Width, items, length and embedding agree."""
        backbone = self.make()
        assert (backbone.num_items, backbone.max_length) == (NUM_ITEMS, MAX_LENGTH)
        assert backbone.item_embedding.weight.shape == (NUM_ITEMS + 1, backbone.dim)
        assert len(backbone.blocks) >= 1

    def test_blocks_keep_the_shape(self) -> None:
        """Embedding, every block and the end give ``(users, length, dim)``."""
        backbone, sequence = self.make(), self.sequence()
        shape = (*sequence.shape, backbone.dim)
        hidden, context = backbone.embed(sequence), backbone.prepare(sequence)
        assert hidden.shape == shape
        for k, block in enumerate(backbone.blocks):
            hidden = block(hidden, context)
            assert hidden.shape == shape, f"block {k} returned {tuple(hidden.shape)} for {shape}"
        assert backbone.finish(hidden, context).shape == shape
        torch.testing.assert_close(backbone.finish(hidden, context), backbone(sequence))

    def test_the_last_position_alone_is_the_same(self) -> None:
        """Skipping positions that the last one can't see changes nothing, for any length."""
        backbone = self.make()
        for length in range(1, LENGTH + 1):
            sequence = self.sequence()[:, -length:]
            short = backbone(sequence, last_only=True)[:, -1]
            torch.testing.assert_close(short, backbone(sequence)[:, -1], atol=1e-6, rtol=1e-5)

    def test_a_user_vector_is_the_last_position_or_the_mean_over_items(self) -> None:
        """Both ways of pooling read off the same hidden states."""
        backbone, sequence = self.make(), self.sequence()
        hidden = backbone(sequence)
        torch.testing.assert_close(backbone.user_vectors(sequence), hidden[:, -1], atol=1e-6, rtol=1e-5)
        items = (sequence != 0) if backbone.prepare(sequence).mask is not None else torch.ones_like(sequence).bool()
        means = torch.stack([states[own].mean(dim=0) for states, own in zip(hidden, items, strict=True)])
        torch.testing.assert_close(backbone.user_vectors(sequence, pooling="mean"), means, atol=1e-5, rtol=1e-5)

    def test_no_position_sees_a_later_one(self) -> None:
        """If it says it is causal; if it says it is not, some position does."""
        backbone, sequence = self.make(), self.sequence()
        changed = sequence.clone()
        changed[:, -3:] = changed[:, -3:] % NUM_ITEMS + 1
        one, other = backbone(sequence)[:, :-3], backbone(changed)[:, :-3]
        assert torch.allclose(one, other, atol=1e-6) == backbone.is_causal

    def test_more_padding_changes_no_user(self) -> None:
        """Vectors are the same with more zeros in front, up to the longest sequence."""
        if not self.ignores_padding:
            return
        backbone, sequence = self.make(), self.sequence()
        padded = nn.functional.pad(sequence, (MAX_LENGTH - LENGTH, 0))
        for pooling in ("last", "mean"):
            one, other = (backbone.user_vectors(ids, pooling=pooling) for ids in (sequence, padded))
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)

    def test_users_do_not_influence_one_another(self) -> None:
        """A user alone has the vector that they have in a batch."""
        backbone, sequence = self.make(), self.sequence()
        alone = torch.cat([backbone.user_vectors(own.unsqueeze(0)) for own in sequence])
        torch.testing.assert_close(alone, backbone.user_vectors(sequence), atol=1e-5, rtol=1e-5)

    def test_every_parameter_gets_a_gradient(self) -> None:
        """From predicting source items at all positions, in training mode."""
        backbone = self.make().train()
        windows = random_windows(5, LENGTH, NUM_ITEMS)
        backbone(backbone.source_task(windows, torch.Generator().manual_seed(0)).inputs).square().sum().backward()
        missing = [name for name, parameter in backbone.named_parameters() if parameter.grad is None]
        assert not missing, f"no gradient: {missing}"

    def test_sites_are_modules_that_keep_the_shape(self) -> None:
        """A patch can be put at every site that a block names."""
        backbone = self.make()
        hidden = torch.randn(2, LENGTH, backbone.dim, generator=torch.Generator().manual_seed(0))
        for block in backbone.blocks:
            for site in getattr(block, "sites", ()):
                assert block.get_submodule(site)(hidden).shape == hidden.shape

    def test_saved_and_loaded_it_computes_the_same(self, tmp_path: Path) -> None:
        """Its state is all of it."""
        backbone, sequence = self.make(), self.sequence()
        write_tensors(tmp_path / "model.safetensors", backbone.state_dict())
        other = randomise(self.make(), seed=1)
        assert not torch.equal(other(sequence), backbone(sequence))
        other.load_state_dict(load_file(tmp_path / "model.safetensors"))
        assert torch.equal(other(sequence), backbone(sequence))

    def test_an_accelerator_computes_the_same(self) -> None:
        """Hidden states and gradients, with no tensor left on the CPU."""
        backbone, sequence = self.make(), self.sequence()
        expected = backbone(sequence)
        expected.square().sum().backward()
        gradient = backbone.item_embedding.weight.grad
        with pretend_device() as device:
            moved = self.make().to(device)
            found = moved(sequence.to(device))
            found.square().sum().backward()
            found, found_gradient = found.detach().cpu(), moved.item_embedding.weight.grad
            assert gradient is not None
            assert found_gradient is not None
            torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(found_gradient.cpu(), gradient, atol=1e-4, rtol=1e-4)

    def test_names_of_options_that_do_not_exist_are_refused(self) -> None:
        """Its options model forbids unknown keys."""
        with pytest.raises(ValueError, match="nonexistent"):
            resolve(type(self.make()).Options, {"nonexistent": 1}, "backbone")

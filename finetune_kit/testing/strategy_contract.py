"""The promises that every strategy keeps, for every backbone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from finetune_kit.backbone import Backbone
from finetune_kit.data.batch import Batch
from finetune_kit.errors import PluginError
from finetune_kit.files import write_tensors
from finetune_kit.options import resolve
from finetune_kit.plugins import installed
from finetune_kit.pretend import pretend_device
from finetune_kit.seeding import seeded
from finetune_kit.strategy import Strategy
from finetune_kit.tables import gradients_by_row
from finetune_kit.task import ItemTask, LabelTask, Task
from finetune_kit.testing.backbones import randomise, tiny_backbones
from finetune_kit.testing.batches import only_user, random_batch, with_sequence
from finetune_kit.testing.evaluating import assert_encodes_blindly, assert_same_tensors, evaluated_in_between, scores
from finetune_kit.testing.frozen import cached_stages, frozen_tensors, is_frozen, leading_stages
from finetune_kit.testing.refusals import assert_names, refusal_of

NUM_ITEMS, NUM_TARGET_ITEMS, NUM_CLASSES, LENGTH, MAX_LENGTH = 20, 9, 3, 7, 12


def item_task(dim: int) -> Task:
    """Return the task of ranking the target items of `StrategyContract.make_batch`."""
    return ItemTask(dim, NUM_TARGET_ITEMS)


def label_task(dim: int) -> Task:
    """Return the task of telling the class of a profile label."""
    return LabelTask(dim, NUM_CLASSES)


class StrategyContract:
    """Derive, name the strategy, and pytest collects its promises; each is tried on every backbone that it takes.

    For implementers: override `make_batch` or `make_strategy` where the strategy needs more than they give. Add to
    ``backbones`` what else it is for: ``[*tiny_backbones(), installed_backbone("nextitnet", dim=8, num_blocks=2)]``.
    """

    strategy: ClassVar[str]
    """Name of the installed strategy."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Its options, where the defaults won't do."""
    backbones: ClassVar[Sequence[type[Backbone]]] = tiny_backbones()
    """The backbones it is tried on."""
    num_epochs: ClassVar[int] = 2
    """Epochs, of two steps, after which everything that trains has had a gradient."""
    starts_as_pretrained: ClassVar[bool] = True
    """Whether it computes what the pre-trained backbone computes, before the first update."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Try every promise on every backbone that the strategy takes, and on the others how it refuses them."""
        if "backbone_class" in metafunc.fixturenames:
            taken = [backbone for backbone in self.backbones if refusal_of(type(self), backbone) is None]
            metafunc.parametrize("backbone_class", taken, ids=lambda backbone: backbone.__name__)
        if "any_backbone" in metafunc.fixturenames:
            metafunc.parametrize("any_backbone", self.backbones, ids=lambda backbone: backbone.__name__)

    def make_backbone(self, backbone_class: type[Backbone]) -> Backbone:
        """Return a backbone with random weights, the same at each call."""
        return randomise(backbone_class(NUM_ITEMS, MAX_LENGTH))

    def strategy_class(self) -> type[Strategy]:
        """Return the class behind the strategy's name."""
        return installed().component("strategy", self.strategy).load()

    def make_strategy(
        self, backbone_class: type[Backbone], seed: int = 0, make_task: Callable[[int], Task] = item_task
    ) -> Strategy:
        """Return the strategy, newly built over `make_backbone`, in evaluation mode; tasks are made from a width."""
        strategy = self.strategy_class()
        preset = installed().component("strategy", self.strategy).preset
        options = resolve(strategy.Options, {**preset, **self.options}, "strategy")
        with seeded(seed, "strategy"):
            backbone = self.make_backbone(backbone_class)
            return strategy(backbone, make_task(backbone.dim), options, seed=seed).eval()

    def refusal(self, backbone_class: type[Backbone]) -> str | None:
        """Return the words in which the strategy refuses a backbone that it can't use; None where it takes it."""
        try:
            self.make_strategy(backbone_class)
        except PluginError as error:
            return str(error)
        return None

    def make_batch(self, seed: int = 0) -> Batch:
        """Return what one `forward` of the strategy takes, with source windows if it needs them."""
        num_windows = 4 if self.strategy_class().needs_source_batches else 0
        return random_batch(6, LENGTH, NUM_ITEMS, NUM_TARGET_ITEMS, num_windows=num_windows, seed=seed)

    def train(self, strategy: Strategy, device: torch.device | str = "cpu") -> Iterator[Tensor]:
        """Train for `num_epochs` as a run does, to its end, yielding each loss while its gradients are there."""
        trained = [parameter for parameter in strategy.parameters() if strategy.trains(parameter)]
        assert trained, "nothing trains"
        optimizer = torch.optim.Adam(trained, 1e-2)
        for epoch in range(1, self.num_epochs + 1):
            with seeded(0, "dropout", epoch):
                strategy.start_epoch(epoch)
                strategy.train()
                for step in range(2):
                    loss = strategy(self._training_batch(2 * epoch + step).to(device))
                    loss.backward()
                    yield loss
                    optimizer.step()
                    optimizer.zero_grad()
        strategy.eval()
        strategy.finish_training()

    def _training_batch(self, step: int) -> Batch:
        """Return a batch whose users are in no other step's."""
        batch = self.make_batch(step)
        return replace(batch, user=batch.user + step * 10**6)

    def trained(self, backbone_class: type[Backbone], seed: int = 0) -> Strategy:
        """Return the strategy after training, in evaluation mode."""
        strategy = self.make_strategy(backbone_class, seed)
        for _ in self.train(strategy):
            pass
        return strategy

    def tuned_blocks(self, strategy: Strategy) -> list[nn.Module]:
        """Return the fine-tuned branches of the blocks of a strategy with gates, first to last."""
        return [block.tuned for block in strategy.backbone.blocks]  # pyrefly: ignore[bad-return]

    # Which backbones it takes

    def test_it_takes_one_of_the_backbones(self) -> None:
        """It can be built on one of the backbones at least."""
        refusals = [self.refusal(backbone_class) for backbone_class in self.backbones]
        assert None in refusals, f"it refuses every backbone: {refusals[0]}"

    def test_a_backbone_is_taken_or_refused_by_name(self, any_backbone: type[Backbone]) -> None:
        """A backbone that it can't use is refused in one line: strategy, backbone, and what would do."""
        message = self.refusal(any_backbone)
        if message is not None:
            assert_names(message, self.strategy_class(), self.make_backbone(any_backbone))
            assert ";" in message, f"what would do? {message}"

    # What trains and what rests

    def test_a_step_has_a_finite_loss_and_something_trains(self, backbone_class: type[Backbone]) -> None:
        """The loss is one finite number that depends on at least one parameter."""
        strategy = self.make_strategy(backbone_class)
        loss = next(self.train(strategy))
        assert loss.dim() == 0
        assert loss.isfinite()
        assert strategy.num_parameters()[0] > 0

    def test_it_learns_profile_labels_too(self, backbone_class: type[Backbone]) -> None:
        """It learns profile labels too: classes for answers, and no negatives."""
        strategy = self.make_strategy(backbone_class, make_task=label_task)
        batch = self.make_batch()
        batch = replace(
            batch, positive=batch.positive % NUM_CLASSES + 1, negative=batch.negative.new_empty(len(batch), 0)
        )
        strategy.train().start_epoch(1)
        loss = strategy(batch)
        loss.backward()
        assert loss.isfinite()
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in strategy.parameters())
        assert scores(strategy.eval(), batch).shape == (len(batch.user), NUM_CLASSES)

    def test_what_is_frozen_stays_byte_identical(self, backbone_class: type[Backbone]) -> None:
        """Frozen parameters, and the buffers of modules whose parameters are frozen, don't change."""
        strategy = self.make_strategy(backbone_class)
        frozen = sorted(frozen_tensors(strategy) | (strategy.state_dict().keys() - strategy.trained_state().keys()))
        before = {name: strategy.state_dict()[name].clone() for name in frozen}
        for _ in self.train(strategy):
            pass
        after = strategy.state_dict()
        changed = [name for name in frozen if not torch.equal(before[name], after[name])]
        assert not changed, f"training changed what is frozen: {changed}"

    def test_what_is_frozen_stays_in_evaluation_mode(self, backbone_class: type[Backbone]) -> None:
        """Dropout inside what is frozen is off during training."""
        strategy = self.make_strategy(backbone_class).train()
        awake = [name for name, part in strategy.named_modules() if part.training and is_frozen(strategy, name)]
        assert not awake, f"frozen, but in training mode (freeze them with Strategy.freeze): {awake}"

    def test_everything_that_trains_gets_a_gradient(self, backbone_class: type[Backbone]) -> None:
        """Each parameter of `trained_state` has a gradient other than zero at some step."""
        strategy = self.make_strategy(backbone_class)
        parameters = dict(strategy.named_parameters())
        missing = {name for name in strategy.trained_state() if name in parameters}
        assert missing, "nothing trains"
        for _ in self.train(strategy):
            missing -= {name for name in missing if (grad := parameters[name].grad) is not None and grad.any()}
        assert not missing, f"no gradient in {self.num_epochs} epochs: {sorted(missing)}"

    def test_gradients_by_row_are_those_of_whole_tables(self, backbone_class: type[Backbone]) -> None:
        """``optimizer=lazy-adam`` has sparse gradients, of the rows looked up, and they are the same."""
        whole, by_row = self.make_strategy(backbone_class), self.make_strategy(backbone_class)
        next(self.train(whole))
        with gradients_by_row(by_row):
            next(self.train(by_row))
        for (name, one), other in zip(whole.named_parameters(), by_row.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None), name
            if one.grad is not None and other.grad is not None:
                torch.testing.assert_close(other.grad.to_dense(), one.grad, atol=1e-6, rtol=1e-5)

    def test_the_leading_frozen_stages_compute_the_same_for_good(self, backbone_class: type[Backbone]) -> None:
        """What `frozen_stages` counts may be computed once per user and kept."""
        strategy = self.make_strategy(backbone_class)
        sequence = self.make_batch().sequence
        before = leading_stages(strategy, sequence)
        steps = self.train(strategy)
        next(steps)
        during = leading_stages(strategy, sequence)  # in training mode
        for _ in steps:
            pass
        after = leading_stages(strategy, sequence)
        if before is None or during is None or after is None:
            assert before is during is after is None, "the number of frozen stages changed in training"
            return
        assert torch.equal(before, during) and torch.equal(before, after)

    def test_what_leading_frozen_stages_compute_may_be_cached(
        self, backbone_class: type[Backbone], tmp_path: Path
    ) -> None:
        """Training on cached output of leading stages, frozen or resting, gives the same losses and weights."""
        cached, plain = self.make_strategy(backbone_class), self.make_strategy(backbone_class)
        batches = [self._training_batch(step) for step in range(2, 2 * self.num_epochs + 2)]
        with cached_stages(cached, batches, tmp_path / "cache") as stages:
            losses = [loss.item() for loss in self.train(cached)]
        if not stages.num_rounds:
            return
        assert [loss.item() for loss in self.train(plain)] == pytest.approx(losses, rel=1e-5, abs=1e-6)
        torch.testing.assert_close(dict(cached.state_dict()), dict(plain.state_dict()), atol=1e-5, rtol=1e-5)

    def test_a_new_strategy_computes_what_the_pretrained_backbone_computes(
        self, backbone_class: type[Backbone]
    ) -> None:
        """Before the first update, fine-tuning starts from what pre-training learned."""
        strategy, batch = self.make_strategy(backbone_class), self.make_batch()
        if not (strategy.needs_pretrained and self.starts_as_pretrained):
            return
        expected = self.make_backbone(backbone_class).eval().user_vectors(batch.sequence)
        torch.testing.assert_close(strategy.encode(batch).vectors, expected, atol=1e-5, rtol=1e-5)

    # Gates

    def test_gates_are_shares_one_per_user_and_block(self, backbone_class: type[Backbone]) -> None:
        """Gates, probabilities and skips are ``(users, blocks)`` in [0, 1]; no more is skipped than gates leave."""
        strategy, batch = self.trained(backbone_class), self.make_batch()
        encoded = strategy.encode(batch)
        for values in (encoded.gates, encoded.probabilities, encoded.skipped):
            if values is not None:
                assert values.shape == (len(batch.user), len(strategy.backbone.blocks))
                assert ((values >= 0) & (values <= 1)).all()
        if encoded.skipped is not None:
            assert encoded.gates is not None, "a strategy that skips blocks has gates too"
            assert (encoded.gates + encoded.skipped <= 1).all()

    def test_gate_0_everywhere_is_the_pretrained_backbone(self, backbone_class: type[Backbone]) -> None:
        """With every gate shut, blocks compute what they did before training."""
        strategy, batch = self.trained(backbone_class), self.make_batch()
        if strategy.encode(batch).gates is None:
            return
        expected = self._with_blocks(strategy, list(self.make_backbone(backbone_class).blocks))
        shut = torch.zeros(len(batch.user), len(strategy.backbone.blocks))
        found = strategy.backbone.user_vectors(batch.sequence, shut)
        torch.testing.assert_close(found, expected.user_vectors(batch.sequence), atol=1e-6, rtol=0)

    def test_gate_1_everywhere_is_the_fine_tuned_branch(self, backbone_class: type[Backbone]) -> None:
        """With every gate open, blocks compute what their branches compute, which training changed."""
        strategy, batch = self.trained(backbone_class), self.make_batch()
        if strategy.encode(batch).gates is None:
            return
        expected = self._with_blocks(strategy, self.tuned_blocks(strategy)).user_vectors(batch.sequence)
        gates = torch.ones(len(batch.user), len(strategy.backbone.blocks))
        found = strategy.backbone.user_vectors(batch.sequence, gates)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        assert not torch.allclose(found, strategy.backbone.user_vectors(batch.sequence, 0 * gates), atol=1e-4)

    def _with_blocks(self, strategy: Strategy, blocks: list[nn.Module]) -> Backbone:
        """Return the strategy's backbone with plain blocks instead of its own."""
        backbone = copy.deepcopy(strategy.backbone)
        backbone.blocks = nn.ModuleList(copy.deepcopy(block) for block in blocks)
        return backbone.eval()

    # What a user's vector may depend on

    def test_a_causal_backbone_stays_causal(self, backbone_class: type[Backbone]) -> None:
        """No position sees a later one, whatever the gates."""
        if not backbone_class.is_causal:
            return
        strategy, batch = self.trained(backbone_class), self.make_batch()
        gates = strategy.encode(batch).gates
        changed = batch.sequence.clone()
        changed[:, -2:] = changed[:, -2:] % NUM_ITEMS + 1
        one, other = (strategy.backbone(sequence, gates) for sequence in (batch.sequence, changed))
        torch.testing.assert_close(one[:, :-2], other[:, :-2], atol=1e-6, rtol=0)

    def test_more_padding_changes_no_user(self, backbone_class: type[Backbone]) -> None:
        """User vectors and gates are the same with more zeros in front."""
        strategy, batch = self.trained(backbone_class), self.make_batch()
        if not strategy.is_deterministic:
            return
        padded, plain = nn.functional.pad(batch.sequence, (MAX_LENGTH - LENGTH, 0)), self.make_backbone(backbone_class)
        one, other = (plain.eval().user_vectors(sequence) for sequence in (batch.sequence, padded))
        if not torch.allclose(one, other, atol=1e-5):
            return  # padding matters to the backbone itself, as its own contract has to say
        one, other = strategy.encode(batch), strategy.encode(with_sequence(batch, padded))
        torch.testing.assert_close(one.vectors, other.vectors, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one.gates, other.gates, atol=1e-5, rtol=0)

    def test_users_do_not_influence_one_another(self, backbone_class: type[Backbone]) -> None:
        """In evaluation, a user alone is encoded as in a batch; twice gives the same."""
        strategy, batch = self.trained(backbone_class), self.make_batch()
        if not strategy.is_deterministic:
            return
        together = strategy.encode(batch)
        assert torch.equal(together.vectors, strategy.encode(batch).vectors)
        for row in range(len(batch.user)):
            alone = strategy.encode(only_user(batch, row))
            torch.testing.assert_close(alone.vectors[0], together.vectors[row], atol=1e-5, rtol=1e-5)
            if together.gates is not None and alone.gates is not None:
                torch.testing.assert_close(alone.gates[0], together.gates[row], atol=1e-5, rtol=0)

    def test_evaluation_is_blind_and_leaves_no_trace(self, backbone_class: type[Backbone]) -> None:
        """In evaluation, users are encoded whatever their answers; neither the model nor its training changes."""
        strategy, batch = self.make_strategy(backbone_class), self.make_batch()
        for _ in evaluated_in_between(self.train(strategy), strategy, batch):
            pass
        assert_encodes_blindly(strategy, batch, NUM_TARGET_ITEMS)
        assert_same_tensors(strategy, self.trained(backbone_class), "evaluating during training")

    # The same again

    def test_the_same_seed_gives_the_same_result(self, backbone_class: type[Backbone]) -> None:
        """Two trainings with one seed end in identical weights."""
        one, other = self.trained(backbone_class).state_dict(), self.trained(backbone_class).state_dict()
        differ = [name for name in one if not torch.equal(one[name], other[name])]
        assert not differ, f"not a function of the seed: {differ}"

    def test_an_epochs_noise_does_not_depend_on_earlier_epochs(self, backbone_class: type[Backbone]) -> None:
        """A training that goes on after a crash draws what it would have drawn."""
        losses = []
        for epochs in ((1, 2), (2,)):
            strategy = self.make_strategy(backbone_class).train()
            for epoch in epochs:
                with seeded(0, "dropout", epoch):
                    strategy.start_epoch(epoch)
                    losses.append(strategy(self.make_batch()).item())
        _, uninterrupted, resumed = losses
        assert uninterrupted == resumed

    def test_saved_and_loaded_it_scores_the_same(self, backbone_class: type[Backbone], tmp_path: Path) -> None:
        """Saved and loaded, it scores the same: the trained state is all of the model."""
        strategy, batch = self.trained(backbone_class), self.make_batch()
        write_tensors(tmp_path / "model.safetensors", strategy.trained_state())
        loaded = self.make_strategy(backbone_class)
        assert not torch.equal(scores(loaded, batch), scores(strategy, batch)), "training changed no score"
        loaded.load_trained_state(load_file(tmp_path / "model.safetensors"))
        assert torch.equal(scores(loaded, batch), scores(strategy, batch))

    def test_merged_it_is_a_plain_backbone_or_says_why_not(self, backbone_class: type[Backbone]) -> None:
        """After training, it merges into a plain backbone that encodes users as it does, or refuses to."""
        strategy, batch = self.trained(backbone_class), self.make_batch()
        try:
            merged = strategy.merged_backbone().eval()
        except PluginError as error:
            assert_names(str(error), type(strategy), self.make_backbone(backbone_class))
            return
        assert merged.state_dict().keys() == self.make_backbone(backbone_class).state_dict().keys()
        vectors = merged.user_vectors(batch.sequence, pooling=strategy.pooling)
        torch.testing.assert_close(vectors, strategy.encode(batch).vectors, atol=1e-5, rtol=1e-5)
        own = {parameter.data_ptr() for parameter in strategy.parameters()}
        assert not own & {parameter.data_ptr() for parameter in merged.parameters()}, "merged, it shares weights"

    def test_an_accelerator_computes_the_same(self, backbone_class: type[Backbone], tmp_path: Path) -> None:
        """An accelerator computes the same; no tensor is left on the CPU."""
        on_cpu, batch = self.make_strategy(backbone_class), self.make_batch()
        losses = [loss.item() for loss in self.train(on_cpu)]
        with pretend_device() as device:
            strategy = self.make_strategy(backbone_class).to(device)
            found = [loss.item() for loss in self.train(strategy, device)]
            of_device = scores(strategy, batch.to(device)).cpu()
            write_tensors(tmp_path / "model.safetensors", strategy.trained_state())
            loaded = self.make_strategy(backbone_class).to(device)
            loaded.load_trained_state(load_file(tmp_path / "model.safetensors"))
            again = scores(loaded, batch.to(device)).cpu()
        assert found == pytest.approx(losses, abs=1e-4)
        torch.testing.assert_close(of_device, scores(on_cpu, batch), atol=1e-3, rtol=1e-3)
        assert torch.equal(of_device, again)

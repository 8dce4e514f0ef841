from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from finetune_kit.backbone import Backbone, Context
from finetune_kit.data.batch import Batch
from finetune_kit.errors import OptionError
from finetune_kit.options import resolve
from finetune_kit.task import ItemTask
from finetune_kit.testing import (
    GlobalBackbone,
    StrategyContract,
    TinyBackbone,
    batches,
    random_batch,
    randomise,
    tiny_backbones,
)
from ftkit_backbones.nextitnet import NextItNet
from ftkit_uaf.skip import Skip, SkipOptions, ThreeWayBlock


class TestSkip(StrategyContract):
    strategy = "skip"
    backbones = (*StrategyContract.backbones, NextItNet)


class TestSkipWithGru(StrategyContract):
    strategy = "skip"
    options = {"policy": "gru", "final_temperature": 1.0, "annealing_epochs": 2}  # noqa: RUF012  (as in a plugin's test)
    backbones = StrategyContract.backbones[:1]


class TestSkipSampledAtEvaluation(StrategyContract):
    strategy = "skip"
    options = {"evaluation": "sample", "initial_skip": 0.2}  # noqa: RUF012
    backbones = StrategyContract.backbones[:1]
    starts_as_pretrained = False  # of blocks that are skipped from the start, the pre-trained backbone knows nothing


def build(backbone_class: type[Backbone] = TinyBackbone, **options: object) -> Skip:
    """Return the strategy over a backbone whose tuned branches differ from the frozen ones."""
    torch.manual_seed(0)
    backbone = randomise(backbone_class(20, 12))
    strategy = Skip(backbone, ItemTask(backbone.dim, 9), resolve(SkipOptions, options, "strategy"))
    for block in strategy.backbone.blocks:
        randomise(block.tuned, seed=1)
    return strategy


class Times(nn.Module):
    """The residual block ``E + factor · E``."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        return hidden + self.factor * hidden


@contextmanager
def counting(strategy: Skip) -> Iterator[list[dict[str, int]]]:
    """Yield, per block, how many users each branch was computed for."""
    counts = [{"tuned": 0, "frozen": 0} for _ in strategy.backbone.blocks]
    hooks = []
    for block, count in zip(strategy.backbone.blocks, counts, strict=True):
        for name in count:

            def note(_: nn.Module, inputs: tuple[Tensor, Context], count=count, name=name) -> None:
                count[name] += len(inputs[0])

            hooks.append(getattr(block, name).register_forward_pre_hook(note))
    yield counts
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("training", [False, True])
def test_the_equation_by_hand(training: bool) -> None:
    block = ThreeWayBlock(Times(2.0)).train(training)  # G(E) = 3 E
    block.tuned.factor.data.fill_(5.0)  # Ĝ(E) = 6 E
    hidden = torch.tensor([[[1.0]], [[1.0]], [[10.0]], [[4.0]]])
    actions = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.25, 0.25]])
    # 6 · 1; 3 · 1; 10, skipped; 0.5 · 24 + 0.25 · 12 + 0.25 · 4
    assert block(hidden, Context(None), actions).flatten().tolist() == [6.0, 3.0, 10.0, 16.0]
    # a gate alone is the share of the fine-tuned branch: 3; 6; 0.5 · 60 + 0.5 · 30; 12
    two_way = block(hidden, Context(None), torch.tensor([0.0, 1.0, 0.5, 0.0]))
    assert two_way.flatten().tolist() == [3.0, 6.0, 45.0, 12.0]


@st.composite
def chosen(draw: st.DrawFn, num_users: int, num_blocks: int = 2) -> Tensor:
    """Draw shares ``(users, blocks, 3)``, most of them one-hot."""
    one_hot = st.sampled_from([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0.5, 0, 0.5], [0.25, 0.5, 0.25]])
    own = st.lists(one_hot, min_size=num_blocks, max_size=num_blocks)
    return torch.tensor(draw(st.lists(own, min_size=num_users, max_size=num_users)))


@pytest.mark.parametrize("backbone_class", [TinyBackbone, GlobalBackbone])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_computing_by_group_equals_a_loop_over_users_that_computes_all(
    data: st.DataObject, backbone_class: type[Backbone]
) -> None:
    batch = data.draw(batches())
    actions = data.draw(chosen(len(batch.user)))
    backbone = build(backbone_class).eval().backbone
    found = backbone.user_vectors(batch.sequence, actions)
    for row, sequence in enumerate(batch.sequence.split(1)):
        hidden, context = backbone.start(sequence)
        for k, block in enumerate(backbone.blocks):
            tuned, frozen, skipped = actions[row, k].tolist()
            hidden = tuned * block.tuned(hidden, context) + frozen * block.frozen(hidden, context) + skipped * hidden
        torch.testing.assert_close(found[row], backbone.finish(hidden, context)[0, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backbone_class", [*tiny_backbones(), NextItNet])
def test_evaluation_by_group_gives_the_numbers_of_computing_all(backbone_class: type[Backbone]) -> None:
    backbone, sequence = build(backbone_class).eval().backbone, random_batch(30, length=10).sequence
    one_hot = torch.eye(3)[torch.randint(3, (30, len(backbone.blocks)), generator=torch.Generator().manual_seed(0))]
    grouped = backbone.user_vectors(sequence, one_hot)
    for block in backbone.blocks:
        block.training = True  # all of it is computed; what is inside stays in evaluation mode
    torch.testing.assert_close(grouped, backbone.user_vectors(sequence, one_hot), atol=1e-6, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_each_branch_is_computed_for_those_alone_who_go_through_it(data: st.DataObject) -> None:
    batch = data.draw(batches())
    actions, strategy = data.draw(chosen(len(batch.user))), build().eval()
    with counting(strategy) as counts:
        strategy.encode_with(batch, actions)
    for k, count in enumerate(counts):
        assert count == {"tuned": (actions[:, k, 0] > 0).sum(), "frozen": (actions[:, k, 1] > 0).sum()}


def test_training_computes_everything_and_gives_a_gradient_to_what_was_not_chosen() -> None:
    strategy, batch = build().train(), random_batch(20)
    with counting(strategy) as counts:
        strategy(batch).backward()
    assert counts == [{"tuned": 20, "frozen": 20}] * 2
    assert (strategy.policy.output.bias.grad != 0).all()


def test_gates_and_skips_are_the_shares_of_what_was_chosen() -> None:
    strategy, batch = build(initial_skip=0.4), random_batch(50)
    for mode in (True, False):
        encoded = strategy.train(mode).encode(batch)
        assert encoded.gates is not None
        assert encoded.skipped is not None
        assert set(encoded.gates.unique().tolist()) == set(encoded.skipped.unique().tolist()) == {0.0, 1.0}
        assert (encoded.gates + encoded.skipped).max() == 1


def test_an_undecided_policy_skips_with_the_initial_probability_and_decides_as_usual_else() -> None:
    strategy = build(policy="global", initial_skip=0.2)
    probabilities = strategy.log_probabilities(random_batch(1).sequence).exp()
    torch.testing.assert_close(probabilities, torch.tensor([0.4, 0.4, 0.2]).expand(1, 2, 3))
    encoded = strategy.eval().encode(random_batch(4))
    assert encoded.probabilities is not None
    torch.testing.assert_close(encoded.probabilities, torch.full((4, 2), 0.4))
    assert not encoded.gates.any() and not encoded.skipped.any()  # of two equal actions, the frozen branch


def test_drawn_actions_come_as_often_as_their_probabilities_say() -> None:
    strategy, batch = build(policy="global", initial_skip=0.2), random_batch(5000, length=2)
    encoded = strategy.train().encode(batch)
    assert encoded.gates.mean().item() == pytest.approx(0.4, abs=4 * (0.24 / 10_000) ** 0.5)
    assert encoded.skipped.mean().item() == pytest.approx(0.2, abs=4 * (0.16 / 10_000) ** 0.5)


def test_the_loss_is_the_tasks_plus_the_price_of_what_is_computed() -> None:
    batch, strategy = random_batch(), build(compute_weight=0.3, initial_skip=0.5).train()
    encoded = strategy.encode(batch)
    computed = sum(1 - skipped for own in encoded.skipped.tolist() for skipped in own) / (6 * 2)
    added = strategy.loss(batch, encoded) - strategy.task.loss(encoded.vectors, batch)
    assert added.item() == pytest.approx(0.3 * computed, abs=1e-6)
    assert 0 < computed < 1


def test_given_choices_take_the_policys_place() -> None:
    strategy, batch = build().eval(), random_batch()
    gates = torch.tensor([[1.0, 0.0]]).expand(6, 2)
    two_way = strategy.encode_with(batch, gates)
    assert torch.equal(two_way.gates, gates) and two_way.skipped is None
    shares = torch.tensor([[[1.0, 0, 0], [0, 0, 1]]]).expand(6, 2, 3)
    three_way = strategy.encode_with(batch, shares)
    assert torch.equal(three_way.gates, gates) and torch.equal(three_way.skipped, shares[..., 2])
    assert not torch.allclose(two_way.vectors, three_way.vectors, atol=1e-3)


@pytest.mark.parametrize(("weight", "is_skipped"), [(1.0, True), (0.0, False)])
def test_blocks_that_do_not_matter_are_skipped_if_computing_them_has_a_price(weight: float, is_skipped: bool) -> None:
    torch.manual_seed(0)
    backbone = randomise(TinyBackbone(20, 12))
    backbone.blocks = nn.ModuleList(Times(0.0) for _ in range(2))
    options = resolve(SkipOptions, {"compute_weight": weight, "temperature": 1.0}, "strategy")
    strategy, batch = Skip(backbone, ItemTask(backbone.dim, 9), options), random_batch(20)
    for block in strategy.backbone.blocks:
        strategy.freeze(block.tuned)
    with counting(strategy) as before:
        strategy.eval().encode(batch)
    optimizer = torch.optim.Adam([p for p in strategy.parameters() if p.requires_grad], 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        strategy.train()(batch).backward()
        optimizer.step()
    with counting(strategy) as after:
        skipped = strategy.eval().encode(batch).skipped
    assert [sum(count.values()) for count in before] == [20, 20]  # each user went through one branch
    assert [sum(count.values()) for count in after] == [0, 0] if is_skipped else [20, 20]
    assert skipped.mean().item() == is_skipped


def test_it_learns_what_users_like() -> None:
    strategy, batch = build(), random_batch(8, num_negatives=4)
    optimizer = torch.optim.Adam([p for p in strategy.parameters() if p.requires_grad], 0.02)
    strategy.train()
    losses = []
    for _ in range(60):
        loss = strategy(batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 3


def test_a_soft_mixture_at_evaluation_is_refused_for_it_would_save_nothing() -> None:
    with pytest.raises(OptionError, match=r"strategy\.evaluation = 'expected'"):
        build(evaluation="expected")
    with pytest.raises(OptionError, match="initial_skip"):
        build(initial_skip=0)


def test_a_batch_of_one_user_works_whatever_is_chosen() -> None:
    batch: Batch = random_batch(1)
    strategy = build().eval()
    for action in torch.eye(3):
        assert strategy.encode_with(batch, action.expand(1, 2, 3)).vectors.isfinite().all()

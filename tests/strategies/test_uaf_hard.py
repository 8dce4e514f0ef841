import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from finetune_kit.backbone import Context
from finetune_kit.data.batch import Batch
from finetune_kit.errors import OptionError, UnknownNameError
from finetune_kit.layers import DilatedBlock
from finetune_kit.options import resolve
from finetune_kit.task import ItemTask
from finetune_kit.testing import StrategyContract, TinyBackbone, batches, random_batch, randomise
from ftkit_backbones.nextitnet import NextItNet, NextItNetOptions
from ftkit_uaf.branches import TwoBranchBlock
from ftkit_uaf.gumbel import gumbel_softmax
from ftkit_uaf.hard import UafHard, UafHardOptions

GOLDEN = Path(__file__).parents[1] / "golden"


class TestUafHard(StrategyContract):
    strategy = "uaf-hard"
    backbones = (*StrategyContract.backbones, NextItNet)


class TestUafHardSampledAtEvaluation(StrategyContract):
    strategy = "uaf-hard"
    options = {"evaluation": "sample"}  # noqa: RUF012  (as in a plugin author's test)
    backbones = StrategyContract.backbones[:1]


class TestUafHardExpectedAtEvaluation(StrategyContract):
    strategy = "uaf-hard"
    options = {"evaluation": "expected", "logits": "sigmoid"}  # noqa: RUF012
    backbones = StrategyContract.backbones[:1]


class TestUafHardGru(StrategyContract):
    strategy = "uaf-hard"
    options = {"policy": "gru", "final_temperature": 1.0, "annealing_epochs": 2}  # noqa: RUF012
    backbones = StrategyContract.backbones[:1]


def build(seed: int = 0, num_blocks: int = 2, **options: object) -> UafHard:
    torch.manual_seed(seed)
    backbone = randomise(TinyBackbone(20, 12, TinyBackbone.Options(num_blocks=num_blocks)))
    return UafHard(backbone, ItemTask(backbone.dim, 9), resolve(UafHardOptions, options, "strategy"), seed=seed)


class Times(nn.Module):
    """The residual block ``E + F(E)`` with ``F(E) = factor · E``."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        return hidden + self.factor * hidden


def test_equation_6_by_hand() -> None:
    block = TwoBranchBlock(Times(2.0))  # F(E) = 2 E
    block.tuned.factor.data.fill_(5.0)  # F̂(E) = 5 E
    hidden = torch.tensor([[[1.0]], [[1.0]], [[10.0]]])  # three users, E = 1, 1, 10
    out = block(hidden, Context(None), torch.tensor([0.0, 1.0, 0.25]))
    # I F̂(E) + (1 − I) F(E) + E: 2 + 1; 5 + 1; 0.25 · 50 + 0.75 · 20 + 10
    assert out.flatten().tolist() == [3.0, 6.0, 37.5]


def test_equations_9_and_10_by_hand() -> None:
    log_probabilities = torch.tensor([0.75, 0.25]).log().requires_grad_()
    uniform = torch.tensor([0.2, 0.8])
    action = gumbel_softmax(log_probabilities, uniform, temperature=2.0)
    # g = −log(−log u) = −0.4759, 1.4999; log π + g = −0.7636, 0.1136: the second action is drawn
    assert action.tolist() == [0.0, 1.0]
    # α_0 = exp(−0.7636/2) / (exp(−0.7636/2) + exp(0.1136/2)) = 0.3921
    # ∂α_0/∂log π_0 = α_0 (1 − α_0)/τ = 0.1192
    action[0].backward()
    assert log_probabilities.grad is not None
    assert log_probabilities.grad.tolist() == pytest.approx([0.1192, -0.1192], abs=1e-4)


@pytest.mark.parametrize("gates", ["hard", "soft"])
def test_two_branches_compute_what_the_authors_code_computes(gates: str) -> None:
    golden = load_file(GOLDEN / "two_branch.safetensors")
    backbone = NextItNet(29, 12, NextItNetOptions(dim=8, num_blocks=4, mask_padding=False))
    for k, block in enumerate(backbone.blocks):
        backbone.blocks[k] = TwoBranchBlock(block)
    names = {
        name: f"blocks.{name.split('.')[1]}.{name.split('.')[0]}.{name.split('.', 2)[2]}"
        for name in golden
        if name.startswith(("frozen.", "tuned."))
    }
    state = {target: golden[name] for name, target in names.items()}
    backbone.load_state_dict({**state, "item_embedding.weight": golden["embedding.weight"]})
    sequence, gate, expected = (
        golden["input.sequence"],
        golden[f"input.gate.{gates}"],
        golden[f"output.hidden.{gates}"],
    )
    torch.testing.assert_close(backbone(sequence, gate), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(backbone.user_vectors(sequence, gate), expected[:, -1], atol=1e-5, rtol=0)


def test_the_straight_through_gradient_is_that_of_the_relaxation() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 3, 2, generator=random)
    uniform = torch.rand(50, 3, 2, generator=random)
    weight = torch.randn(50, 3, 2, generator=random)
    hard, soft = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    (gumbel_softmax(hard, uniform, 10.0) * weight).sum().backward()
    (((soft - (-uniform.log()).log()) / 10.0).softmax(-1) * weight).sum().backward()
    torch.testing.assert_close(hard.grad, soft.grad, atol=1e-7, rtol=1e-5)
    assert hard.grad.abs().sum() > 0


@given(
    logits=st.lists(st.lists(st.floats(-5, 5), min_size=2, max_size=2), min_size=1, max_size=4),
    draws=st.lists(st.floats(0.01, 0.99), min_size=8, max_size=8),
    temperature=st.floats(0.5, 20),
)
def test_gates_and_their_gradient_are_what_a_slow_loop_computes(
    logits: list[list[float]], draws: list[float], temperature: float
) -> None:
    uniform = [draws[2 * k : 2 * k + 2] for k in range(len(logits))]
    leaf = torch.tensor(logits, requires_grad=True)
    found = gumbel_softmax(leaf, torch.tensor(uniform), temperature)[:, 0]
    [gradient] = torch.autograd.grad(found.sum(), leaf)
    for k, (own, drawn) in enumerate(zip(logits, uniform, strict=True)):
        noisy = [value - math.log(-math.log(u)) for value, u in zip(own, drawn, strict=True)]  # log π + g
        if abs(noisy[0] - noisy[1]) < 1e-4:
            continue
        assert found[k].item() == (1.0 if noisy[0] > noisy[1] else 0.0)
        exponentials = [math.exp(value / temperature) for value in noisy]
        alpha = exponentials[0] / sum(exponentials)
        slope = alpha * (1 - alpha) / temperature
        assert gradient[k].tolist() == pytest.approx([slope, -slope], abs=1e-5)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_an_action_is_drawn_as_often_as_its_probability_says(share: float) -> None:
    uniform = torch.rand(20_000, 2, generator=torch.Generator().manual_seed(1))
    log_probabilities = torch.tensor([share, 1 - share]).log().expand(20_000, 2)
    drawn = gumbel_softmax(log_probabilities, uniform, 10.0)[:, 0].mean().item()
    assert drawn == pytest.approx(share, abs=4 * (share * (1 - share) / 20_000) ** 0.5)


def test_draws_of_exactly_zero_or_nearly_one_give_finite_numbers() -> None:
    uniform = torch.tensor([[0.0, 1 - 2**-24], [0.5, 0.0]])
    log_probabilities = torch.zeros(2, 2, requires_grad=True)
    action = gumbel_softmax(log_probabilities, uniform, 0.1)
    action[:, 0].sum().backward()
    assert action.tolist() == [[0, 1], [1, 0]]
    assert log_probabilities.grad is not None
    assert log_probabilities.grad.isfinite().all()


def test_training_draws_gates_anew_and_evaluation_takes_the_likelier_action() -> None:
    strategy, batch = build(), random_batch(40)
    strategy.train().start_epoch(1)
    one, other = strategy.encode(batch), strategy.encode(batch)
    assert one.gates is not None
    assert other.gates is not None
    assert not torch.equal(one.gates, other.gates)
    assert set(one.gates.unique().tolist()) == {0.0, 1.0}
    greedy = strategy.eval().encode(batch)
    assert greedy.gates is not None
    assert greedy.probabilities is not None
    assert torch.equal(greedy.gates, (greedy.probabilities > 0.5).float())


def test_the_temperature_falls_by_the_same_factor_each_epoch_then_rests() -> None:
    strategy = build(temperature=8.0, final_temperature=2.0, annealing_epochs=2)
    temperatures = []
    for epoch in (1, 2, 3, 10, 2):  # the last: going on after a crash
        strategy.start_epoch(epoch)
        temperatures.append(strategy.temperature)
    assert temperatures == pytest.approx([8, 4, 2, 2, 4])
    assert strategy.train().encode(random_batch()).gates is not None


def test_without_a_final_temperature_it_stays() -> None:
    strategy = build(temperature=3.0)
    strategy.start_epoch(50)
    assert strategy.temperature == 3.0


def test_an_annealed_temperature_is_the_one_in_use() -> None:
    batch = random_batch()
    gradients = []
    for options in ({"temperature": 8.0, "final_temperature": 2.0, "annealing_epochs": 2}, {"temperature": 2.0}):
        strategy = build(**options).train()
        strategy.start_epoch(3)
        gates = strategy.encode(batch).gates
        assert gates is not None
        (gates * torch.arange(gates.numel()).view_as(gates)).sum().backward()
        gradients.append(strategy.policy.output.weight.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].any()


def test_under_another_seed_users_are_sampled_otherwise() -> None:
    batch = random_batch(64)
    gates = build(evaluation="sample").eval().encode(batch).gates
    other = build(evaluation="sample")
    other.seed = 1
    assert gates is not None
    assert 0 < gates.mean() < 1
    assert not torch.equal(gates, other.eval().encode(batch).gates)


def test_the_authors_logits_are_the_sigmoid_of_the_policys_output() -> None:
    sequence = random_batch().sequence
    paper, authors = build(), build(logits="sigmoid")
    authors.load_state_dict(paper.state_dict())
    output = paper.policy(sequence)
    torch.testing.assert_close(paper.log_probabilities(sequence).exp(), output.softmax(-1))
    torch.testing.assert_close(authors.log_probabilities(sequence), output.sigmoid())


def test_it_trains_branches_head_embedding_and_policy_and_nothing_else() -> None:
    strategy = build()
    parts = {name.split(".")[0] + "." + name.split(".")[1] for name in strategy.trained_state()}
    assert parts == {
        "backbone.item_embedding",
        "backbone.blocks",
        "policy.item_embedding",
        "policy.blocks",
        "policy.output",
        "task.head",
    }
    assert not [name for name in strategy.trained_state() if ".frozen." in name]


@settings(max_examples=25, deadline=None)
@given(batch=batches(), num_blocks=st.integers(1, 3), training=st.booleans())
def test_any_batch_has_a_loss_and_one_gate_per_user_and_block(batch: Batch, num_blocks: int, training: bool) -> None:
    strategy = build(num_blocks=num_blocks).train(training)
    encoded = strategy.encode(batch)
    assert encoded.vectors.shape == (len(batch.user), strategy.backbone.dim)
    assert encoded.gates is not None
    assert encoded.gates.shape == (len(batch.user), num_blocks)
    assert strategy.loss(batch, encoded).isfinite()


def test_it_learns_what_users_like() -> None:
    strategy, batch = build(temperature=1.0), random_batch(8, num_negatives=4)
    optimizer = torch.optim.Adam([p for p in strategy.parameters() if p.requires_grad], 0.02)
    strategy.train()
    for _ in range(60):
        strategy(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    scores = strategy.task.scores(strategy.eval().encode(batch).vectors)[batch.row]
    positive = scores.gather(1, batch.positive.unsqueeze(1) - 1)
    negative = scores.gather(1, batch.negative - 1)
    likes = (
        batch.positive.unsqueeze(1) == batch.positive
    )  # another of the user's positives may stand among the negatives
    own = (batch.row.unsqueeze(1) == batch.row) & ~likes
    disputed = (batch.negative.unsqueeze(2) == batch.positive).logical_and(own.unsqueeze(1)).any(-1)
    assert (positive > negative)[~disputed].float().mean() > 0.95


def test_the_same_block_may_not_serve_both_branches() -> None:
    block = TwoBranchBlock(DilatedBlock(4, 1))
    shared = {id(p) for p in block.frozen.parameters()} & {id(p) for p in block.tuned.parameters()}
    assert not shared
    assert all(torch.equal(a, b) for a, b in zip(block.frozen.parameters(), block.tuned.parameters(), strict=True))
    assert block.reach == DilatedBlock(4, 1).reach


def test_wrong_options_are_refused() -> None:
    with pytest.raises(OptionError, match="temperature"):
        build(temperature=0)
    with pytest.raises(OptionError, match="final_temperature"):
        build(final_temperature=0)
    with pytest.raises(OptionError, match="tau"):
        build(tau=1)
    with pytest.raises(UnknownNameError, match=r"no policy named 'cnv'. Did you mean 'conv'"):
        build(policy="cnv")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from finetune_kit.backbone import Context
from ftkit_uaf.mixture import is_hard, mixture, whole_mixture


class Counting(nn.Module):
    """A branch that counts the users it was called for, with and without a graph."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(3, 3)
        self.with_graph = self.without_graph = 0

    def forward(self, hidden: torch.Tensor, context: Context) -> torch.Tensor:
        if torch.is_grad_enabled():
            self.with_graph += len(hidden)
        else:
            self.without_graph += len(hidden)
        assert context.mask is not None
        assert len(context.mask) == len(hidden)
        return hidden + torch.tanh(self.linear(context.masked(hidden)))


def case(actions: list[int], num_branches: int = 3):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(actions), 2, 3, generator=generator, requires_grad=True)
    mask = (torch.rand(len(actions), 2, 1, generator=generator) < 0.7).float()
    shares = nn.functional.one_hot(torch.tensor(actions), num_branches).float().requires_grad_()
    return shares, [Counting(seed) for seed in range(num_branches)], hidden, Context(mask)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_output_and_all_gradients_are_those_of_computing_everything(actions):
    found = []
    for compute in (mixture, whole_mixture):
        shares, branches, hidden, context = case(actions)
        output = compute(shares, branches, hidden, context)
        (output * torch.arange(output.numel()).view_as(output)).sum().backward()
        weights = [branch.linear.weight.grad for branch in branches]
        zero = torch.zeros(3, 3)
        found.append([output, shares.grad, hidden.grad, *(zero if grad is None else grad for grad in weights)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_user_s_graph_goes_through_the_branch_taken_alone():
    shares, branches, hidden, context = case([0, 2, 2, 0, 1])
    mixture(shares, branches, hidden, context)
    assert [branch.with_graph for branch in branches] == [2, 1, 2]
    assert [branch.without_graph for branch in branches] == [3, 4, 3]


def test_a_branch_that_nobody_takes_has_a_gradient_of_zero():
    shares, branches, hidden, context = case([0, 2, 2])
    mixture(shares.detach(), branches, hidden, context, is_training=True).sum().backward()
    assert branches[1].linear.weight.grad is not None
    assert not branches[1].linear.weight.grad.any()


def test_shares_that_do_not_learn_cost_one_branch_per_user():
    for grad in (True, False):
        shares, branches, hidden, context = case([1, 1, 0, 2])
        with torch.set_grad_enabled(grad):
            mixture(shares.detach(), branches, hidden, context)
        assert [branch.with_graph + branch.without_graph for branch in branches] == [1, 2, 1]


def test_soft_shares_need_every_branch():
    shares, branches, hidden, context = case([0, 1], 2)
    soft = shares.detach() * 0.5 + 0.25
    assert is_hard(shares)
    assert not is_hard(soft)
    expected = 0.75 * branches[0](hidden, context)[0] + 0.25 * branches[1](hidden, context)[0]
    torch.testing.assert_close(mixture(soft, branches, hidden, context)[0], expected)


def test_in_half_precision_groups_are_evened_and_nothing_else_changes():
    actions = [0] * 5 + [1] * 20
    found = []
    for compute in (mixture, whole_mixture):
        shares, branches, hidden, context = case(actions, 2)
        branches = [branch.bfloat16() for branch in branches]
        half, mask = hidden.detach().bfloat16().requires_grad_(), context.mask.bfloat16()
        output = compute(shares.detach().bfloat16().requires_grad_(), branches, half, Context(mask))
        output.float().square().sum().backward()
        found.append([output, half.grad, *(branch.linear.weight.grad for branch in branches)])
        if compute is mixture:
            assert [branch.with_graph for branch in branches] == [16, 32]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=0.05, rtol=0.05)

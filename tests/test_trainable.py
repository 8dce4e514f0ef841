import pytest
import torch
from torch import nn

from finetune_kit.errors import CheckpointError
from finetune_kit.trainable import Trainable


class Model(Trainable):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Dropout(0.5))
        self.two = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x)).square().mean()


def test_freezing_stops_gradients_and_keeps_evaluation_mode_and_buffers() -> None:
    model = Model()
    model.freeze(model.one)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.one.state_dict().items()}
    model(torch.randn(8, 2)).backward()
    assert not any(part.training for part in model.one.modules())
    assert model.two.training
    assert all(parameter.grad is None for parameter in model.one.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.one.state_dict().items())
    model.eval()
    assert not any(part.training for part in model.modules())


def test_what_is_spared_inside_a_frozen_module_trains() -> None:
    model = Model()
    model.freeze(model, but=[model.one[1]])
    assert set(model.trained_state()) == {f"one.1.{name}" for name in model.one[1].state_dict()}
    model.train()
    assert model.one[1].training
    assert not model.one[2].training


def test_what_rests_has_no_gradient_keeps_evaluation_mode_and_buffers_and_still_counts_as_trained() -> None:
    model = Model().train()
    model.two[0].bias.requires_grad_(False)
    state, numbers = model.trained_state().keys(), model.num_parameters()
    model(torch.randn(8, 2)).backward()
    model.let_rest(model, but=[model.two[1]])
    assert all(parameter.grad is None for parameter in model.one.parameters())  # those of before are gone
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for part in (model, model.train()):
        assert {name for name, module in part.named_modules() if module.training} == {"two.1"}
    model.zero_grad()
    model(torch.randn(8, 2)).backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == {
        "two.1.weight",
        "two.1.bias",
    }
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"two.1.running_mean", "two.1.running_var", "two.1.num_batches_tracked"}
    assert (model.trained_state().keys(), model.num_parameters()) == (state, numbers)


def test_waking_ends_a_rest_and_leaves_what_is_frozen() -> None:
    model = Model().train()
    model.freeze(model.one[1])
    model.two[0].bias.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    model.let_rest(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.let_rest(model.two)
    assert model.one[0].weight.requires_grad  # a rest replaces the one before
    assert model.training and model.one[2].training
    model.wake()
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert [name for name, part in model.named_modules() if not part.training] == ["one.1"]
    model.eval().let_rest(model.two)
    model.wake()
    assert not any(part.training for part in model.modules())


def test_a_single_parameter_may_train_while_its_module_rests_in_evaluation_mode() -> None:
    model = Model()
    bias, mean = model.one[1].bias, model.one[1].running_mean.clone()
    model.freeze(model, but=[bias])
    assert set(model.trained_state()) == {"one.1.bias"}
    model.train()
    model(torch.randn(8, 2)).backward()
    assert bias.grad is not None
    assert not model.one[1].training
    assert torch.equal(model.one[1].running_mean, mean)


def test_the_trained_state_is_parameters_with_a_gradient_and_buffers_that_are_not_frozen() -> None:
    model = Model()
    model.freeze(model.one)
    model.two[0].weight.requires_grad_(False)
    running = ["running_mean", "running_var", "num_batches_tracked"]
    assert set(model.trained_state()) == {
        "two.0.bias",
        "two.1.weight",
        "two.1.bias",
        *(f"two.1.{name}" for name in running),
    }
    assert model.num_parameters() == (2 + 2 + 2, sum(parameter.numel() for parameter in model.parameters()))


def test_loading_puts_the_values_in_place() -> None:
    one, other = Model(), Model()
    weight = other.two[0].weight
    other.load_trained_state(one.trained_state())
    assert other.two[0].weight is weight
    assert torch.equal(weight, one.two[0].weight)
    assert weight.requires_grad


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_weights_of_another_model_are_refused_naming_one(change: str) -> None:
    model = Model()
    state = model.trained_state()
    if change == "missing":
        del state["two.0.bias"]
    else:
        state["two.0.bias2"] = torch.zeros(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"1 names differ, e\.g\. 'two\.0\.bias"):
        model.load_trained_state(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_of_another_width_are_refused_naming_both_shapes() -> None:
    with pytest.raises(CheckpointError, match=r"'one\.0\.weight' is \(3, 2\) in the weights and \(2, 2\) in the model"):
        Model().load_trained_state(Model(width=3).trained_state())

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune_kit.pretend import pretend_device, pretend_fabric


class Everything(nn.Module):
    """The kinds of layers that plugins are made of; can forget a tensor on the CPU."""

    def __init__(self, forgets: bool) -> None:
        super().__init__()
        self.forgets = forgets
        self.embed, self.conv = nn.Embedding(50, 8), nn.Conv1d(8, 8, 3, padding=1)
        self.norm, self.gru, self.linear = nn.LayerNorm(8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x)
        if self.forgets:
            hidden = hidden + torch.arange(x.shape[1])[:, None]  # without device=x.device
        hidden = self.norm(self.conv(hidden.mT).mT).relu()
        hidden = hidden + self.attention(hidden, hidden, hidden, need_weights=False)[0]
        hidden = hidden.masked_fill((x == 3).unsqueeze(-1), 0.0) + F.scaled_dot_product_attention(
            hidden, hidden, hidden
        )
        hidden, _ = self.gru(self.linear(hidden))
        return F.linear_cross_entropy(hidden[x != 0], self.embed.weight, x[x != 0])


def ids() -> Tensor:
    return torch.arange(28).view(4, 7)


def losses(device: torch.device | str, forgets: bool = False) -> list[float]:
    torch.manual_seed(0)
    model, x = Everything(forgets), ids()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)  # before the move: parameters keep their identity
    model.to(device)
    found = []
    for _ in range(4):
        loss = model(x.to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append(loss.item())
    return found


def test_training_gives_the_numbers_of_the_cpu() -> None:
    on_cpu = losses("cpu")
    with pretend_device() as device:
        assert losses(device) == pytest.approx(on_cpu, abs=1e-4)
    assert on_cpu[-1] < on_cpu[0]


def test_a_tensor_forgotten_on_the_cpu_is_caught() -> None:
    with (
        pretend_device() as device,
        pytest.raises(RuntimeError, match=r"all tensors to be on the same device.*\(7, 1\)"),
    ):
        losses(device, forgets=True)


def test_a_batch_forgotten_on_the_cpu_is_caught() -> None:
    with pretend_device() as device, pytest.raises(RuntimeError, match="same device"):
        Everything(forgets=False).to(device)(ids())


def mixtures(here: Tensor, there: Tensor) -> list:
    """Operations that CUDA refuses between two devices."""
    return [
        lambda: here + there,
        lambda: here.gather(0, there),
        lambda: here.scatter(0, there, there),
        lambda: torch.cat([here, there]),
        lambda: torch.where(here > 1, here, there),
        lambda: here.add_(there),
        lambda: torch.searchsorted(here, there),
        lambda: there[here],
        lambda: F.embedding(here, there.float().unsqueeze(1)),
    ]


@pytest.mark.parametrize("which", range(9))
def test_an_operation_that_mixes_devices_is_refused(which: int) -> None:
    with pretend_device() as device:
        mixed, fine = (
            mixtures(torch.arange(3).to(device), torch.arange(3))[which],
            mixtures(torch.arange(3), torch.arange(3))[which],
        )
        fine()
        with pytest.raises(RuntimeError, match="same device"):
            mixed()


def test_what_cuda_allows_is_allowed() -> None:
    with pretend_device() as device:
        x = torch.arange(6.0).to(device)
        assert (x + torch.tensor(1.0)).tolist() == [1, 2, 3, 4, 5, 6]  # a scalar
        assert x[torch.tensor([2, 0])].tolist() == [2, 0]  # indices
        assert x[torch.tensor([True, False] * 3)].tolist() == [0, 2, 4]
        x[torch.tensor([0])] = torch.tensor(9.0)
        assert torch.empty(6).copy_(x).tolist() == [9, 1, 2, 3, 4, 5]
        assert torch.zeros(6, device=device).copy_(torch.ones(6)).sum().item() == 6


def test_results_are_where_their_arguments_are() -> None:
    with pretend_device() as device:
        x = torch.randn(2, 3, device=device)
        made = [
            x @ x.mT,
            x.softmax(-1),
            x.sum(),
            x.argmax(-1),
            torch.zeros_like(x),
            torch.zeros(2, device=device),
            x[0],
        ]
        made += [
            torch.tensor([1], device=device),
            x.new_ones(2),
            torch.arange(3, device=device),
            F.one_hot(x.argmax(-1), 3),
        ]
        assert {tensor.device for tensor in made} == {device}
        assert x.cpu().device.type == "cpu"
        assert torch.randn(2).device.type == "cpu"


def test_operations_in_place_change_the_tensor_and_its_shape() -> None:
    with pretend_device() as device:
        x = torch.arange(6, device=device).view(2, 3)
        view = x[0]
        view.add_(10)
        assert x.tolist() == [[10, 11, 12], [3, 4, 5]]
        x.t_()
        assert x.shape == (3, 2)
        assert x.tolist() == [[10, 3], [11, 4], [12, 5]]


def test_autocast_does_nothing() -> None:
    with pretend_device() as device, torch.autocast(device.type, dtype=torch.bfloat16):
        assert nn.Linear(2, 2).to(device)(torch.ones(1, 2, device=device)).dtype == torch.float32


def test_a_fabric_moves_module_and_optimizer() -> None:
    with pretend_device() as device:
        fabric, module = pretend_fabric(), nn.Linear(2, 1)
        before = module.weight.detach().clone()
        wrapped, optimizer = fabric.setup(module, torch.optim.Adam(module.parameters(), 0.1))
        fabric.backward(wrapped(torch.ones(1, 2, device=device)).sum())
        optimizer.step()
        assert fabric.device == device
        assert module.weight.device == device
        torch.testing.assert_close(module.weight.detach().cpu(), before - 0.1, atol=1e-4, rtol=0)


def test_the_device_is_gone_after_the_block() -> None:
    with pretend_device() as device:
        torch.zeros(1, device=device)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros(1, device=device)
    assert torch.__future__.get_swap_module_params_on_conversion() is False

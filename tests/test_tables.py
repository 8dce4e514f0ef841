import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune_kit.tables import OutputLayer, gradients_by_row, trained_tables
from finetune_kit.trainable import Trainable


class Several(Trainable):
    """Tables of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.still, self.tied = nn.Embedding(5, 2), nn.Embedding(5, 2), nn.Embedding(5, 2)
        self.made = nn.utils.parametrizations.weight_norm(nn.Embedding(5, 2))
        self.output, self.plain = OutputLayer(2, 5), nn.Linear(2, 5)
        self.freeze(self.still)

    def forward(self, batch: Tensor) -> Tensor:
        hidden = sum(part(batch) for part in (self.items, self.still, self.tied, self.made))
        rows, bias = self.output.rows(batch)
        whole = self.plain(hidden) + F.linear(hidden, self.tied.weight)
        return ((rows * hidden).sum(dim=1) + bias).sum() + whole.square().sum()


def test_only_trained_weights_that_are_looked_up_alone_have_sparse_gradients() -> None:
    module = Several()
    assert trained_tables(module) == [module.items, module.tied, module.output]
    with gradients_by_row(module):
        module(torch.tensor([1, 1, 3])).backward()
    sparse = {name for name, p in module.named_parameters() if p.grad is not None and p.grad.is_sparse}
    assert sparse == {"items.weight", "output.weight"}
    assert module.still.weight.grad is None
    assert not any(part.sparse for part in (module.items, module.still, module.tied, module.made, module.output))


def test_a_table_that_rests_has_sparse_gradients_once_it_wakes() -> None:
    module = Several()
    module.let_rest(module.items)
    with gradients_by_row(module):
        assert module.items.sparse
        module.wake()
        module(torch.tensor([1])).backward()
    assert module.items.weight.grad is not None and module.items.weight.grad.is_sparse


def test_a_crash_leaves_gradients_as_they_were() -> None:
    module = Several()
    with pytest.raises(RuntimeError), gradients_by_row(module):
        raise RuntimeError
    assert not module.items.sparse


def test_the_output_layer_looks_up_what_it_computes() -> None:
    layer, hidden = OutputLayer(3, 5), torch.randn(4, 3)
    weight, bias = layer.rows(torch.tensor([4, 1]))
    torch.testing.assert_close(F.linear(hidden, weight, bias), layer(hidden)[:, [4, 1]])

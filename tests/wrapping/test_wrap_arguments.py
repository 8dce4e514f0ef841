import pytest
import torch
from torch import nn

from finetune_kit import wrap
from finetune_kit.errors import PluginError


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(6, 4, padding_idx=0)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.items(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


GOOD = {"embedding": "items", "blocks": "layers", "max_length": 5}


@pytest.mark.parametrize(
    ("model", "changed", "words"),
    [
        ("model", {}, "'model' is no nn.Module"),
        (Model, {}, "is no nn.Module; give an instance, not the class"),
        (Model(), {"max_length": "20"}, "max_length='20' is no length; give a whole number, at least 1"),
        (Model(), {"max_length": 0}, "max_length=0 is no length"),
        (Model(), {"padding": "Left"}, "padding='Left' is no side. Did you mean 'left'? Use left or right"),
        (Model(), {"blocks": ["layers.0", "layers.0"]}, "names 'layers.0' twice; name every block once"),
    ],
)
def test_an_argument_that_cannot_be_is_refused_in_one_line(model, changed, words):
    with pytest.raises(PluginError) as caught:
        wrap(model, **{**GOOD, **changed})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_to_finish_may_be_said_by_none():
    assert len(wrap(Model(), **GOOD, finish=None).blocks) == 2

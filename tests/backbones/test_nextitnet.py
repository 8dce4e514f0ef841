from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune_kit.errors import OptionError
from finetune_kit.options import resolve
from finetune_kit.testing import BackboneContract, random_sequence, randomise
from ftkit_backbones.nextitnet import NextItNet, NextItNetOptions

GOLDEN = Path(__file__).parents[1] / "golden"


class TestNextItNet(BackboneContract):
    backbone = "nextitnet"
    options = {"dim": 8, "num_blocks": 3, "dilations": (1, 2)}  # noqa: RUF012  (as in a plugin author's test)


class TestNextItNetOfTheAuthors(BackboneContract):
    backbone = "nextitnet"
    options = {"dim": 6, "num_blocks": 2, "mask_padding": False}  # noqa: RUF012
    ignores_padding = False


def test_every_block_computes_what_the_authors_code_computes() -> None:
    golden = load_file(GOLDEN / "nextitnet.safetensors")
    backbone = NextItNet(29, 12, NextItNetOptions(dim=8, num_blocks=4, mask_padding=False))
    state = {name: tensor for name, tensor in golden.items() if name.startswith("blocks.")}
    backbone.load_state_dict({**state, "item_embedding.weight": golden["embedding.weight"]})
    sequence = golden["input.sequence"]
    hidden, context = backbone.embed(sequence), backbone.prepare(sequence)
    for k, block in enumerate(backbone.blocks):
        hidden = block(hidden, context)
        torch.testing.assert_close(hidden, golden[f"output.hidden.{k}"], atol=1e-5, rtol=0)
    torch.testing.assert_close(backbone(sequence), golden["output.hidden.3"], atol=1e-5, rtol=0)


def test_blocks_have_the_dilations_of_the_paper() -> None:
    backbone = NextItNet(5, 12, NextItNetOptions(dim=2, num_blocks=4))
    assert [(b.conv1.dilation[0], b.conv2.dilation[0]) for b in backbone.blocks] == [
        (1, 2),
        (4, 8),
        (1, 2),
        (4, 8),
    ]


def test_reach_is_exactly_how_far_a_block_looks_back() -> None:
    backbone = randomise(NextItNet(9, 60, NextItNetOptions(dim=4, num_blocks=2, dilations=(2, 1))))
    for block in backbone.blocks:
        hidden = torch.randn(1, 40, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
        block(hidden, backbone.prepare(torch.ones(1, 40, dtype=torch.int64)))[0, -1].sum().backward()
        seen = hidden.grad[0].abs().sum(-1).nonzero().flatten()
        assert 39 - seen.min() == block.reach
    assert [block.reach for block in backbone.blocks] == [2 * (2 + 4), 2 * (1 + 2)]


def test_the_last_position_needs_few_positions_of_the_last_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = NextItNet(9, 100, NextItNetOptions(dim=4, num_blocks=2, dilations=(1,)))
    seen = []
    for block in backbone.blocks:
        block.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    backbone.user_vectors(random_sequence(2, 100, 9))
    assert seen == [13, 7]  # 1 + 6 + 6 and 1 + 6


def test_padding_is_no_item_however_the_embedding_of_0_looks() -> None:
    backbone = randomise(NextItNet(9, 12, NextItNetOptions(dim=4, num_blocks=2)))
    sequence = torch.tensor([[0, 0, 3, 4, 5]])
    before = backbone.user_vectors(sequence)
    backbone.item_embedding.weight.data[0] = 7.0
    assert torch.equal(backbone.user_vectors(sequence), before)


@pytest.mark.parametrize("options", [{"dim": 0}, {"num_blocks": 0}, {"dilations": "0,1"}, {"kernel_size": 0}])
def test_sizes_of_nothing_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        resolve(NextItNetOptions, options, "backbone")

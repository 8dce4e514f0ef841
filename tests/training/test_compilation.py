from pathlib import Path

import pytest
import torch
from small_runs import runner, whole_run
from torch import nn

from finetune_kit.backbone import Context
from finetune_kit.data.dataset import Dataset
from finetune_kit.errors import OptionError
from finetune_kit.layers import DilatedBlock, NormReLU
from finetune_kit.training import compilation
from finetune_kit.training.compilation import compile_blocks
from ftkit_uaf.branches import TwoBranchBlock

pytestmark = [  # of torch's own doing, while it compiles
    pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_fused_computes_the_same_and_has_the_same_gradients(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain, fused = NormReLU(8), NormReLU(8)
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    fused.load_state_dict(plain.state_dict())
    fused.compile()
    values, mask = torch.randn(3, 5, 8, dtype=dtype), (torch.rand(3, 5, 1) < 0.7).float()
    for given in (None, mask):
        found = []
        for module in (plain, fused):
            module.zero_grad()
            hidden = values.clone().requires_grad_()
            output = module(hidden, given)
            (output * torch.arange(8)).sum().backward()
            found.append([output, hidden.grad, module.weight.grad, module.bias.grad])
        exact = 1e-5 if dtype == torch.float32 else 3e-2
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, atol=exact, rtol=exact)


def test_blocks_decide_what_of_them_is_compiled() -> None:
    block = TwoBranchBlock(DilatedBlock(4, 1))
    holder = nn.Module()
    holder.blocks = nn.ModuleList([block, nn.TransformerEncoderLayer(4, 1, 8)])
    compile_blocks(holder, torch.device("cpu"))
    assert block.frozen.norm1._is_compiled
    assert block.tuned.norm2._is_compiled
    assert block._compiled_call_impl is None
    assert holder.blocks[1]._compiled_call_impl is not None


@pytest.mark.parametrize("backbone", ["nextitnet", pytest.param("sasrec", marks=pytest.mark.slow)])
def test_a_compiled_run_is_that_which_is_not_up_to_rounding(backbone: str, dataset: Dataset, tmp_path: Path) -> None:
    metrics, weights = [], []
    for compiled in (False, True):
        made = runner(dataset, "uaf-hard", run={"backbone": backbone, "compile": compiled}, finetune={"epochs": 1})
        metrics.append(whole_run(made, tmp_path / str(compiled))[0])
        weights.append(made)
    assert metrics[0]["test"]["full"]["mrr@5"] == pytest.approx(metrics[1]["test"]["full"]["mrr@5"], abs=0.02)


def test_where_nothing_can_be_compiled_the_option_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(function: object) -> None:
        raise RuntimeError("no compiler found\nand more")

    monkeypatch.setattr(compilation.torch, "compile", fails)
    with pytest.raises(OptionError, match=r"run.compile: torch.compile does not work here \(no compiler found\)"):
        compile_blocks(nn.Module(), torch.device("cpu"))


def test_single_positions_go_through_what_is_compiled_too() -> None:
    torch.manual_seed(0)
    block = DilatedBlock(4, 1)
    hidden = torch.randn(2, 12, 4)
    given = block.inputs_for((0,), 12)
    assert given is not None
    context = Context(torch.ones(2, 12, 1), given=given, wanted=(0,))
    some = hidden[:, [-1 - step for step in given]]
    plain = block(some, context)
    block.compile()
    torch.testing.assert_close(block(some, context), plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain[:, -1], block(hidden, Context(torch.ones(2, 12, 1)))[:, -1], atol=1e-5, rtol=1e-5)

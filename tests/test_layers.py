import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_kit.backbone import Context
from finetune_kit.layers import CausalConv1d, DilatedBlock, rolled

shapes = st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 5))


@settings(max_examples=60, deadline=None)
@given(shape=shapes, dilation=st.integers(1, 5), kernel_size=st.integers(1, 4), seed=st.integers(0, 99))
def test_a_causal_convolution_equals_conv1d_padded_in_front(
    shape: tuple[int, int, int], dilation: int, kernel_size: int, seed: int
) -> None:
    torch.manual_seed(seed)
    conv = CausalConv1d(shape[2], dilation, kernel_size)
    x = torch.randn(shape, requires_grad=True)
    expected = F.conv1d(F.pad(x.mT, (conv.reach, 0)), conv.weight, conv.bias, dilation=dilation).mT
    found = conv(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn(shape)
    of = [x, conv.weight, conv.bias]
    for one, other in zip(
        torch.autograd.grad((found * weight).sum(), of),
        torch.autograd.grad((expected * weight).sum(), of),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_causal_convolution_by_hand() -> None:
    conv = CausalConv1d(1, dilation=2, kernel_size=3)
    conv.weight.data = torch.tensor([[[100.0, 10.0, 1.0]]])  # two dilations back, one dilation back, here
    conv.bias.data.zero_()
    out = conv(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).view(1, 5, 1))
    assert out.flatten().tolist() == [1, 2, 13, 24, 135]


def test_a_dilated_block_is_equations_1_and_2() -> None:
    torch.manual_seed(0)
    block, hidden = DilatedBlock(4, dilation=2), torch.randn(2, 9, 4)

    def conv(x: torch.Tensor, layer: CausalConv1d, dilation: int) -> torch.Tensor:
        return F.conv1d(F.pad(x.mT, (2 * dilation, 0)), layer.weight, layer.bias, dilation=dilation).mT

    def norm(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-8).sqrt()

    branch = norm(conv(norm(conv(hidden, block.conv1, 2)).relu(), block.conv2, 4)).relu()
    torch.testing.assert_close(block(hidden, Context(None)), branch + hidden, atol=1e-5, rtol=1e-5)


def test_masked_positions_enter_neither_convolution() -> None:
    torch.manual_seed(0)
    block, hidden = DilatedBlock(4, dilation=1), torch.randn(1, 8, 4)
    mask = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1.0]).view(1, 8, 1)
    alone = block(hidden[:, 3:], Context(mask[:, 3:]))
    torch.testing.assert_close(block(hidden, Context(mask))[:, 3:], alone, atol=1e-6, rtol=1e-5)


def test_a_blocks_sites_are_its_convolutions() -> None:
    block = DilatedBlock(4, dilation=1)
    assert [type(block.get_submodule(site)) for site in block.sites] == [CausalConv1d, CausalConv1d]


def test_rolling_to_the_left_and_back() -> None:
    hidden = torch.tensor([[[0.0], [1.0], [2.0]], [[0.0], [0.0], [3.0]]])
    shift = torch.tensor([1, 2])
    assert rolled(hidden, shift).squeeze(-1).tolist() == [[1, 2, 0], [3, 0, 0]]
    assert torch.equal(rolled(rolled(hidden, shift), -shift), hidden)

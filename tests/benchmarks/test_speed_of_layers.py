"""Why `CausalConv1d` is a matrix product per tap: run with `make bench` and compare the medians."""

import pytest
import torch
import torch.nn.functional as F

from finetune_kit.layers import CausalConv1d

pytestmark = pytest.mark.benchmark(group="causal convolution, forward and backward")


def with_conv1d(layer, hidden):
    return F.conv1d(F.pad(hidden.mT, (layer.reach, 0)), layer.weight, layer.bias, dilation=layer.dilation).mT


@pytest.mark.parametrize("dilation", [1, 8])
@pytest.mark.parametrize("how", ["taps", "conv1d"])
def test_a_causal_convolution_of_256_users(benchmark, how, dilation):
    layer = CausalConv1d(64, dilation)
    hidden = torch.randn(50, 256, 64, requires_grad=True).transpose(0, 1)  # in memory as its neighbours leave it
    forward = layer if how == "taps" else lambda hidden: with_conv1d(layer, hidden)
    assert torch.allclose(forward(hidden), with_conv1d(layer, hidden), atol=1e-5)
    benchmark(lambda: forward(hidden).sum().backward())

import torch
from finetune_kit import ItemTask
from finetune_kit.testing import StrategyContract, backbones, batches, installed_backbone, random_batch, tiny_backbones
from hypothesis import given, settings

from ftkit_my_strategy.strategy import MyStrategy


class TestMyStrategy(StrategyContract):
    """All that a strategy promises, on each of these backbones."""

    strategy = "my-strategy"
    backbones = (*tiny_backbones(), installed_backbone("nextitnet", dim=8, num_blocks=2))


def build(backbone, **options):
    """Return the strategy on a backbone, for a target domain of 9 items, as `random_batch` has it."""
    filled = MyStrategy.Options(**options)
    return MyStrategy(backbone, ItemTask(backbone.dim, 9), filled).eval()


def test_equation_1_by_hand():
    strategy, batch = build(tiny_backbones()[0](20, 12)), random_batch()
    h = strategy.backbone.user_vectors(batch.sequence)
    with torch.no_grad():
        strategy.gain[0] = 3.0
    vectors = strategy.encode(batch).vectors
    torch.testing.assert_close(vectors[:, 0], 3.0 * h[:, 0])
    torch.testing.assert_close(vectors[:, 1:], h[:, 1:])


@settings(max_examples=20, deadline=None)
@given(backbone=backbones(), batch=batches())
def test_at_first_it_computes_what_the_backbone_does_for_any_shape(backbone, batch):
    expected = backbone.user_vectors(batch.sequence)
    torch.testing.assert_close(build(backbone).encode(batch).vectors, expected)


def test_it_trains_the_head_and_the_gain_and_if_asked_the_backbone():
    backbone = tiny_backbones()[0]
    assert {name.split(".")[0] for name in build(backbone(20, 12)).trained_state()} == {"gain", "task"}
    assert "backbone" in {name.split(".")[0] for name in build(backbone(20, 12), train_backbone=True).trained_state()}

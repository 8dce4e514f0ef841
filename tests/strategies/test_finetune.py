import pytest

from finetune_kit.errors import OptionError
from finetune_kit.options import resolve
from finetune_kit.plugins import installed
from finetune_kit.strategy import Strategy
from finetune_kit.task import ItemTask
from finetune_kit.testing import StrategyContract, TinyBackbone


class TestFinetuneZero(StrategyContract):
    strategy = "finetune-zero"


class TestFinetuneCls(StrategyContract):
    strategy = "finetune-cls"


class TestFinetuneLast1(StrategyContract):
    strategy = "finetune-last1"


class TestFinetuneLast2(StrategyContract):
    strategy = "finetune-last2"


class TestFinetuneAll(StrategyContract):
    strategy = "finetune-all"


def build(name: str, num_blocks: int = 4, **options: object) -> Strategy:
    component = installed().component("strategy", name)
    strategy = component.load()
    filled = resolve(strategy.Options, {**component.preset, **options}, "strategy")
    backbone = TinyBackbone(5, 6, TinyBackbone.Options(num_blocks=num_blocks))
    return strategy(backbone, ItemTask(backbone.dim, 3), filled)


def trained_parts(strategy: Strategy) -> set[str]:
    """Names up to the block, e.g. ``backbone.blocks.3``."""
    return {".".join(name.split(".")[: 3 if ".blocks." in name else 2]) for name in strategy.trained_state()}


BLOCKS = [f"backbone.blocks.{k}" for k in range(4)]


@pytest.mark.parametrize(
    ("name", "options", "parts", "frozen_stages"),
    [
        ("finetune-zero", {}, {"task.head", "backbone.item_embedding", *BLOCKS}, 0),
        ("finetune-cls", {}, {"task.head"}, 5),
        ("finetune-last", {}, {"task.head", BLOCKS[3]}, 4),
        ("finetune-last1", {}, {"task.head", BLOCKS[3]}, 4),
        ("finetune-last2", {}, {"task.head", *BLOCKS[2:]}, 3),
        ("finetune-last2", {"n": 4}, {"task.head", *BLOCKS}, 1),
        ("finetune-all", {}, {"task.head", "backbone.item_embedding", *BLOCKS}, 0),
    ],
)
def test_each_trains_what_the_paper_says(
    name: str, options: dict[str, int], parts: set[str], frozen_stages: int
) -> None:
    strategy = build(name, **options)
    assert trained_parts(strategy) == parts
    assert strategy.frozen_stages == frozen_stages


def test_only_finetune_zero_and_mtl_start_from_random_weights() -> None:
    components = installed().components("strategy").items()
    baselines = {name: component.load() for name, component in components if "ftkit_baselines" in component.target}
    assert {name for name, strategy in baselines.items() if not strategy.needs_pretrained} == {"finetune-zero", "mtl"}
    assert {name for name, strategy in baselines.items() if strategy.needs_source_batches} == {"mtl"}


def test_more_blocks_than_there_are_is_refused_with_both_numbers() -> None:
    with pytest.raises(OptionError, match=r"strategy.n = 5, but the backbone has 4 blocks; use at most that many"):
        build("finetune-last", n=5)


def test_no_block_at_all_is_refused() -> None:
    with pytest.raises(OptionError, match=r"strategy.n = 0: input should be greater than or equal to 1"):
        build("finetune-last", n=0)

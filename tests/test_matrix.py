import pytest

from finetune_kit.plugins import installed
from matrix import PAGE, contract, page

for _strategy in installed().components("strategy"):
    _contract = pytest.mark.slow(contract(_strategy))
    globals()[_contract.__name__] = _contract


def test_the_page_of_the_matrix_is_what_is_written_now():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tests/matrix.py"


def test_every_strategy_and_every_backbone_stands_in_the_matrix():
    text = PAGE.read_text(encoding="utf-8")
    for kind in ("strategy", "backbone"):
        assert not [name for name in installed().components(kind) if f"`{name}`" not in text]

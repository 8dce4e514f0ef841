import pytest

from finetune_kit.data.dataset import Dataset
from growing import LARGE, make

ANSWERS = tuple(f"t{number}" for number in range(9))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Seven source items, nine target items, a label of nine classes, forty users."""
    return make(tmp_path_factory.mktemp("data") / "made-up", LARGE, ANSWERS, users=40)

import pytest
from report_runs import synthetic

from finetune_kit.data.dataset import Dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """60 made-up users of three kinds; no test writes into its folder."""
    return synthetic(tmp_path_factory.mktemp("synthetic"))

from pathlib import Path

import pytest

from finetune_kit.data.dataset import Dataset
from ftkit_datasets.synthetic import Synthetic, SyntheticOptions


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("data") / "made-up"
    Synthetic(SyntheticOptions(users=60, max_length=12)).prepare(folder)
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pre-trained backbones may be left for other tests."""
    return tmp_path_factory.mktemp("bases")

import sys
from pathlib import Path

import pytest

from finetune_kit import Component


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the folder of a package in which ``model`` takes something from ``layers`` and nothing from ``other``."""
    folder = tmp_path / "package_with_parts"
    folder.mkdir()
    for name, text in {
        "__init__": "",
        "layers": "class Layer: ...",
        "other": "class Other: ...",
        "model": "import json\nfrom package_with_parts.layers import Layer\nclass Model(Layer): ...",
    }.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith("package_with_parts")]:
        del sys.modules[name]


@pytest.mark.parametrize(("changed", "matters"), [("model", True), ("layers", True), ("other", False)])
def test_the_hash_of_the_code_is_that_of_its_file_and_of_what_it_takes_from_its_package(
    package: Path, changed: str, matters: bool
) -> None:
    component = Component("model", "A model", "package_with_parts.model:Model")
    before = component.code_hash()
    with (package / f"{changed}.py").open("a", encoding="utf-8") as file:
        file.write("\n# changed\n")
    assert (component.code_hash() != before) == matters

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from documents import ROOT
from finetune_kit.config import read_toml

PROJECT = read_toml(ROOT / "pyproject.toml")["project"]
PACKAGES = {path.parent.name for path in (ROOT / "plugins").glob("*/__init__.py")}


def call(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def ftkit(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from finetune_kit.cli.main import main; main()", *arguments]


def test_every_package_in_plugins_has_an_entry_point_and_the_other_way_round():
    assert set(PROJECT["entry-points"]["finetune_kit.plugins"].values()) == PACKAGES


def test_the_installed_entry_points_are_those_of_the_project():
    from finetune_kit.plugins import installed

    ours = {plugin.name: plugin.module for plugin in installed().loaded if plugin.distribution == "finetune-kit"}
    assert ours == PROJECT["entry-points"]["finetune_kit.plugins"], (
        "run pip install --no-build-isolation --no-deps -e . again"
    )


def test_every_package_says_that_it_is_typed():
    for package in (ROOT / "finetune_kit", *(ROOT / "plugins" / name for name in PACKAGES)):
        assert (package / "py.typed").exists(), package


def test_the_version_is_the_same_everywhere():
    import finetune_kit

    assert finetune_kit.__version__ == PROJECT["version"]
    assert f"version: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_has_a_tested_version():
    import re

    extra = PROJECT["optional-dependencies"]["dev"]
    wanted = {re.split(r"[>=;\s]", line)[0] for line in [*PROJECT["dependencies"], *extra]} - {"tomli"}
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert wanted <= pinned


def test_a_wheel_has_every_module_and_marker_of_typing(tmp_path):
    copy = tmp_path / "copy"  # of the sources alone: building in the tree would leave a build/ there
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("finetune_kit", "plugins"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    call(*pip, "--wheel-dir", tmp_path, copy, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, root in (("finetune_kit", ROOT), ("plugins", ROOT / "plugins")):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix == ".py" or path.name == "py.typed":
                assert path.relative_to(root).as_posix() in names
    assert not [name for name in names if name.startswith(("tests", "plugins", "examples"))]
    assert [name for name in names if name.endswith("licenses/LICENSE")]


def test_a_plugin_installed_from_a_project_of_its_own_is_found_and_used(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "examples" / "ftkit-bitfit", source, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    pip = (
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    )
    call(*pip, "--target", tmp_path / "site", source, cwd=tmp_path)
    paths = {"PYTHONPATH": str(tmp_path / "site"), "FTKIT_CACHE": str(tmp_path / "cache")}
    assert "bitfit" in call(*ftkit("strategies"), cwd=tmp_path, **paths).stdout
    assert "ftkit-bitfit" in call(*ftkit("plugins", "list"), cwd=tmp_path, **paths).stdout
    plan = ("run", "--strategy", "bitfit", "--set", "data.users=50", "--dry-run")
    assert "would train" in call(*ftkit(*plan), cwd=tmp_path, **paths).stdout


@pytest.mark.parametrize(
    "statement", ["import finetune_kit", "import finetune_kit.cli.main", "import finetune_kit.plugins"]
)
def test_importing_the_package_imports_no_torch(statement, tmp_path):
    code = f"import sys; {statement}; sys.exit('torch' in sys.modules)"
    call(sys.executable, "-c", code, cwd=tmp_path)


def test_help_answers_fast(tmp_path):
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    call(*ftkit("--help"), cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 2, f"{seconds:.1f} seconds of processor time"


def test_ci_and_make_call_what_contributing_names():
    makefile, contributing = (ROOT / "Makefile").read_text(), (ROOT / "CONTRIBUTING.md").read_text()
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    for check in ("ruff check", "ruff format --check", "pyrefly check", "python -m pytest"):
        assert check in contributing
        assert check in hooks
        assert f"$(BIN)/{check}" in makefile
    assert os.access(ROOT / ".ci" / "run", os.X_OK)

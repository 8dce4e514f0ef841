import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from documents import ROOT, TINY
from finetune_kit.cli.scaffold import TEMPLATE_KINDS, template_files
from finetune_kit.config import read_toml
from scratch import ScratchEnvironment

PROJECT = read_toml(ROOT / "pyproject.toml")["project"]
NOT_SOURCES = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", ".*")
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
    for name in ("finetune_kit", "plugins"):
        shutil.copytree(ROOT / name, copy / name, ignore=NOT_SOURCES)
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
    for kind in TEMPLATE_KINDS:
        for path in template_files(kind):
            assert f"finetune_kit/cli/plugin-templates/{kind}/{path.as_posix()}" in names
    assert not [name for name in names if name.startswith(("tests", "plugins", "examples"))]
    assert [name for name in names if name.endswith("licenses/LICENSE")]


LISTINGS = {
    "strategy": "ftkit strategies show {}",
    "backbone": "ftkit backbones show {}",
    "policy": "ftkit policies show {}",
    "dataset": "ftkit data prepare {} --help",
}
USES = {
    "strategy": "ftkit run --strategy {} {} --output out",
    "backbone": "ftkit run --strategy peterrec --backbone {} {} --output out",
    "policy": "ftkit run --strategy uaf-hard --set strategy.policy={} {} --output out",
    "dataset": "ftkit data prepare {} {} --output out",
}
"""Small uses of a component, whose name takes the place of the first braces."""
SMALL_RUN = " ".join([*TINY, "--epochs 1"])


def check_project(environment: ScratchEnvironment, project: Path, kind: str, name: str, arguments: str) -> None:
    """Install a project as its users would, and see that it is listed, tested, keeps its contract, and is of use."""
    environment.run("pip install --quiet .", project)
    assert name in environment.run(LISTINGS[kind].format(name), project.parent)
    assert "passed" in environment.run("python -m pytest -q", project)
    before = sorted(path for path in project.rglob("*") if path.name != ".hypothesis")
    findings = json.loads(environment.run(f"ftkit plugins check {name} --json", project))
    assert sorted(path for path in project.rglob("*") if path.name != ".hypothesis") == before
    assert {one["state"] for one in findings} <= {"kept", "not checked"}
    assert len([one for one in findings if one["kind"] == kind and one["state"] == "kept"]) > 5
    environment.run(USES[kind].format(name, arguments), project.parent)
    assert (project.parent / "out").is_dir()


@pytest.mark.slow
def test_a_project_of_a_third_party_is_installed_found_tested_checked_and_used(tmp_path):
    shutil.copytree(ROOT / "examples" / "ftkit-bitfit", tmp_path / "project", ignore=NOT_SOURCES)
    environment = ScratchEnvironment(tmp_path)
    check_project(environment, tmp_path / "project", "strategy", "bitfit-norms", SMALL_RUN)
    assert "bitfit-norms" in environment.run("ftkit strategies", tmp_path)
    assert "ftkit-bitfit" in environment.run("ftkit plugins list", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TEMPLATE_KINDS)
def test_a_new_project_is_installed_found_tested_checked_and_used_untouched(tmp_path, kind):
    environment = ScratchEnvironment(tmp_path)
    environment.run(f"ftkit plugins new mine-{kind} --kind {kind}", tmp_path)
    arguments = SMALL_RUN
    if kind == "dataset":
        (tmp_path / "users.jsonl").write_text('{"user": "ann", "source": ["x"], "target": ["p"]}\n')
        arguments = "users.jsonl"
    check_project(environment, tmp_path / f"ftkit-mine-{kind}", kind, f"mine-{kind}", arguments)


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

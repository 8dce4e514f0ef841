import json
import shutil
from pathlib import Path

import pytest

from documents import TINY
from finetune_kit.exporting import formats


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run and its dataset."""
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def run(ftkit, made):
    if not (made / "run").exists():
        words = ["--strategy", "finetune-zero", "--epochs", "1", *TINY, "--output", str(made / "run")]
        assert ftkit("run", *words).code == 0
    return str(made / "run")


def test_a_run_is_written_described_and_replaced_only_if_asked(ftkit, run):
    done = ftkit("export", run, "--output", "served", "--format", "torch-export", "--top", "3")
    assert done.code == 0, done.err
    assert done.out.startswith("wrote served/model.pt2 and its vocabularies, ")
    assert "sequence (users, 10) → items (users, 3), scores (users, 3); outputs for 32 users differ " in done.out
    names = ["model.pt2", "signature.json", "source_items.jsonl", "target_items.jsonl"]
    assert sorted(path.name for path in Path("served").iterdir()) == names
    again = ["export", run, "--output", "served", "--format", "torch-export"]
    assert ftkit(*again).err == "ftkit: --output 'served' is an exported run; --overwrite replaces it\n"
    told = ftkit(*again, "--overwrite", "--json").json
    assert told == {"folder": "served", **json.loads(Path("served/signature.json").read_text())}
    assert list(told["outputs"]) == ["scores"]
    assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "onxx"], "--format 'onxx' is none of torch-export, onnx. Did you mean 'onnx'?"),
        (
            ["--format", "torch-export", "--opset", "18"],
            "--opset has no effect with --format torch-export; it is for onnx, leave it out",
        ),
        (["--output", "mine"], "--output 'mine' is not empty, and no exported run: name another folder"),
        (["--output", "mine/note.txt"], "--output 'mine/note.txt' is a file; name a folder"),
    ],
)
def test_mistakes_are_one_line_and_lose_nothing(words, said, ftkit, run):
    Path("mine").mkdir()
    Path("mine/note.txt").write_text("mine")
    words = [*words, *(["--output", "served"] if "--output" not in words else ["--format", "torch-export"])]
    done = ftkit("export", run, *words, "--overwrite")
    assert (done.code, done.out, done.err) == (2, "", f"ftkit: {said}\n")
    assert Path("mine/note.txt").read_text() == "mine"
    assert not Path("served").exists()


def test_what_is_no_run_is_refused(ftkit):
    Path("mine").mkdir()
    done = ftkit("export", "mine", "--output", "served", "--format", "torch-export")
    assert done.code == 2
    assert done.err.startswith("ftkit: 'mine' holds no model: there is no model.json; name a finished run's folder")


def test_a_missing_package_is_said_with_how_to_install_it(ftkit, run, monkeypatch):
    monkeypatch.setattr(formats, "_is_installed", lambda package: package != "onnxruntime")
    done = ftkit("export", run, "--output", "served", "--format", "onnx")
    assert done.err == "ftkit: --format onnx needs onnxruntime; pip install 'finetune-kit[onnx]'\n"


def test_a_full_disk_is_one_line_and_what_was_there_stays(ftkit, run):
    import resource

    shutil.copytree(run, "served")
    shutil.move("served/config.toml", "served/signature.json")  # looks like an exported run
    before = sorted(path.name for path in Path("served").iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        done = ftkit("export", run, "--output", "served", "--format", "torch-export", "--overwrite")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.code == 2
    assert done.err.splitlines()[-1].endswith("model.pt2 can't be written: File too large; make room")
    assert sorted(path.name for path in Path("served").iterdir()) == before
    assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []

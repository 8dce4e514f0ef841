"""No code of ours can unpickle, evaluate or load a class from a file; files that hold a payload are refused."""

import ast
import hashlib
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sent_files import change_json

from documents import ROOT, TINY
from finetune_kit.cli.scaffold import TEMPLATES

SOURCES = [path for folder in ("finetune_kit", "plugins", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]
UNPICKLE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
"""Modules that make objects, and so run code, out of bytes."""


def faults(source: str) -> list[str]:
    """Return what in a source could run code that a file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.partition(".")[0] in UNPICKLE]
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UNPICKLE:
            found.append(str(node.module))
        if isinstance(node, ast.Call):
            found += _fault_of_call(ast.unparse(node.func), {key.arg: ast.unparse(key.value) for key in node.keywords})
    return found


def _fault_of_call(name: str, given: dict[str | None, str]) -> list[str]:
    if name in ("eval", "exec", "compile", "__import__"):
        return [name]
    if name == "torch.load" and given.get("weights_only") != "True":
        return [name]
    if name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
        return [name]
    if name == "torch.export.load":  # it unpickles what a file asks it to
        return [name]
    return [name] if given.get("allow_pickle") == "True" else []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from yaml import load",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "import torch\ntorch.export.load('x')",
        "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.lib.format.read_array(file, allow_pickle=True)",
        "eval('1')",
        "exec('1')",
    ],
)
def test_the_search_finds_what_could_run_code(source):
    assert len(faults(source)) == 1


def test_no_source_of_ours_unpickles_or_evaluates():
    assert len(SOURCES) > 150
    assert set(TEMPLATES.rglob("*.py")) <= set(SOURCES)
    found = {str(path): faults(path.read_text(encoding="utf-8")) for path in SOURCES}
    own = ROOT / "finetune_kit" / "exporting" / "formats.py"  # loads the file that it wrote a moment ago, no other
    assert {path: names for path, names in found.items() if names} == {str(own): ["torch.export.load"]}


class Payload:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_the_payload_works(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


def payload(suffix: str, mark: Path) -> bytes:
    """Return bytes that leave a mark when they are unpickled, in the shell that the file's kind may have."""
    if suffix == ".npy":
        file = io.BytesIO()
        np.save(file, np.array([Payload(mark)], dtype=object), allow_pickle=True)
        return file.getvalue()
    return pickle.dumps(Payload(mark))


OF_RUN = ("config.toml", "model.json", "model.safetensors", "metrics.json", "earlier.parquet")


@pytest.mark.parametrize("name", OF_RUN)
def test_a_payload_in_a_run_never_runs(ftkit, sent, tmp_path, name):
    content = payload(Path(name).suffix, tmp_path / "mark")
    (sent.run / name).write_bytes(content)
    if name == "model.safetensors":  # whoever sends the weights sends their hash
        change_json(sent.run / "model.json", lambda facts: facts.update(hash=hashlib.sha256(content).hexdigest()))
    done = ftkit("evaluate", sent.run, "--data", sent.dataset)
    assert done.code == 2, done
    assert not (tmp_path / "mark").exists()


def test_a_payload_in_a_checkpoint_never_runs(ftkit, sent, tmp_path, monkeypatch):
    monkeypatch.chdir(sent.run.parent)
    (sent.run / "last").mkdir(exist_ok=True)
    (sent.run / "last" / "state.safetensors").write_bytes(payload(".safetensors", tmp_path / "mark"))
    (sent.run / "metrics.json").unlink()
    words = ["--data", "ds", "--strategy", "uaf-hard", "--epochs", "1", "--output", "run", *TINY[2:], "--resume"]
    assert ftkit("run", *words).code == 2
    assert not (tmp_path / "mark").exists()


OF_DATASET = ("dataset.json", "source.parquet", "target.parquet", "users.parquet", "source_items.parquet")


@pytest.mark.parametrize("name", OF_DATASET)
def test_a_payload_in_a_dataset_never_runs(ftkit, sent, tmp_path, name):
    content = payload(Path(name).suffix, tmp_path / "mark")
    (sent.dataset / name).write_bytes(content)
    if name.endswith(".parquet"):
        told = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        change_json(sent.dataset / "dataset.json", lambda manifest: manifest["files"].update({name: told}))
    done = ftkit("data", "inspect", sent.dataset)
    assert done.code == 2, done
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["source.items.npy", "source.offsets.npy", "source.flat.json"])
def test_a_payload_in_arrays_never_runs_and_they_are_written_anew(ftkit, sent, tmp_path, name):
    content, before = payload(Path(name).suffix, tmp_path / "mark"), (sent.dataset / name).read_bytes()
    (sent.dataset / name).write_bytes(content)
    if name.endswith(".npy"):
        change_json(sent.dataset / "source.flat.json", lambda stamp: stamp["bytes"].update({name: len(content)}))
    assert ftkit("data", "inspect", sent.dataset).code == 0
    assert not (tmp_path / "mark").exists()
    assert (sent.dataset / name).read_bytes() == before


def test_an_exported_model_is_loaded_without_unpickling_anything(ftkit, sent, tmp_path, monkeypatch):
    words = ["--data", sent.dataset, "--output", tmp_path / "served", "--format", "torch-export"]
    assert ftkit("export", sent.run, *words).code == 0
    unpickled = []
    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, lambda *given, **more: unpickled.append(given))
    assert torch.export.load(tmp_path / "served" / "model.pt2").module() is not None
    assert unpickled == []

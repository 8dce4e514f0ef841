import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from untrained import LENGTH, untrained_run

from documents import blocks
from finetune_kit.checksums import file_hash
from finetune_kit.data.batch import Batch
from finetune_kit.errors import PluginError
from finetune_kit.exporting.comparison import users_to_ask
from finetune_kit.exporting.export import export
from finetune_kit.exporting.formats import find_format
from finetune_kit.exporting.served import Served
from finetune_kit.recommendation.recommender import Recommender
from finetune_kit.strategy import Encoded, Strategy
from finetune_kit.training.assemble import Run
from finetune_kit.training.device import make_fabric

TORCH = find_format("torch-export")
SERVE = """
import json, sys
sys.modules["finetune_kit"] = None  # importing it now fails
import torch
asked = json.load(sys.stdin)
model = torch.export.load(asked["file"]).module()
answers = []
for sequence in asked["batches"]:
    outputs = model(sequence=torch.tensor(sequence))
    answers.append({name: value.tolist() for name, value in outputs.items()})
print(json.dumps(answers))
"""


def served_elsewhere(file: Path, batches: list[Tensor]) -> list[dict[str, Tensor]]:
    """Return what a model file says in a process that has no finetune-kit."""
    asked = json.dumps({"file": str(file), "batches": [batch.tolist() for batch in batches]})
    command = [sys.executable, "-I", "-c", SERVE]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True)
    return [{name: torch.tensor(value) for name, value in one.items()} for one in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def run(dataset) -> Run:
    run = untrained_run(dataset, "uaf-hard")
    with torch.no_grad():
        run.strategy.policy.output.bias.zero_()  # else everybody takes the same branch
    return run


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "served"
    export(run, folder, TORCH)
    return folder


@torch.no_grad()
def test_it_serves_hard_decisions_where_finetune_kit_is_not(run, exported):
    user, sequence = users_to_ask(run)
    batches = sequence.split((5, 1, len(sequence) - 6))
    found = served_elsewhere(exported / "model.pt2", batches)
    expected = Served(run.strategy)(sequence, user)
    assert 0 < expected["gates"].mean() < 1  # both branches are taken
    for name, value in expected.items():
        together = torch.cat([one[name] for one in found])
        assert torch.equal(together, value) if name == "gates" else torch.allclose(together, value, atol=1e-5)


def test_its_description_says_what_goes_in_and_what_comes_out(dataset, exported):
    told = json.loads((exported / "signature.json").read_text())
    assert told["inputs"] == {"sequence": {"type": "int64", "shape": ["users", LENGTH]}}
    assert told["outputs"] == {
        "scores": {"type": "float32", "shape": ["users", 9]},
        "gates": {"type": "float32", "shape": ["users", 1]},
    }
    assert (told["format"], told["file"], told["strategy"]) == ("torch-export", "model.pt2", "uaf-hard")
    assert told["run"] == {"hash": "a run's hash", "base": "a base's hash"}
    assert told["compared"]["num_users"] == 32
    assert told["compared"]["largest"] < 1e-5
    assert told["sha256"] == {
        path.name: file_hash(path) for path in sorted(exported.iterdir()) if path.name != "signature.json"
    }


def test_the_vocabularies_have_a_line_per_id(dataset, exported):
    for name, raw in (("source", dataset.raw_source_items()), ("target", dataset.raw_target_items())):
        lines = (exported / f"{name}_items.jsonl").read_text(encoding="ascii").splitlines()
        assert [json.loads(line) for line in lines] == raw


def test_nothing_of_this_machine_is_in_it(exported):
    here = re.compile(rb"site-packages|[\w/]+\.py\b|" + str(exported.parent).encode())
    contents = [path.read_bytes() for path in exported.iterdir() if path.suffix != ".pt2"]
    with zipfile.ZipFile(exported / "model.pt2") as archive:
        contents += [archive.read(name) for name in archive.namelist()]
    assert [here.findall(content) for content in contents if here.search(content)] == []


def test_users_are_asked_for_only_where_the_answer_depends_on_them(dataset, tmp_path):
    run = untrained_run(dataset, "uaf-random", "sasrec")
    told = export(run, tmp_path / "drawn", TORCH, top=3)
    assert told["inputs"] == {
        "sequence": {"type": "int64", "shape": ["users", LENGTH]},
        "user": {"type": "int64", "shape": ["users"]},
    }
    assert told["num_users"] == dataset.num_users
    assert list(told["outputs"]) == ["items", "scores", "gates"]
    lines = (tmp_path / "drawn" / "users.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == dataset.raw_users()
    assert_recommends(run, tmp_path / "drawn")


def assert_recommends(run, folder) -> None:
    """Check that a served model, called as docs/export.md says, answers as `ftkit recommend` does."""
    names: dict[str, Any] = {}
    (block,) = (block for _, block in blocks("docs/export.md", "python") if "def new_user" in block)
    exec(block, names)
    users, histories = ["u003", "somebody new", "ünicode"], [["a", "g", "c"], ["d", "dd"], list("fegacdcdc")]
    known = {raw: number for number, raw in enumerate(run.dataset.raw_users(), 1)}
    user = [known.get(raw) or names["new_user"](raw, run.dataset.num_users) for raw in users]
    sequence = np.zeros((3, LENGTH), dtype=np.int64)
    for row, history in zip(sequence, histories, strict=True):
        latest = [1 + run.dataset.raw_source_items().index(item) for item in history][-LENGTH:]
        row[-len(latest) :] = latest
    outputs = TORCH.open(folder / TORCH.file)({"sequence": sequence, "user": np.array(user)})
    raw = run.dataset.raw_target_items()
    expected = Recommender(run, make_fabric("cpu"), top=3).recommend(users, histories)
    for one, columns, scores in zip(expected, outputs["items"], outputs["scores"], strict=True):
        assert one.items == tuple(raw[column] for column in columns)
        assert one.scores == pytest.approx(scores, abs=1e-5)


class Branching(Strategy):
    """Encodes users in a way that depends on what they have."""

    needs_pretrained = False

    def build(self) -> None:
        pass

    def encode(self, batch: Batch) -> Encoded:
        vectors = self.backbone.user_vectors(batch.sequence)
        return Encoded(vectors if vectors.sum() > 0 else -vectors)


class Counting(Branching):
    """Takes the number of users for a number like any other."""

    def encode(self, batch: Batch) -> Encoded:
        return Encoded(self.backbone.user_vectors(batch.sequence) + torch.zeros(len(batch.sequence), 1))


class Failing(Branching):
    def encode(self, batch: Batch) -> Encoded:
        if torch.compiler.is_exporting():
            raise NotImplementedError("no graph of this\nat all")
        return super().encode(batch)


class Noisy(Branching):
    is_deterministic = False


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            Branching,
            r"what it does \(test_export\.py, line \d+\) depends on values, and one graph is to serve all users; "
            r"compute every case and select with torch\.where there, if torch\.compiler\.is_exporting\(\)",
        ),
        (
            Counting,
            r"something in it takes the number of users for a constant, e\.g\. len\(tensor\); take it from "
            r"tensor\.shape\[0\] instead",
        ),
        (
            Failing,
            r"NotImplementedError: no graph of this \(test_export\.py, line \d+\); ftkit --traceback shows where",
        ),
        (
            Noisy,
            "it evaluates with new noise each time, which a graph does not draw; serve it with ftkit recommend",
        ),
    ],
)
def test_what_can_not_be_exported_says_why_in_one_line(kind, said, dataset, tmp_path, capfd):
    with pytest.raises(PluginError, match=f"^'finetune-all' can't be exported: {said}$"):
        export(untrained_run(dataset, "finetune-all", kind=kind), tmp_path / "served", TORCH)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")

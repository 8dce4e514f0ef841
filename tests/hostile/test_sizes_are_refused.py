"""Files that claim more than they hold, or ask for models of any size: refused at once and in little memory."""

import gzip
import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import duckdb
import numpy as np
import pytest
import torch
from sent_files import assert_refused, change_json

from documents import ROOT
from finetune_kit.checkpoint import file_hash
from finetune_kit.data import text, zstd
from finetune_kit.data.dataset import Dataset
from finetune_kit.data.folder import describe_file
from finetune_kit.errors import CheckpointError, DataError, OptionError
from finetune_kit.foreign import DEEPEST, MOST_JSON, MOST_TOML, read_json, read_toml
from finetune_kit.training import sizes
from finetune_kit.training.sizes import refuse_other_shapes, refuse_too_large

MEMORY = 512 * 2**20


UNBOUNDED = {
    r"json\.loads?\([^)\n]*read_text|json\.load\(|tomllib\.load\(": "read_json or read_toml of foreign.py",
    r"read_parquet\(": "parquet_scan of data/database.py",
}


def unbounded(source: str) -> list[str]:
    """Return what would bound the reading of files in a source, where it is not used."""
    found = [advice for pattern, advice in UNBOUNDED.items() if re.search(pattern, source)]
    reads_tensors = re.search(r"\b(safe_open|load_file)\(", source) and "refuse_large_header(" not in source
    return found + (["refuse_large_header of foreign.py"] if reads_tensors else [])


def test_no_source_of_ours_reads_a_file_without_bounds():
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "finetune_kit").rglob("*.py")}
    own = {"database.py", "foreign.py"}  # what bounds it
    ours = {path: text for path, text in sources.items() if path.name not in own and "testing" not in path.parts}
    found = {str(path): unbounded(text) for path, text in ours.items()}
    assert {path: advice for path, advice in found.items() if advice} == {}
    for read in ("json.loads(path.read_text())", "tomllib.load(file)", "f'read_parquet({x})'", "load_file(path)"):
        assert len(unbounded(read)) == 1


@pytest.mark.parametrize(
    ("read", "most", "start", "depth"), [(read_json, MOST_JSON, "", 10**5), (read_toml, MOST_TOML, "a = ", 30_000)]
)
def test_a_json_or_toml_file_that_is_too_large_or_too_deep_is_refused(tmp_path, read, most, start, depth):
    path = tmp_path / "file"
    path.write_text(start + "[" * depth + "]" * depth)
    with pytest.raises(ValueError, match=f"deeper than {DEEPEST}"):
        read(path)
    with path.open("wb") as file:
        file.truncate(300 * 2**20)
    with pytest.raises(ValueError, match=f"more than {most:,} bytes"):
        read(path)


def test_a_toml_file_whose_keys_take_for_ever_is_refused(tmp_path):
    (tmp_path / "file").write_text(".".join("a" * 3000) + " = 1\n")
    with pytest.raises(ValueError, match="dots"):
        read_toml(tmp_path / "file")


def test_a_json_file_may_nest_as_deep_as_ours_do(tmp_path):
    value = 1
    for _ in range(DEEPEST - 1):
        value = [value]
    (tmp_path / "file").write_text(json.dumps(value))
    assert read_json(tmp_path / "file") == value
    (tmp_path / "file").write_text(json.dumps([value]))
    with pytest.raises(ValueError, match="deeper than"):
        read_json(tmp_path / "file")


LIMITED = """
import resource, sys, time
import finetune_kit.training.assemble, duckdb  # what is imported counts for itself
from pathlib import Path
from finetune_kit.checkpoint import load_model, read_facts, read_shapes
from finetune_kit.cli.result import dataset_of
from finetune_kit.data import text, zstd
from finetune_kit.data.dataset import Dataset
from finetune_kit.errors import FinetuneKitError
from finetune_kit.files import read_metrics, read_table
from finetune_kit.training.assemble import load_run

folder = Path(sys.argv[1])
whole = Dataset.open(folder / "whole" / "ds")
load_run(folder / "whole" / "run", whole)  # whatever is made once is made
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
for name in sys.argv[3:]:
    sent, started = folder / name, time.process_time()
    try:
        dataset = Dataset.open(sent / "ds")
        dataset.target
        load_run(sent / "run", dataset)
        read_metrics(sent / "run")
        read_table(sent / "run" / "instances.parquet")
        print(name, "was not refused")
    except FinetuneKitError as error:
        print(name, "refused" if time.process_time() - started < 1.0 else "too late", str(error), sep="|")
"""


def spoil_header(sent: Path) -> None:
    with (sent / "run" / "model.safetensors").open("wb") as file:
        file.write((2 * 10**8).to_bytes(8, "little") + b"{")
        file.truncate(3 * 10**8)


def spoil_tensors(sent: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}).encode()
    content = len(header).to_bytes(8, "little") + header
    (sent / "run" / "model.safetensors").write_bytes(content)
    rehash(sent / "run")


def spoil_counts(sent: Path) -> None:
    change_json(sent / "ds" / "dataset.json", lambda manifest: manifest["counts"].update(source_items=10**15))


def ask_for(sent: Path, old: str, new: str, **facts: object) -> None:
    """Let configuration and facts of the run and its base agree on something."""
    for folder in (sent / "run", *(sent / "pretrained").iterdir()):
        text = (folder / "config.toml").read_text()
        assert old in text
        (folder / "config.toml").write_text(text.replace(old, new))
        change_json(folder / "model.json", lambda told: told["backbone_options"].update(facts))


def rehash(folder: Path) -> None:
    change_json(folder / "model.json", lambda facts: facts.update(hash=file_hash(folder / "model.safetensors")))


def spoil_table(sent: Path) -> None:
    duckdb.execute(f"COPY (SELECT 1 AS user FROM range(5000000)) TO '{sent / 'run' / 'instances.parquet'}'")


SPOIL = {
    "header": (spoil_header, "its header claims 200,000,000 bytes"),
    "tensors": (spoil_tensors, "model.safetensors can't be read"),
    "counts": (spoil_counts, "counts 1000000000000000 source items"),
    "dim": (lambda sent: ask_for(sent, "dim = 8", "dim = 1000000000", dim=10**9), "not those of its configuration"),
    "more": (lambda sent: ask_for(sent, "dim = 8", "dim = 16", dim=16), "not those of its configuration"),
    "blocks": (
        lambda sent: ask_for(sent, "num_blocks = 1\n", "num_blocks = 1000000000\n", num_blocks=10**9),
        "not those of its configuration",
    ),
    "table": (spoil_table, "claims 5,000,000 values"),
    "metrics": (lambda sent: (sent / "run" / "metrics.json").write_bytes(b"[" * 10**5), "nests deeper"),
}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited as Linux does it")
def test_what_claims_any_size_is_refused_in_a_second_and_in_little_memory(made, tmp_path):
    for name in ("whole", *SPOIL):
        shutil.copytree(made, tmp_path / name)
    for name, (spoil, _) in SPOIL.items():
        spoil(tmp_path / name)
    (tmp_path / "limited.py").write_text(textwrap.dedent(LIMITED))
    command = [sys.executable, str(tmp_path / "limited.py"), str(tmp_path), str(MEMORY), *SPOIL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = dict(line.split("|", 1) for line in done.stdout.splitlines() if "|" in line)
    assert lines.keys() == SPOIL.keys(), done.stdout
    for name, (_, words) in SPOIL.items():
        assert lines[name].startswith("refused|"), lines[name]
        assert words in lines[name]


def test_the_command_line_says_it_in_one_line(ftkit, sent):
    change_json(sent.dataset / "dataset.json", lambda manifest: manifest["counts"].update(users=10**15))
    assert_refused(ftkit("run", "--data", sent.dataset, "--strategy", "lora"), "counts 1000000000000000 users")


def test_a_configuration_of_any_size_is_refused_before_it_is_built(ftkit, sent, monkeypatch):
    monkeypatch.setattr(sizes, "MOST_TENSORS", 500)
    words = ["--data", sent.dataset, "--strategy", "lora", "--output", "out"]
    assert_refused(ftkit("run", *words, "--set", "backbone.dim=1000000000"), "more than the", "GiB of memory")
    assert_refused(ftkit("run", *words, "--set", "backbone.num_blocks=1000000000"), "more than 500 parameter tensors")
    text = (sent.base / "config.toml").read_text()
    (sent.base / "config.toml").write_text(text.replace("dim = 8", "dim = 64"))
    change_json(sent.base / "model.json", lambda facts: facts["backbone_options"].update(dim=64))
    done = ftkit("finetune", "--from", sent.base, "--strategy", "lora", "--output", "out")
    assert_refused(done, "not those of its configuration")


@pytest.mark.parametrize("shape", ["(1000000000000000,)", "(-1,)", "()", "(3, 4)"])
@pytest.mark.parametrize("name", ["source.items.npy", "source.offsets.npy"])
def test_arrays_whose_header_claims_another_shape_are_written_anew(sent, name, shape):
    path = sent.dataset / name
    before = path.read_bytes()
    header = np.lib.format.header_data_from_array_1_0(np.load(path, allow_pickle=False))
    text = str({**header, "shape": None}).replace("None", shape).ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + before[128:]
    path.write_bytes(content)
    change_json(sent.dataset / "source.flat.json", lambda stamp: stamp["bytes"].update({name: len(content)}))
    Dataset.open(sent.dataset)
    assert path.read_bytes() == before


def test_offsets_that_lead_beyond_the_items_are_written_anew(sent):
    path = sent.dataset / "source.offsets.npy"
    before, offsets = path.read_bytes(), np.load(path, allow_pickle=False)
    offsets[3] = 10**12
    np.save(path, offsets)
    assert len(path.read_bytes()) == len(before)
    Dataset.open(sent.dataset)
    assert path.read_bytes() == before


def test_a_count_that_no_file_has_room_for_is_refused_though_the_file_claims_it(sent):
    path = sent.dataset / "source_items.parquet"
    made = "SELECT 1 AS id, 'x' AS raw FROM range(900000)"  # below what any file may claim
    duckdb.execute(f"COPY ({made}) TO '{path}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 900000)")

    def change(manifest):
        manifest["counts"].update(source_items=900000)
        manifest["files"]["source_items.parquet"] = describe_file(path)

    change_json(sent.dataset / "dataset.json", change)
    with pytest.raises(DataError, match=r"counts 900000 source items, .* has 900000 in"):
        Dataset.open(sent.dataset)


def test_a_line_or_a_gzip_file_without_end_is_refused(tmp_path, monkeypatch, ftkit, sent):
    monkeypatch.setattr(text, "MAX_LINE", 2**20)
    monkeypatch.setattr(text, "HARMLESS", 2**20)
    with gzip.open(tmp_path / "in.jsonl.gz", "wb") as file:
        file.write(b"[" * 2**21)
    words = ["recommend", sent.run, "--output", "out.jsonl", "--input"]
    assert_refused(ftkit(*words, "in.jsonl.gz"), "has a line of more than 1,048,576 bytes")
    with gzip.open(tmp_path / "s.csv.gz", "wb") as file:
        file.write(b"user,item,time\n" + b"a,i,1\n" * 2**19)
    files = ["--source", "s.csv.gz", "--target", "s.csv.gz"]
    assert_refused(ftkit("data", "prepare", "events", *files, "--output", "ds"), "unpacks from", "which text does not")


def test_a_zstd_file_that_unpacks_to_far_more_is_refused_before_it_is_unpacked(tmp_path, monkeypatch, ftkit):
    monkeypatch.setattr(zstd, "HARMLESS", 2**20)
    rows = "SELECT 'a' AS user, 'i' AS item, 1 AS time FROM range(300000)"
    duckdb.execute(f"COPY ({rows}) TO '{tmp_path}/s.csv.zst' (COMPRESSION zstd)")
    files = ["--source", "s.csv.zst", "--target", "s.csv.zst"]
    assert_refused(ftkit("data", "prepare", "events", *files, "--output", "ds"), "unpacks from", "which text does not")


def test_a_line_of_a_zstd_file_without_end_is_refused(tmp_path, ftkit):
    columns = "{'line': 'VARCHAR'}"
    (tmp_path / "plain").write_bytes(b"a" * (2**24 + 2**20))
    line = f"read_csv('{tmp_path}/plain', columns = {columns}, header = false, delim = '', max_line_size = {2**25})"
    duckdb.execute(f"COPY (SELECT line FROM {line}) TO '{tmp_path}/s.csv.zst' (HEADER false, COMPRESSION zstd)")
    files = ["--source", "s.csv.zst", "--target", "s.csv.zst"]
    assert_refused(ftkit("data", "prepare", "events", *files, "--output", "ds"), "s.csv.zst can't be read as zst")


def looks_at_numbers(num_in: int, num_out: int) -> torch.nn.Module:
    """Return a layer that can't be built without memory."""
    layer = torch.nn.Linear(num_in, num_out)
    assert layer.weight.sum().item() < 1e6
    return layer


def test_a_model_is_measured_without_taking_memory(tmp_path):
    with pytest.raises(OptionError, match=r"x would need more than the .* GiB"):
        refuse_too_large(lambda: torch.nn.Linear(10**9, 10**9), "x")
    refuse_too_large(lambda: torch.nn.Linear(10, 10), "x")
    refuse_too_large(lambda: 1 / 0, "x")  # what fails is built outright, and says why then
    same = {"weight": (10, 10), "bias": (10,)}
    refuse_other_shapes(lambda: torch.nn.Linear(10, 10).state_dict(), same, tmp_path)
    for other in ({"weight": (10, 10)}, {**same, "more": (1,)}, {**same, "bias": (9,)}):
        for build in (torch.nn.Linear, looks_at_numbers):
            with pytest.raises(CheckpointError, match="not those of its configuration"):
                refuse_other_shapes(lambda build=build: build(10, 10).state_dict(), other, tmp_path)


def test_measuring_leaves_random_numbers_and_devices_as_they_were():
    before = torch.random.get_rng_state()
    refuse_too_large(lambda: (torch.nn.Linear(3, 3), torch.rand(3)), "x")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.empty(1).device.type == "cpu"

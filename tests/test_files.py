"""Files that appear whole or not at all."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from finetune_kit.checksums import refuse_changed, write_checksums
from finetune_kit.errors import CheckpointError, StorageError
from finetune_kit.files import appearing, write_table, write_tensors, write_text

NOBODY = 2**22 + 1
"""More than any process's number on Linux."""


def fill_up(path: Path, text: str) -> None:
    with appearing(path) as partial:
        partial.write_text(text[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_on_a_full_disk_the_file_that_was_there_stays_and_the_line_names_it(tmp_path: Path) -> None:
    path = tmp_path / "numbers.txt"
    write_text(path, "old")
    with pytest.raises(StorageError) as caught:
        fill_up(path, "new numbers")
    assert str(caught.value) == f"{path} can't be written: No space left on device; make room"
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="limits on the size of files are POSIX's")
@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "x" * 10**6),
        lambda path: write_tensors(path, {"x": torch.zeros(10**6)}),
        lambda path: write_table(path, {"x": np.random.default_rng(0).random(10**6)}),
    ],
    ids=["text", "tensors", "table"],
)
def test_whoever_writes_a_full_disk_is_said_in_the_same_words(tmp_path: Path, write: Callable[[Path], None]) -> None:
    import resource

    path, (soft, hard) = tmp_path / "large", resource.getrlimit(resource.RLIMIT_FSIZE)
    write_text(path, "old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(StorageError, match=r"large can't be written: File too large; make room$"):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, fsync = [], os.fsync

    def watched(descriptor: int) -> None:
        seen.append((Path(f"/proc/self/fd/{descriptor}").readlink(), (tmp_path / "new").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write_text(tmp_path / "new", "text")
    partial = tmp_path / f".new.{os.getpid()}.partial"
    assert seen == [(partial, False), (tmp_path, True)]


def test_what_dead_processes_left_half_written_goes_and_what_living_ones_write_stays(tmp_path: Path) -> None:
    alive, dead, young = (tmp_path / f".a.txt.{number}.partial" for number in (1, NOBODY, NOBODY + 1))
    others = [tmp_path / ".a.txt.notes.partial", tmp_path / f".b.txt.{NOBODY}.partial", tmp_path / ".a.txt.partial"]
    for path in (alive, dead, young, *others):
        path.touch()
        if path != young:
            os.utime(path, (time.time() - 3600,) * 2)
    write_text(tmp_path / "a.txt", "text")
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (alive, young, *others)} | {"a.txt"}


def test_what_is_wrong_beside_a_full_disk_is_not_said_to_be_that(tmp_path: Path) -> None:
    for error in (OSError(errno.EIO, "Input/output error"), RuntimeError("no"), CheckpointError("os error 28")):
        with pytest.raises(type(error)), appearing(tmp_path / "a.txt"):
            raise error
        assert list(tmp_path.iterdir()) == []


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    write_text(tmp_path / "config.toml", "[run]\n")
    write_table(tmp_path / "split.parquet", {"user": np.arange(3)})
    write_text(tmp_path / "log.jsonl", "{}\n")
    write_checksums(tmp_path, {"metrics.json": "{}\n"})
    write_text(tmp_path / "metrics.json", "{}\n")
    return tmp_path


@pytest.mark.parametrize("name", ["config.toml", "split.parquet", "metrics.json"])
def test_a_file_that_was_changed_or_is_gone_is_named(finished: Path, name: str) -> None:
    refuse_changed(finished, "make it again")
    path = finished / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=rf"{name} was changed or damaged: .*; make it again$"):
        refuse_changed(finished, "make it again")
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"{name} is missing; make it again$"):
        refuse_changed(finished, "make it again")


def test_a_log_may_grow_and_folders_without_checksums_are_taken_as_they_are(finished: Path) -> None:
    (finished / "log.jsonl").write_text("more\n")
    refuse_changed(finished, "")
    (finished / "config.toml").write_text("other")
    (finished / "checksums.json").unlink()
    refuse_changed(finished, "")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sha256": 3}', "\xff"])
def test_checksums_that_can_t_be_read_are_named(finished: Path, text: str) -> None:
    (finished / "checksums.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"checksums\.json is damaged: .*; make it again$"):
        refuse_changed(finished, "make it again")


def test_tensors_that_share_memory_or_are_parts_of_others_are_written_as_they_are(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    tensors = {
        "whole": whole,
        "tied": whole,
        "row": whole[1],
        "turned": whole.T,
        "none": torch.empty(0),
        "one": whole.sum(),
    }
    write_tensors(tmp_path / "t.safetensors", tensors, {"told": "text"})
    found = load_file(tmp_path / "t.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_tensors_of_their_own_are_written_without_a_copy_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "clone", lambda tensor: pytest.fail("a copy"))
    write_tensors(tmp_path / "t.safetensors", {"x": torch.ones(3, 4), "y": torch.nn.Parameter(torch.ones(2))})

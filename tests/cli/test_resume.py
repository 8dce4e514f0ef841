"""`--resume`: what is gone on with, what is refused, and what an interrupted command leaves and says."""

import errno
import json
import os
import shlex
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from finetune_kit import Component, Tracker, hookimpl, plugins
from finetune_kit.errors import DataError
from finetune_kit.files import storing

TINY = [
    *("--set", "data.users=100"),
    *("--set", "data.max_length=10"),
    *("--set", "backbone.dim=8"),
    *("--set", "backbone.num_blocks=1"),
    *("--set", "pretrain.epochs=1"),
]
HARD = ["run", "--strategy", "uaf-hard", "--epochs", "1", *TINY]


def test_resume_of_a_finished_run_prints_it_again_and_of_another_configuration_is_refused(ftkit):
    first = ftkit(*HARD, "--output", "out", "--json").json
    assert ftkit(*HARD, "--output", "out", "--resume", "--json").json == first
    done = ftkit(*HARD, "--output", "out", "--resume", "--learning-rate", "0.1")
    assert done.code == 2
    assert "holds a run with other options" in done.err


class Stopper(Tracker):
    """Interrupts at the epoch named by the environment, as somebody at a keyboard would."""

    def record(self, stage, values):
        if os.environ.get("STOP_AT") == f"{stage}-{values['epoch']}":
            raise KeyboardInterrupt


@hookimpl
def ftkit_trackers():
    return [Component("stopper", "Interrupts", f"{__name__}:Stopper")]


@pytest.mark.parametrize("stop_at", ["pretrain-2", "finetune-1", "finetune-3"])
def test_an_interrupted_run_goes_on_and_ends_as_if_nothing_had_happened(ftkit, monkeypatch, stop_at):
    own = EntryPoint("stopper", __name__, plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [*entry_points(group=group), own])
    plugins.installed.cache_clear()
    try:
        arguments = [
            "run",
            "--strategy",
            "uaf-hard",
            *TINY[:-2],
            "--set",
            "pretrain.epochs=3",
            "--epochs",
            "4",
        ]
        arguments += ["--set", "run.trackers=jsonl,stopper", "--json"]
        whole = ftkit(*arguments, "--output", "one/whole").json
        monkeypatch.setenv("STOP_AT", stop_at)
        stopped = ftkit(*arguments, "--output", "two/halves")
        assert (stopped.code, stopped.out) == (130, "")
        command = shlex.join(["ftkit", *arguments, "--output", "two/halves", "--resume"])
        assert stopped.err.splitlines()[-1] == f"ftkit: interrupted; go on with: {command}"
        assert not Path("two/halves/metrics.json").exists()
        monkeypatch.delenv("STOP_AT")
        resumed = ftkit(*arguments, "--output", "two/halves", "--resume").json
    finally:
        plugins.installed.cache_clear()
    timeless = {"folder", "seconds", "instances_per_second"}
    assert {key: resumed[key] for key in resumed.keys() - timeless} == {
        key: whole[key] for key in whole.keys() - timeless
    }
    assert Path("two/halves/model.safetensors").read_bytes() == Path("one/whole/model.safetensors").read_bytes()


def test_resume_and_overwrite_contradict_each_other(ftkit):
    done = ftkit(*HARD, "--output", "out", "--resume", "--overwrite")
    assert (done.code, done.err.splitlines()[-1]) == (
        2,
        "ftkit: --resume goes on with a run and --overwrite replaces it; give one of them",
    )


def test_a_run_that_was_to_be_replaced_comes_back_when_the_new_one_fails(ftkit, monkeypatch):
    from finetune_kit.training.stages import Finetuning

    def fail(self):
        self.folder.mkdir()
        raise DataError("of some kind")

    ftkit(*HARD, "--output", "out")
    before = {path.name: path.read_bytes() for path in Path("out").iterdir() if path.is_file()}
    monkeypatch.setattr(Finetuning, "carry_out", fail)
    assert ftkit(*HARD, "--output", "out", "--overwrite").code == 2
    assert {path.name: path.read_bytes() for path in Path("out").iterdir() if path.is_file()} == before
    assert {path.name for path in Path().iterdir() if "replaced" in path.name} == set()


def test_a_replacement_that_was_interrupted_is_gone_on_with_and_only_then_is_the_old_run_gone(ftkit, monkeypatch):
    from finetune_kit.training.stages import Finetuning

    def interrupt(self, *arguments):
        raise KeyboardInterrupt

    old = ftkit(*HARD, "--output", "out", "--json").json
    new = [*HARD, "--output", "out", "--learning-rate", "0.01", "--json"]
    with monkeypatch.context() as patch:
        patch.setattr(Finetuning, "_fit", interrupt)
        for _ in range(2):
            stopped = ftkit(*new, "--overwrite")
            assert stopped.code == 130
            assert "--overwrite" not in stopped.err.splitlines()[-1]
            assert json.loads(Path(".out.replaced/metrics.json").read_text())["test"] == old["test"]
    assert ftkit(*new, "--resume").code == 0
    assert {path.name for path in Path().iterdir()} == {"out", "pretrained"}


def test_what_differs_from_the_run_that_is_gone_on_with_is_told_by_option(ftkit):
    ftkit(*HARD, "--output", "out")
    done = ftkit(*HARD, "--output", "out", "--resume", "--learning-rate", "0.1", "--set", "strategy.temperature=2")
    told = "finetune.learning_rate was 0.001, now 0.1; strategy.temperature was 10.0, now 2.0"
    assert (done.code, done.err.splitlines()[-1]) == (
        2,
        f"ftkit: 'out' holds a run with other options: {told}; give those of its config.toml, or another --output",
    )
    harmless = ("--set", "run.save_minutes=1", "--set", "run.trackers=")
    assert ftkit(*HARD, "--output", "out", "--resume", *harmless).code == 0


def test_pre_training_is_not_begun_anew_when_it_was_interrupted_under_other_options(ftkit, monkeypatch):
    from finetune_kit.training import stages

    arguments = ["pretrain", "--backbone", "sasrec", *TINY[:-2]]
    with monkeypatch.context() as patch:
        patch.setattr(stages, "save_base", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ftkit(*arguments, "--output", "bases")
    done = ftkit(*arguments, "--output", "bases", "--resume", "--set", "pretrain.epochs=2")
    assert done.code == 2
    assert "has other options: pretrain.epochs was 30, now 2; give those, or leave --resume out" in done.err
    done = ftkit(*arguments, "--output", "bases", "--resume")
    assert (done.code, "pretrain: going on after epoch" in done.err) == (0, True)


def test_a_finished_run_of_which_a_file_was_changed_is_not_gone_on_with(ftkit):
    ftkit(*HARD, "--output", "out")
    for name in ("metrics.json", "split.parquet", "model.json", "model.safetensors", "config.toml"):
        path, content = Path("out", name), Path("out", name).read_bytes()
        path.write_bytes(content + b"\n")
        done = ftkit(*HARD, "--output", "out", "--resume")
        assert done.code == 2
        assert f"{path} was changed or damaged: its checksum is not that in checksums.json" in done.err.splitlines()[-1]
        path.write_bytes(content)
    assert ftkit(*HARD, "--output", "out", "--resume").code == 0


def test_a_full_disk_is_one_line_with_the_command_to_go_on_with(ftkit, monkeypatch):
    whole = ftkit(*HARD, "--output", "whole", "--json").json

    with monkeypatch.context() as patch:
        patch.setattr("finetune_kit.training.loop.write_state", storing_nowhere)
        done = ftkit(*HARD, "--output", "out")
    command = shlex.join(["ftkit", *HARD, "--output", "out", "--resume"])
    assert (done.code, done.err.splitlines()[-1]) == (
        2,
        f"ftkit: out/last/state.safetensors can't be written: No space left on device; make room, "
        f"then go on with: {command}",
    )
    assert ftkit(*HARD, "--output", "out", "--resume", "--json").json["test"] == whole["test"]


def storing_nowhere(path, parts, facts):
    with storing(path):
        raise OSError(errno.ENOSPC, "No space left on device")

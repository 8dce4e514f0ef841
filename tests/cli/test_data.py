import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner, Result

from finetune_kit.cli.data import app, parse_words
from finetune_kit.data.dataset import Dataset
from finetune_kit.errors import DataError, FinetuneKitError, OptionError, UnknownNameError


def logs(folder) -> list[str]:
    (folder / "source.csv").write_text("user,item,time\nann,x,1\nann,y,2\nbob,x,3\n")
    (folder / "target.csv").write_text("user,item,time\nann,p,9\nann,q,10\nbob,p,9\n")
    (folder / "labels.csv").write_text("user,colour\nann,red\nbob,[blue]\n")
    return [
        str(folder / "source.csv"),
        "--target",
        str(folder / "target.csv"),
        f"--labels={folder / 'labels.csv'}",
    ]


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_events_are_prepared_from_options_with_dashes(tmp_path):
    result = run("prepare", "events", *logs(tmp_path), "--max-target", "1", "--output", str(tmp_path / "out"))
    assert result.exit_code == 0
    assert (
        result.stdout
        == f"prepared {tmp_path / 'out'}: 2 users, 3 source events of 2 items, 2 target events of 1 items\n"
    )
    assert Dataset.open(tmp_path / "out").manifest["options"]["max_target"] == 1


def test_with_json_stdout_is_json_only_and_warnings_go_to_stderr(tmp_path):
    arguments = logs(tmp_path)
    with (tmp_path / "target.csv").open("a") as file:
        file.write("zoe,p,1\n")
    result = run("prepare", "events", *arguments, "--on-bad", "drop", "--json", "--output", str(tmp_path / "out"))
    assert json.loads(result.stdout)["users"] == 2
    assert "warning: dropped 1 row" in result.stderr
    assert json.loads(run("inspect", str(tmp_path / "out"), "--json").stdout)["warnings"]


def test_a_folder_is_replaced_only_with_overwrite(tmp_path):
    arguments = ["prepare", "events", *logs(tmp_path), "--output", str(tmp_path / "out")]
    run(*arguments)
    with pytest.raises(DataError, match="--overwrite"):
        run(*arguments)
    run(*arguments, "--overwrite", "--min-source", "2")
    assert Dataset.open(tmp_path / "out").raw_users() == ["ann"]
    assert Dataset.open(tmp_path / "out").name == "out"
    assert {path.name for path in tmp_path.iterdir()} == {"out", "source.csv", "target.csv", "labels.csv"}


def test_a_failed_overwrite_keeps_what_was_there(tmp_path):
    arguments = ["prepare", "events", *logs(tmp_path), "--output", str(tmp_path / "out")]
    run(*arguments)
    with pytest.raises(DataError, match="no user is left"):
        run(*arguments, "--overwrite", "--min-source", "20")
    assert Dataset.open(tmp_path / "out").num_users == 2


def test_inspect_prints_tables_of_80_columns(tmp_path):
    run("prepare", "events", *logs(tmp_path), "--output", str(tmp_path / "out"))
    result = run("inspect", str(tmp_path / "out"))
    assert max(map(len, result.stdout.splitlines())) <= 80
    for fact in ("out: 2 users", "source", "label colour", "[blue]", "50.0%"):
        assert fact in result.stdout


def test_help_lists_the_readers_and_their_options():
    listing = run("prepare", "--help").stdout
    assert listing == run("prepare").stdout
    for name in ("coldrec", "events", "movielens", "synthetic"):
        assert f"  {name} " in listing
    options = run("prepare", "events", "--help").stdout
    assert "--keep-source-only  true|false, default false" in options
    assert "--output" in options


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["evnts"], UnknownNameError, "no dataset named 'evnts'. Did you mean 'events'?"),
        (["events", "--sorce", "x"], OptionError, "no option --sorce. Did you mean '--source'?"),
        (["events", "x", "y"], OptionError, "'y' is one word too many"),
        (["events", "x"], OptionError, "Add --output DIR"),
        (["events", "--output", "o"], OptionError, "dataset 'events' needs the option source"),
        (["events", "--source"], OptionError, "--source lacks its value"),
        (["events", "--source", "a", "--source=b"], OptionError, "--source is given twice"),
        (["events", "x", "--max-target", "0", "--output", "o"], OptionError, "events.max_target = '0'"),
        (["events", "x", "--target", "y", "--output", "o"], DataError, "source 'x': no such file"),
    ],
)
def test_a_mistake_is_answered_in_one_line(arguments, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FinetuneKitError) as caught:
        run("prepare", *arguments)
    assert caught.type is error
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flags_need_no_value():
    words = parse_words(["a", "--keep-all", "--n=-1", "--deep", "false", "--", "--b"], {"keep_all", "deep"})
    assert words.plain == ["a", "--b"]
    assert words.options == {"keep_all": "true", "n": "-1", "deep": "false"}


def test_the_command_imports_nothing_slow():
    slow = "torch", "duckdb", "numpy"
    check = f"import sys, finetune_kit.cli.data; sys.exit(', '.join(m for m in {slow} if m in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

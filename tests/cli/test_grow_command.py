import json
import shutil
from pathlib import Path

import pytest

from finetune_kit.checkpoint import load_model
from finetune_kit.config import read_toml
from finetune_kit.data.dataset import Dataset
from finetune_kit.files import read_table
from growing import FEW, LARGE, MANY, SMALL, make

TINY = [
    *("--epochs", "1"),
    *("--max-length", "6"),
    *("--set", "backbone.dim=4"),
    *("--set", "backbone.num_blocks=2"),
    *("--set", "pretrain.epochs=1"),
]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Two datasets of shared users: ``large`` has 20 more of them and more items."""
    folder = tmp_path_factory.mktemp("datasets")
    make(folder / "small", SMALL, FEW, users=40)
    make(folder / "large", LARGE, MANY, users=60)
    make(folder / "half", SMALL, MANY, users=20)
    make(folder / "strange", ("x", "y", "z"), FEW, users=30)
    return folder


@pytest.fixture
def here(ftkit, datasets, tmp_path):
    for name in ("small", "large", "half", "strange"):
        (tmp_path / name).symlink_to(datasets / name)
    return ftkit


def run(ftkit, strategy, *more):
    done = ftkit("run", "--strategy", strategy, "--data", "small", *TINY, *more, "--output", f"runs/{strategy}")
    assert done.code == 0, done.err
    return f"runs/{strategy}"


def parts(folder, dataset):
    """Return the part of each instance that a run used, by raw ids."""
    users, items, table = dataset.raw_users(), dataset.raw_target_items(), read_table(Path(folder) / "split.parquet")
    rows = zip(table["user"], table["item"], table["part"], strict=True)
    return {(users[user - 1], items[item - 1]): part for user, item, part in rows}


@pytest.mark.parametrize("strategy", ["finetune-all", "uaf-hard", "mtl"])
def test_a_run_goes_on_with_its_strategy_on_more_items(here, strategy):
    ftkit, old = here, run(here, strategy, "--set", "finetune.batch_size=64")
    done = ftkit("finetune", "--from", old, "--data", "large", "--output", "grown")
    assert done.code == 0, done.err
    assert "source items: 4 known, 3 new, 1 gone; target items: 3 known, 1 new, 0 gone\n" in done.err
    config = read_toml(Path("grown/config.toml"))
    assert (config["run"]["strategy"], config["finetune"]["batch_size"]) == (strategy, 64)
    facts = load_model(Path("grown"))[1]
    assert facts["about"]["grown_from"]["hash"] == load_model(Path(old))[1]["hash"]
    assert (facts["num_source_items"], facts["num_target_items"]) == (7, 4)
    again = ftkit("evaluate", "grown", "--json")
    assert again.json["test"] == json.loads(Path("grown/metrics.json").read_text())["test"]
    Path("h.jsonl").write_text('{"user": "somebody", "items": ["a", "c", "dd"]}\n')
    assert ftkit("recommend", "grown", "--input", "h.jsonl", "--output", "best.csv").out.startswith(
        "wrote 1 user × 4 items to best.csv; 0 of 3 events of unknown items skipped"
    )


def test_what_was_trained_on_or_measured_on_stays_so_and_only_new_instances_are_split(here):
    ftkit, old = here, run(here, "finetune-all")
    done = ftkit("finetune", "--from", old, "--data", "large", "--seed", "3", "--output", "grown")
    before, after = parts(old, Dataset.open("small")), parts("grown", Dataset.open("large"))
    common = before.keys() & after.keys()
    assert common
    assert {pair: after[pair] for pair in common} == {pair: before[pair] for pair in common}
    trained = sum(before[pair] == "train" for pair in common)
    assert (
        f"{len(common)} of {len(after)} target instances keep the part that they had ({trained} were trained on); "
        f"{len(after) - len(common)} are split anew\n"
    ) in done.err
    assert {after[pair] for pair in after.keys() - common} == {"train", "valid", "test"}


def test_a_merged_grown_run_is_measured_on_what_the_run_was(here):
    ftkit, old = here, run(here, "finetune-all")
    assert ftkit("finetune", "--from", old, "--data", "large", "--seed", "3", "--output", "grown").code == 0
    assert ftkit("merge", "grown", "--output", "merged").code == 0
    measured, again = (ftkit("evaluate", folder, "--json").json for folder in ("grown", "merged"))
    for key in ("instances", "valid", "test", "references"):
        assert again[key] == measured[key]


def test_what_was_trained_on_is_not_measured_on_after_a_dataset_that_lacked_it(here):
    ftkit, old = here, run(here, "finetune-all")
    before = parts(old, Dataset.open("small"))
    assert ftkit("finetune", "--from", old, "--data", "half", "--output", "two").code == 0
    assert ftkit("merge", "two", "--output", "merged").code == 0
    origins = {"two": [], "merged": ["--strategy", "finetune-cls", "--epochs", "1"]}
    for origin, more in origins.items():
        done = ftkit("finetune", "--from", origin, "--data", "large", *more, "--seed", "5", "--output", f"of-{origin}")
        assert done.code == 0, done.err
        after = parts(f"of-{origin}", Dataset.open("large"))
        assert all(after[pair] == part for pair, part in before.items() if pair in after)


def test_another_strategy_starts_on_the_grown_backbone(here):
    ftkit, old = here, run(here, "uaf-hard")
    base = next(Path("runs/pretrained").iterdir())
    for origin in (old, str(base)):
        done = ftkit(
            "finetune", "--from", origin, "--data", "large", "--strategy", "peterrec", "--epochs", "1", "--json"
        )
        assert done.code == 0, done.err
        facts = load_model(Path(done.json["folder"]))[1]
        assert "about" not in facts
        grown = load_model(Path(done.json["folder"]) / facts["base"]["path"])[1]
        assert grown["about"]["grown_from"]["hash"] == load_model(base)[1]["hash"]
        assert "keep the part" not in done.err  # target instances are not in a pre-trained backbone's weights
    assert len(list(Path("runs/pretrained").iterdir())) == 2


def test_a_grown_run_grows_again_and_so_does_a_merged_one(here):
    ftkit, old = here, run(here, "finetune-all")
    assert ftkit("finetune", "--from", old, "--data", "large", "--output", "two").code == 0
    assert ftkit("finetune", "--from", "two", "--data", "small", "--output", "three").code == 0
    assert ftkit("evaluate", "three").code == 0
    assert ftkit("merge", old, "--output", "merged").code == 0
    done = ftkit("finetune", "--from", "merged", "--data", "large", "--strategy", "finetune-cls", "--output", "four")
    assert done.code == 0
    before, after = parts(old, Dataset.open("small")), parts("four", Dataset.open("large"))
    assert all(after[pair] == part for pair, part in before.items() if pair in after)
    done = ftkit(
        "finetune", "--from", "four", "--strategy", "finetune-all", "--seed", "9", "--epochs", "1", "--output", "five"
    )
    assert done.code == 0
    again = parts("five", Dataset.open("large"))
    assert all(again[pair] == part for pair, part in before.items() if pair in again)


def test_a_label_s_run_goes_on(here):
    ftkit, old = here, run(here, "finetune-all", "--task", "label:kind")
    done = ftkit("finetune", "--from", old, "--data", "large", "--output", "grown")
    assert done.code == 0, done.err
    assert "classes: 3 known, 1 new, 0 gone" in done.err
    assert ftkit("evaluate", "grown", "--json").json["test"].keys() == {"accuracy", "f1_macro"}


def test_an_interrupted_growth_goes_on_to_the_same_weights(here, monkeypatch):
    from ftkit_trackers.jsonl import JsonLines

    def stop(self, stage, values):
        if values["epoch"] == 2:
            raise KeyboardInterrupt

    ftkit, old = here, run(here, "finetune-all")
    arguments = ["finetune", "--from", old, "--data", "large", "--epochs", "2"]
    assert ftkit(*arguments, "--output", "whole").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(JsonLines, "record", stop)
        assert ftkit(*arguments, "--output", "halves").code == 130
    done = ftkit(*arguments, "--output", "halves", "--resume")
    assert done.code == 0
    assert "finetune: going on after epoch 1" in done.err
    assert Path("halves/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()
    assert ftkit(*arguments, "--output", "halves", "--resume").code == 0


def test_a_dry_run_of_growth_writes_nothing(here, tmp_path):
    ftkit, old = here, run(here, "uaf-hard")
    before = sorted(tmp_path.rglob("*"))
    done = ftkit("finetune", "--from", old, "--data", "large", "--dry-run", "--json")
    assert "policy.item_embedding.weight" in done.json["trained"]
    assert sorted(tmp_path.rglob("*")) == before


def test_mistakes_are_one_line_and_write_nothing(here, tmp_path):
    ftkit, old = here, run(here, "finetune-all")
    shutil.copytree(old, "runs/cut")
    with Path("runs/cut/model.safetensors").open("r+b") as file:
        file.truncate(100)
    shutil.copytree(old, "runs/odd")
    shutil.copytree(old, "away")
    Path("runs/odd/split.parquet").write_bytes(b"nothing")
    before = sorted(tmp_path.rglob("*"))
    for arguments, said in [
        (["--from", old, "--data", "larg"], "no dataset folder at 'larg', and no dataset of that name."),
        (["--from", old, "--data", "strange"], "have no source items in common"),
        (
            ["--from", old, "--data", "large", "--task", "label:kind"],
            "--task label:kind is not that of 'runs/finetune-all'",
        ),
        (["--from", old, "--data", "large", "--from-data", "large"], "so say with --from-data where it is"),
        (["--from", old, "--from-data", "small", "--strategy", "peterrec"], "--from-data has no effect without --data"),
        (["--from", old], "which strategy? Add --strategy NAME"),
        (["--from", old, "--data", "large", "--set", "backbone.dim=8"], "have another backbone options"),
        (["--from", "runs/cut", "--data", "large"], "cut/model.safetensors is damaged"),
        (["--from", "runs/odd", "--data", "large"], "odd/split.parquet is damaged"),
        (["--from", "away", "--data", "large"], "the base of 'away' is no longer at "),
        (["--from", old, "--data", "large", "--output", "large"], "is what --from starts from"),
    ]:
        done = ftkit("finetune", *arguments)
        assert (done.code, done.out) == (2, ""), arguments
        assert said in done.err.splitlines()[-1]
        assert "Traceback" not in done.err
    assert sorted(tmp_path.rglob("*")) == before
    base = next(Path("runs/pretrained").iterdir())
    done = ftkit("finetune", "--from", str(base), "--data", "large")
    assert "which strategy? Add --strategy NAME" in done.err


def test_a_dataset_that_was_prepared_anew_in_its_place_is_asked_for(here, tmp_path):
    ftkit, old = here, run(here, "finetune-all")
    Path("small").unlink()
    config = Path(old, "config.toml")
    where = read_toml(config)["files"]["dataset"]
    config.write_text(config.read_text().replace(where, str(tmp_path / "large")))
    done = ftkit("finetune", "--from", old, "--data", "large", "--output", "grown")
    assert done.code == 2
    assert "so say with --from-data where it is" in done.err
    done = ftkit("finetune", "--from", old, "--data", "large", "--from-data", where, "--output", "grown")
    assert done.code == 0, done.err

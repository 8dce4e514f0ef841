import json
import shutil

import pytest
import torch

import finetune_kit
from finetune_kit.checkpoint import KNOWN, NEEDED, PRETRAINED, RUN, load_model, read_facts, refuse_other, save_model
from finetune_kit.errors import CheckpointError

FACTS = {
    "kind": RUN,
    "strategy": "finetune-cls",
    "backbone": "nextitnet",
    "backbone_options": {"dim": 4},
    "max_length": 6,
    "num_source_items": 5,
    "source_items_hash": "5" * 64,
    "num_target_items": 3,
    "target_items_hash": "3" * 64,
    "base": {"path": "../base", "hash": "b" * 64},
}


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path / "run", {"task.head.weight": torch.arange(6.0).view(3, 2)}, FACTS)
    return tmp_path / "run"


def rewrite(folder, **facts):
    """Change what model.json says; None takes a fact away."""
    told = {**json.loads((folder / "model.json").read_text()), **facts}
    (folder / "model.json").write_text(json.dumps({name: fact for name, fact in told.items() if fact is not None}))


def refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert "model." in message
    return message


def test_weights_and_facts_come_back_and_say_who_wrote_them(folder):
    tensors, facts = load_model(folder)
    assert tensors["task.head.weight"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert facts["written_by"] == finetune_kit.__version__
    assert {name: facts[name] for name in FACTS} == FACTS


def test_a_folder_may_be_moved_and_copied(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "ünder way" / "copy")
    assert load_model(tmp_path / "ünder way" / "copy")[1] == read_facts(folder)


def test_a_later_format_is_refused_naming_who_wrote_it(folder):
    rewrite(folder, format_version=2, written_by="3.1.0")
    version = finetune_kit.__version__
    assert refusal(folder).endswith(
        "model.json has format version 2, this ftkit reads 1; it was written by ftkit 3.1.0, "
        f"this is {version}: use the version that wrote it, or a later one"
    )


def test_a_fact_that_is_not_understood_is_refused_but_not_what_is_told_for_the_record(folder):
    rewrite(folder, about={"anything": ["that", "is", "told"]})
    assert load_model(folder)[0]
    rewrite(folder, quantised="int8", written_by="3.1.0")
    assert "model.json says quantised, which this ftkit does not know; it was written by ftkit 3.1.0" in refusal(folder)
    rewrite(folder, quantised=None, kind="mixture")
    assert "is of the kind 'mixture', which this ftkit does not know" in refusal(folder)


@pytest.mark.parametrize("name", [*sorted(NEEDED[RUN]), "hash", "format_version"])
def test_a_missing_fact_is_named_in_one_line(folder, name):
    rewrite(folder, **{name: None})
    assert name in refusal(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"format_version": "new"}', "\udcff", '{"format_version": 1, "base": "here"}']
)
def test_a_damaged_model_json_is_one_line(folder, text):
    (folder / "model.json").write_bytes(text.encode(errors="surrogateescape"))
    refusal(folder)


def test_half_a_reference_to_the_base_is_damage(folder):
    rewrite(folder, base={"path": "../base"})
    assert "it lacks base.path and base.hash" in refusal(folder)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "missing"])
def test_damaged_weights_are_named(folder, damage):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"flip": data[:-1] + bytes([data[-1] ^ 1]), "cut": data[:-9], "empty": b""}[damage])
    assert "model.safetensors" in refusal(folder)


def test_weights_that_are_no_safetensors_are_named_though_their_hash_is_right(folder):
    from finetune_kit.checkpoint import file_hash

    (folder / "model.safetensors").write_bytes(b"not weights at all")
    rewrite(folder, hash=file_hash(folder / "model.safetensors"))
    assert "model.safetensors can't be read" in refusal(folder)


def test_the_first_fact_that_differs_is_named_with_both_values(folder):
    with pytest.raises(CheckpointError, match=f"have another source items hash: {'5' * 64} there, {'6' * 64} here"):
        refuse_other(read_facts(folder), {"max_length": 6, "source_items_hash": "6" * 64}, folder)


def test_a_fact_that_would_be_refused_when_read_is_not_written(tmp_path):
    with pytest.raises(AssertionError):
        save_model(tmp_path, {"x": torch.ones(1)}, {**FACTS, "colour": "red"})
    with pytest.raises(AssertionError):
        save_model(tmp_path, {"x": torch.ones(1)}, {"kind": PRETRAINED})
    assert NEEDED[PRETRAINED] < NEEDED[RUN] < KNOWN

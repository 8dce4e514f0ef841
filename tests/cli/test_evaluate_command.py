"""What `ftkit evaluate` does about candidates of the sampled protocol that a run has stored."""

import json
from pathlib import Path

import pytest

from documents import TINY
from finetune_kit.evaluation.candidates import FILE
from finetune_kit.files import read_table, write_table

FEWER = ("--set", "evaluation.num_candidates=20")
RUN = ("run", "--strategy", "finetune-zero", "--epochs", "1", "--device", "cpu", "--output", "out", *FEWER, *TINY)


def sampled(done):
    assert done.code == 0, done.err
    return done.json["test"]["sampled"]


def test_stored_candidates_are_used_whatever_would_be_drawn_now(ftkit, monkeypatch):
    ftkit(*RUN)
    own = json.loads(Path("out/metrics.json").read_text())
    other = "finetune_kit.evaluation.candidates.derive_seed"
    with monkeypatch.context() as patch:
        patch.setattr(other, lambda seed, *purpose: 4)  # a later version draws others
        assert sampled(ftkit("evaluate", "out", "--json")) == own["test"]["sampled"]
        options = ("--set", "evaluation.batch_size=3", "--protocol", "sampled")
        assert sampled(ftkit("evaluate", "out", "--json", *options)) == own["test"]["sampled"]
        fewer = ftkit("evaluate", "out", "--json", "--set", "evaluation.num_candidates=9")
        assert fewer.json["candidates"]["per_instance"] == 9
    assert fewer.json["candidates"]["sha256"] != own["candidates"]["sha256"]
    assert own["candidates"]["per_instance"] == 20


def test_edited_or_lost_candidates_are_refused_in_one_line_where_they_are_needed(ftkit):
    ftkit(*RUN)
    table = read_table(Path("out") / FILE)
    table["candidate_7"] = table["candidate_7"][::-1].copy()
    write_table(Path("out") / FILE, table)
    done = ftkit("evaluate", "out")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert done.err.startswith("ftkit: out/candidates.parquet was edited: its candidates have the hash ")
    assert ftkit("evaluate", "out", "--protocol", "full").code == 0
    (Path("out") / FILE).unlink()
    assert "out/candidates.parquet can't be read" in ftkit("evaluate", "out").err


def test_a_run_that_stored_none_is_measured_on_new_ones_and_says_so(ftkit):
    ftkit(*RUN)
    path = Path("out/metrics.json")
    own = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in own.items() if key != "candidates"}))
    done = ftkit("evaluate", "out", "--json")
    assert "out stores no candidates; they are drawn anew, so sampled ranks may differ" in done.err
    assert sampled(done) == own["test"]["sampled"]
    del own["test"]["sampled"]
    path.write_text(json.dumps({key: value for key, value in own.items() if key != "candidates"}))
    assert "candidates" not in ftkit("evaluate", "out", "--json").err


@pytest.mark.slow
def test_a_merged_run_is_ranked_among_the_candidates_of_the_run(ftkit, monkeypatch):
    ftkit(*RUN)
    own = json.loads(Path("out/metrics.json").read_text())
    ftkit("merge", "out", "--output", "merged")
    monkeypatch.setattr("finetune_kit.evaluation.candidates.derive_seed", lambda seed, *purpose: 4)
    assert ftkit("evaluate", "merged", "--json").json["candidates"] == own["candidates"]


def test_evaluating_deterministically_is_taken(ftkit):
    ftkit(*RUN)
    own = json.loads(Path("out/metrics.json").read_text())
    assert sampled(ftkit("evaluate", "out", "--deterministic", "--json")) == own["test"]["sampled"]

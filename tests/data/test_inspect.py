import json

import pytest

from finetune_kit.data.dataset import Dataset
from finetune_kit.data.inspect import inspect
from ftkit_datasets.events import Events, EventsOptions


def facts_of(folder, source: str, target: str, labels: str | None = None, **options) -> dict:
    for name, text in (("source", source), ("target", target), ("labels", labels)):
        if text is not None:
            (folder / f"{name}.csv").write_text(text)
            options[name] = str(folder / f"{name}.csv")
    Events(EventsOptions(**options)).prepare(folder / "out")
    facts = inspect(Dataset.open(folder / "out"))
    json.dumps(facts, allow_nan=False)
    return facts


SOURCE = "user,item,time\na,x,1\na,y,1\na,z,5\nb,x,1\nc,y,2\nc,x,9\nd,x,1\n"
TARGET = "user,item,time\na,p,3\na,q,4\na,r,5\nb,p,3\nc,p,1\n"


def test_what_is_kept_and_what_there_was_are_both_told(tmp_path):
    facts = facts_of(tmp_path, SOURCE, TARGET, max_target=2)
    assert facts["users"] == 3
    assert facts["source"] == {
        "items": 3,
        "events": 6,
        "per_user": {"min": 1, "median": 2.0, "mean": 2.0, "p90": 2.8, "max": 3},
    }
    assert facts["target"] == {"items": 2, "events": 4, "users_by_events": {"1": 2, "2": 1}}
    assert facts["raw"]["source_events"] == 7
    assert facts["left_out"] == [{"reason": "no target event", "users": 1, "source_events": 1, "target_events": 0}]
    assert facts["beyond_max_target"] == 1


def test_equal_times_and_events_after_the_first_target_event_are_told(tmp_path):
    times = facts_of(tmp_path, SOURCE, TARGET)["times"]
    assert times["equal"] == pytest.approx(1 / 6)  # a's y at the time of x
    assert times["after_target"] == pytest.approx(3 / 6)  # a's z, both of c's


def test_label_balance_counts_unknown_users_too(tmp_path):
    facts = facts_of(tmp_path, SOURCE, TARGET, "user,sex,age\na,f,\nb,m,30\nc,f,4\n")
    assert facts["labels"] == {"sex": {"f": 2, "m": 1}, "age": {"4": 1, "30": 1, "(unknown)": 1}}


def test_users_with_many_target_events_are_counted_together(tmp_path):
    target = "user,item,time\n" + "".join(f"a,p{k},1\n" for k in range(12)) + "b,p,1\n"
    facts = facts_of(tmp_path, SOURCE, target, keep_source_only=True)
    assert facts["target"]["users_by_events"] == {"0": 2, "1": 1, "11+": 1}

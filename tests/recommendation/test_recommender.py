import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune_kit.config import resolve_config
from finetune_kit.data.batch import Batch
from finetune_kit.data.dataset import Dataset
from finetune_kit.data.labelled import for_task
from finetune_kit.errors import CheckpointError, OptionError
from finetune_kit.pretend import pretend_device, pretend_fabric
from finetune_kit.recommendation.answers import best
from finetune_kit.recommendation.recommender import Recommender
from finetune_kit.training.assemble import Run, build_strategy
from finetune_kit.training.device import make_fabric
from ftkit_datasets.events import Events, EventsOptions
from leakage import with_other_answers

NUM_USERS, NUM_SOURCE, NUM_TARGET = 40, 30, 12


def raw_item(item: int) -> str:
    return f"00{item}" if item % 2 else f"ünicode {item}"  # text that a number would not survive


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    """Users with 1 to 15 source events, and target items of which the first three are source items too."""
    folder = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    rows = {"source": [], "target": []}
    for user in range(NUM_USERS):
        name = str(2**70 + user)
        for time in range(1 + user % 15):
            rows["source"].append([name, raw_item(int(draw.integers(NUM_SOURCE))), time])
        for item in draw.choice(NUM_TARGET, 2, replace=False):
            rows["target"].append([name, raw_item(int(item)) if item < 3 else f"t{item}", 0])
    for domain, some in rows.items():
        with (folder / f"{domain}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["user", "item", "time"], *some])
    labels = "".join(f"{2**70 + user},{'ab'[user % 2]}\n" for user in range(NUM_USERS))
    (folder / "labels.csv").write_text(f"user,kind\n{labels}")
    files = {domain: str(folder / f"{domain}.csv") for domain in ("source", "target", "labels")}
    Events(EventsOptions(**files)).prepare(folder / "made")
    return Dataset.open(folder / "made")


def make_run(dataset: Dataset, task: str = "items", **strategy) -> Run:
    """Return a run as `load_run` would, of a model that was never trained: what it says differs from user to user."""
    config = resolve_config(
        {
            "run": {"strategy": "uaf-hard", "task": task},
            "data": {"max_length": 6},
            "backbone": {"dim": 8, "num_blocks": 2},
            "strategy": {"evaluation": "sample", **strategy},
        }
    )
    seen = for_task(dataset, task)
    built = build_strategy(config, seen.num_source_items, seen.num_target_items, None)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return Run(Path("somewhere"), config, {}, seen, built.eval())


def make(run: Run, **options) -> Recommender:
    return Recommender(run, make_fabric("cpu"), **options)


def raw_histories(dataset: Dataset) -> tuple[list[str], list[list[str]]]:
    raw = dataset.raw_source_items()
    longest = dataset.sequences(np.arange(1, dataset.num_users + 1), 20)
    return dataset.raw_users(), [[raw[item - 1] for item in row if item] for row in longest]


@torch.no_grad()
def direct_scores(run: Run) -> np.ndarray:
    """Return the scores of the dataset's users as evaluation computes them."""
    users = np.arange(1, run.dataset.num_users + 1)
    sequence = torch.from_numpy(run.dataset.sequences(users, run.config.data.max_length))
    none = torch.empty(0, dtype=torch.int64)
    batch = Batch(torch.from_numpy(users), sequence, none, none, none.view(0, 0))
    return run.strategy.task.scores(run.strategy.encode(batch).vectors).numpy()


def test_the_dataset_s_users_get_what_scoring_them_directly_gives(dataset):
    run = make_run(dataset)
    users, sequences = raw_histories(dataset)
    assert len({len(sequence) for sequence in sequences}) == 15
    found = make(run, top=5).recommend(users, sequences)
    raw = dataset.raw_target_items()
    for one, user, sequence, scores in zip(found, users, sequences, direct_scores(run), strict=True):
        order = np.argsort(-scores, kind="stable")[:5]
        assert (one.user, one.note, one.num_events, one.num_unknown) == (user, None, len(sequence), 0)
        assert list(one.items) == [raw[item] for item in order]
        assert one.scores == pytest.approx(scores[order].tolist(), abs=1e-5)


def test_no_target_event_of_the_dataset_has_a_say_unless_seen_ones_are_left_out(dataset):
    run = make_run(dataset)
    other = replace(run, dataset=with_other_answers(dataset, np.arange(0, len(dataset.target.user), 2)))
    histories = raw_histories(dataset)
    assert make(run).recommend(*histories) == make(other).recommend(*histories)
    seen, otherwise = (make(one, remove_seen=True).recommend(*histories) for one in (run, other))
    assert seen != otherwise


def test_a_batch_s_users_don_t_influence_one_another(dataset):
    recommender = make(make_run(dataset))
    users, sequences = raw_histories(dataset)
    together = recommender.recommend(users, sequences)
    for batch_size in (1, 7):
        apart = list(recommender.stream(zip(users, sequences, strict=True), batch_size))
        assert [one.items for one in apart] == [one.items for one in together]


def test_a_known_user_keeps_the_gates_of_training_and_a_new_one_has_some_of_its_own(dataset):
    run = make_run(dataset)
    torch.nn.init.zeros_(run.strategy.policy.output.weight)  # either branch is as likely as the other
    torch.nn.init.zeros_(run.strategy.policy.output.bias)
    users, sequences = raw_histories(dataset)
    names = [*users, *(f"new {n}" for n in range(20))]
    found = make(run, top=100).recommend(names, [sequences[7]] * len(names))
    assert len({one.items for one in found[:NUM_USERS]}) == len({one.items for one in found[NUM_USERS:]}) == 4
    raw = dataset.raw_target_items()
    assert list(found[7].items) == [raw[item] for item in np.argsort(-direct_scores(run)[7], kind="stable")]
    assert found[NUM_USERS + 3].items == make(run, top=100).recommend(["new 3"], [sequences[7]])[0].items


def test_only_the_latest_known_items_count_and_unknown_ones_are_counted(dataset):
    recommender = make(make_run(dataset))
    raw = dataset.raw_source_items()
    latest = raw[:6]
    plain, longer = recommender.recommend(
        ["new", "new"], [latest, ["?", *raw[6:9], *latest[:3], "what's this", *latest[3:], "0"]]
    )
    assert longer.items == plain.items
    assert longer.scores == pytest.approx(plain.scores, abs=1e-6)
    assert (longer.num_events, longer.num_unknown) == (12, 3)


def test_a_user_without_a_usable_history_is_told_why(dataset):
    known = dataset.raw_source_items()[0]
    found = make(make_run(dataset)).recommend(["a", "b", "c"], [[], [known], ["x", "y", "z"]])
    assert [one.note for one in found] == ["no item in the history", None, "no known item in the history (3 unknown)"]
    assert [len(one.items) for one in found] == [0, 10, 0]
    assert make(make_run(dataset)).recommend([], []) == []


def test_seen_items_are_removed(dataset):
    run = make_run(dataset)
    users, sequences = raw_histories(dataset)
    raw = dataset.raw_target_items()
    everything = make(run, top=100).recommend(users, sequences)
    assert {len(one.items) for one in everything} == {NUM_TARGET}
    for nth, (one, rest) in enumerate(
        zip(everything, make(run, top=100, remove_seen=True).recommend(users, sequences), strict=True), 1
    ):
        known = {raw[item - 1] for item in dataset.target.item[dataset.target.user == nth]}
        seen = known | set(sequences[nth - 1])
        assert list(rest.items) == [item for item in one.items if item not in seen]
    assert make(run, remove_seen=True).num_shared == 3
    apart = make(run, top=100, remove_seen=True, separate_ids=True)
    assert apart.num_shared == 0
    new = apart.recommend(["new"], [dataset.raw_source_items()])[0]
    assert len(new.items) == NUM_TARGET


def test_who_has_seen_everything_is_told_so(dataset):
    recommender = make(make_run(dataset), remove_seen=True)
    history = [*dataset.raw_target_items(), dataset.raw_source_items()[0]]
    assert recommender.recommend(["new"], [history])[0].note == "all items are seen already"


def test_histories_are_read_a_batch_at_a_time(dataset):
    items, taken = dataset.raw_source_items()[:3], []

    def histories():
        for number in range(1000):
            taken.append(number)
            yield f"u{number}", iter(items)

    stream = make(make_run(dataset)).stream(histories(), batch_size=16)
    assert next(stream).user == "u0"
    assert len(taken) == 16
    assert sum(1 for _ in stream) == 999


@given(st.data())
def test_of_equal_scores_the_first_come_first(data):
    users, answers = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    values = st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 2.5]), min_size=answers, max_size=answers)
    scores = torch.tensor([data.draw(values) for _ in range(users)])
    num = data.draw(st.integers(1, answers))
    found, columns = best(scores, num)
    expected = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :num]
    assert columns.tolist() == expected.tolist()
    assert found.tolist() == np.take_along_axis(scores.numpy(), expected, axis=1).tolist()


def test_a_label_s_run_gives_its_classes_with_probabilities(dataset):
    run = make_run(dataset, task="label:kind")
    users, sequences = raw_histories(dataset)
    scores = np.exp(direct_scores(run))
    for one, of_user in zip(make(run).recommend(users, sequences), scores, strict=True):
        probabilities = dict(zip("ab", of_user / of_user.sum(), strict=True))
        assert dict(zip(one.items, one.scores, strict=True)) == pytest.approx(probabilities, abs=1e-5)
        assert one.scores[0] >= one.scores[1]
    with pytest.raises(OptionError, match="--remove-seen has no effect"):
        make(run, remove_seen=True)


def test_a_model_that_diverged_is_refused(dataset):
    run = make_run(dataset)
    torch.nn.init.constant_(run.strategy.task.head.bias, torch.nan)
    with pytest.raises(CheckpointError, match="not all finite"):
        make(run).recommend(["new"], [dataset.raw_source_items()[:2]])
    with pytest.raises(OptionError, match="--top 0"):
        make(run, top=0)


def test_an_accelerator_gives_the_same(dataset):
    users, sequences = raw_histories(dataset)
    expected = make(make_run(dataset), remove_seen=True).recommend(users, sequences)
    with pretend_device():
        found = Recommender(make_run(dataset), pretend_fabric(), remove_seen=True).recommend(users, sequences)
    assert [one.items for one in found] == [one.items for one in expected]

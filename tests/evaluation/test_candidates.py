from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from finetune_kit.data.dataset import Dataset
from finetune_kit.errors import CheckpointError
from finetune_kit.evaluation.candidates import FILE, Candidates, draw_candidates
from finetune_kit.evaluation.evaluate import Evaluator
from finetune_kit.files import read_table, write_table
from finetune_kit.sections import EvaluationOptions
from ftkit_datasets.synthetic import Synthetic, SyntheticOptions

NUM_ITEMS = 12
instances = st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, NUM_ITEMS)), min_size=1, max_size=8)


def drawn_for(pairs: list[tuple[int, int]], width: int, seed: int, num_items: int = NUM_ITEMS) -> np.ndarray:
    user, positive = np.array(pairs).T
    return draw_candidates(user, positive, num_items, width, seed)


@settings(max_examples=60, deadline=None)
@given(pairs=instances, width=st.integers(1, 15), seed=st.integers(0, 2**40))
def test_candidates_are_distinct_and_never_the_positive(pairs: list[tuple[int, int]], width: int, seed: int) -> None:
    drawn = drawn_for(pairs, width, seed)
    assert drawn.shape == (len(pairs), min(width, NUM_ITEMS - 1))
    for (_, own), row in zip(pairs, drawn.tolist(), strict=True):
        assert len(set(row)) == len(row)
        assert set(row) <= set(range(1, NUM_ITEMS + 1)) - {own}


@settings(max_examples=60, deadline=None)
@given(pairs=instances, others=instances, width=st.integers(1, 12), data=st.data())
def test_candidates_do_not_depend_on_other_instances_or_their_order(
    pairs: list[tuple[int, int]], others: list[tuple[int, int]], width: int, data: st.DataObject
) -> None:
    mixed = data.draw(st.permutations([*pairs, *others]))
    found = dict(zip(mixed, drawn_for(mixed, width, 3).tolist(), strict=True))
    assert [found[pair] for pair in pairs] == drawn_for(pairs, width, 3).tolist()


def test_candidates_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(user, user % 100 + 1) for user in range(1, 60)]
    for width in (20, 70):
        whole = drawn_for(pairs, width, 0, num_items=100)
        with monkeypatch.context() as patch:
            patch.setattr("finetune_kit.evaluation.candidates._MAX_CELLS", 150)
            assert np.array_equal(drawn_for(pairs, width, 0, num_items=100), whole)


@pytest.mark.parametrize("width", [3, 9])
def test_candidates_are_uniform_over_users(width: int) -> None:
    drawn = drawn_for([(user, 4) for user in range(5000)], width, 0, num_items=11)
    counts = Counter(drawn.ravel().tolist())
    assert sorted(counts) == [item for item in range(1, 12) if item != 4]
    # Without replacement counts vary less than chi-square expects, so only too uneven ones would fail.
    assert stats.chisquare(list(counts.values())).pvalue > 0.001
    pairs = Counter(tuple(sorted(row[:2])) for row in drawn.tolist())
    assert len(pairs) == 45
    assert stats.chisquare(list(pairs.values())).pvalue > 0.001


def test_seeds_users_and_positives_have_candidates_of_their_own() -> None:
    pairs = [(user, positive) for user in range(1, 20) for positive in range(1, 20)]
    one, same, other = (drawn_for(pairs, 20, seed, num_items=10**6) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    everything = np.concatenate([one, other]).ravel()
    assert len(set(everything.tolist())) > 0.97 * len(everything)  # chance alone repeats 0.7 % of them


def test_the_draw_is_that_of_every_version() -> None:
    """Numbers of the sampled protocol compare between versions for as long as this holds."""
    assert drawn_for([(1, 1), (7, 3)], 4, 0, num_items=1000).tolist() == [[27, 844, 199, 249], [636, 542, 145, 603]]
    assert drawn_for([(1, 1), (7, 3)], 4, 0, num_items=8).tolist() == [[2, 4, 5, 8], [4, 7, 2, 5]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("data") / "made-up"
    Synthetic(SyntheticOptions(users=40, max_length=8)).prepare(folder)
    return Dataset.open(folder)


def test_an_evaluator_of_some_instances_ranks_among_the_same_ones(dataset: Dataset) -> None:
    everything = np.arange(len(dataset.target.user))
    options = EvaluationOptions(num_candidates=10)
    whole = Evaluator(dataset, everything, everything[:0], options, 8, seed=3)
    pairs = dataset.target.user, dataset.target.item
    of_all = whole.candidates.of(*pairs)
    for some in (everything[::3], everything[-1:]):
        user, item = (column[some] for column in pairs)
        assert np.array_equal(whole.of(some).candidates.of(user, item), of_all[some])


def stored(folder: Path) -> Candidates:
    user, item = np.array([3, 1, 3, 3]), np.array([2, 5, 9, 2])
    candidates = Candidates.draw(user, item, 50, 6, seed=1)
    candidates.write(folder)
    return candidates


def test_what_is_stored_is_read_again(tmp_path: Path) -> None:
    candidates = stored(tmp_path)
    read = Candidates.read(tmp_path, candidates.sha256)
    assert read.user.tolist() == [1, 3, 3]
    assert np.array_equal(read.of(np.array([3, 1]), np.array([9, 5])), candidates.drawn[[2, 0]])
    with pytest.raises(CheckpointError, match="no candidates of user 3 and item 5; copy"):
        read.of(np.array([1, 3]), np.array([5, 5]))


@pytest.mark.parametrize("column", ["user", "item", "candidate_0", "candidate_5"])
def test_edited_candidates_are_refused(column: str, tmp_path: Path) -> None:
    candidates = stored(tmp_path)
    table = read_table(tmp_path / FILE)
    table[column] = table[column].copy()
    table[column][-1] += 1
    write_table(tmp_path / FILE, table)
    with pytest.raises(CheckpointError, match=r"candidates\.parquet was edited: .* metrics\.json says .*; copy"):
        Candidates.read(tmp_path, candidates.sha256)


def test_missing_torn_or_foreign_candidates_are_refused_in_a_line(tmp_path: Path) -> None:
    candidates = stored(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    for content in (b"", whole[:-9], whole[: len(whole) // 2], b"PAR1"):
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(CheckpointError, match=r"candidates\.parquet can't be read: [^\n]+; copy"):
            Candidates.read(tmp_path, candidates.sha256)
    write_table(tmp_path / FILE, {"user": np.array([1]), "item": np.array([1]), "other": np.array([1])})
    with pytest.raises(CheckpointError, match=r"can't be read: "):
        Candidates.read(tmp_path, candidates.sha256)
    (tmp_path / FILE).unlink()
    with pytest.raises(CheckpointError, match=r"can't be read: "):
        Candidates.read(tmp_path, candidates.sha256)

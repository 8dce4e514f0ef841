import random
import time

import pytest
from inputs import READERS, all_readers, fuzz, soak


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_whole_input_is_read_so_that_spoiling_it_tells_something(reader, tmp_path):
    for seed in (3, 4):
        place = tmp_path / str(seed)
        place.mkdir()
        choice = random.Random(seed)
        assert reader.write(place, choice)
        if reader.name not in ("events .parquet", "events damaged .parquet"):  # some types are none of ids and times
            reader.read(place, choice)


@pytest.mark.slow
def test_a_short_round_finds_nothing(tmp_path):
    counts = soak(time.monotonic() + 20, random.Random(0), tmp_path)
    names = {name.rpartition(": ")[0] for name in counts}
    assert names == {reader.name for reader in all_readers(tmp_path / "again")}
    assert {name.rpartition(": ")[2] for name in counts} == {"read", "refused"}


def test_a_reader_that_fails_is_told_with_the_seed_that_shows_it(tmp_path):
    broken = next(reader for reader in READERS if reader.name == "--set")
    broken = type(broken)(broken.name, broken.write, lambda place, choice: {}["gone"], broken.mutations)
    with pytest.raises(AssertionError, match=r"--set: KeyError: 'gone'; the input is in .*inputs\.py \"--set\" 7"):
        fuzz(broken, 7, tmp_path)

import random
from collections import Counter
from pathlib import Path

import pytest
import seeds

from finetune_kit.training.loop import Loop


@pytest.mark.slow
def test_a_round_finds_the_same_runs(tmp_path: Path) -> None:
    counts = seeds.soak(0, random.Random(1), tmp_path)
    assert counts["seeds compared"] == 1
    assert counts["runs"] == 4


@pytest.mark.slow
def test_another_process_writes_the_same_weights_and_numbers_from_nowhere_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = {**seeds.draw(random.Random(3), tmp_path)}
    sections["run"] |= {"strategy": "finetune-all", "backbone": "nextitnet", "task": "items"}
    counts: Counter[str] = Counter()
    seeds.compare(sections, tmp_path / "round", counts, elsewhere=True)
    assert counts["runs in another process"] == 1
    calls = iter(range(10**6))
    train = Loop._train_epoch

    def drawn_anew(self, *given):
        self.seed = next(calls)
        return train(self, *given)

    monkeypatch.setattr(Loop, "_train_epoch", drawn_anew)
    with pytest.raises(AssertionError, match="made again, a run has other"):
        seeds.compare(sections, tmp_path / "other", counts, elsewhere=False)

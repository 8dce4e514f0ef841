"""One short round of what `tests/soak/kills.py` does for as long as one likes."""

import random
from collections import Counter
from pathlib import Path

import pytest
from kills import run_killed, run_undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uaf-hard", "compare"])  # each takes half a minute; the soak draws from all
def test_a_command_that_is_killed_again_and_again_ends_as_if_nobody_had(tmp_path: Path, name: str) -> None:
    undisturbed, drawn, counts = run_undisturbed(name, tmp_path), random.Random(f"0/{name}"), Counter[str]()
    while not counts["kills survived"]:  # a machine that has become faster may be through before it is killed
        counts += run_killed(name, undisturbed, drawn, tmp_path, most_kills=3)

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from finetune_kit.pretend import pretend_device
from finetune_kit.seeding import derive_seed, generator, seeded, uniform_per_user

MASK = 2**64 - 1


def slow_uniform(user: int, draw: int, seed: int) -> float:
    """SplitMix64's finaliser on Python's unbounded integers."""
    state = (user * 0x9E3779B97F4A7C15 + draw * 0xD1B54A32D192ED03 + derive_seed(seed, "user")) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    state ^= state >> 31
    return ((state >> 41) + 0.5) / 2**23


@settings(max_examples=100, deadline=None)
@given(
    users=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4),
    num_draws=st.integers(1, 5),
    seed=st.integers(-(2**70), 2**70),
)
def test_draws_per_user_equal_a_slow_loop(users: list[int], num_draws: int, seed: int) -> None:
    found = uniform_per_user(torch.tensor(users), num_draws, seed)
    assert found.tolist() == [[slow_uniform(user, draw, seed) for draw in range(num_draws)] for user in users]


def test_draws_per_user_lie_strictly_between_0_and_1() -> None:
    draws = uniform_per_user(torch.arange(200_000), 5, seed=3)
    assert draws.min() > 0
    assert draws.max() < 1


def test_draws_per_user_do_not_depend_on_the_batch() -> None:
    users = torch.tensor([5, 9, 2])
    together = uniform_per_user(users, 4, seed=1)
    assert torch.equal(together[[2, 0]], uniform_per_user(users[[2, 0]], 4, seed=1))
    assert torch.equal(together[:, :2], uniform_per_user(users, 2, seed=1))
    assert not torch.equal(together, uniform_per_user(users, 4, seed=2))


def test_draws_per_user_are_uniform_and_independent() -> None:
    draws = uniform_per_user(torch.arange(1, 20_001), 4, seed=0).double().numpy()
    assert stats.kstest(draws.ravel(), "uniform").pvalue > 0.001
    cells = np.histogram2d(draws[:, 0], draws[:, 1], bins=10, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(cells.ravel()).pvalue > 0.001
    neighbours = np.histogram2d(draws[:-1, 0], draws[1:, 0], bins=10, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(neighbours.ravel()).pvalue > 0.001


def test_draws_per_user_are_the_same_on_an_accelerator() -> None:
    with pretend_device() as device:
        on_device = uniform_per_user(torch.tensor([3, 4]).to(device), 2, seed=5)
        assert on_device.device.type == device.type
        assert torch.equal(on_device.cpu(), uniform_per_user(torch.tensor([3, 4]), 2, seed=5))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_draws_per_user_are_the_same_on_a_gpu() -> None:
    users = torch.arange(1000)
    assert torch.equal(uniform_per_user(users.cuda(), 3, seed=5).cpu(), uniform_per_user(users, 3, seed=5))


def test_seeded_restores_the_global_generator_even_after_an_error() -> None:
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    with pytest.raises(ZeroDivisionError), seeded(0, "x"):
        torch.rand(5)
        raise ZeroDivisionError
    assert torch.equal(torch.rand(2), expected)


def test_seeded_draws_are_a_function_of_seed_and_purpose() -> None:
    def drawn(seed: int, *purpose: str | int) -> list[float]:
        with seeded(seed, *purpose):
            return torch.rand(3).tolist()

    assert drawn(0, "a") == drawn(0, "a")
    assert len({tuple(drawn(*key)) for key in [(0, "a"), (1, "a"), (0, "b"), (0, "a", 1)]}) == 4


def test_seeds_of_different_purposes_differ_and_fit_63_bits() -> None:
    seeds = {derive_seed(seed, "purpose", epoch) for seed in range(30) for epoch in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 23) != derive_seed(12, 3)


def test_seeds_do_not_change_from_version_to_version() -> None:
    assert derive_seed(0, "negatives", 1) == 5899847657288947628


def test_a_generator_starts_anew_each_time() -> None:
    one, other = generator(0, "a", 1), generator(0, "a", 1)
    assert torch.equal(torch.rand(3, generator=one), torch.rand(3, generator=other))

"""Untrained policies: what they do by chance, and names that are refused."""

from itertools import groupby

import numpy as np
import pytest

from envs.collect.policies import builtin_policy
from envs.utils.errors import InputError

FRAME = np.zeros((64, 64, 3), np.uint8)


def play(name: str, seed: int, steps: int = 2_000, actions: int = 5) -> np.ndarray:
    policy = builtin_policy(name).build()
    policy.actions = actions  # type: ignore[attr-defined]
    policy.reset(seed)
    return np.array([policy.act(FRAME) for _ in range(steps)])


@pytest.mark.parametrize("name", ["random", "sticky:0.9", "dirichlet:0.3", "zipf:2", "hold:right"])
def test_a_seed_repeats_an_episode_and_every_action_is_one_of_the_game(name: str) -> None:
    assert np.array_equal(play(name, 1), play(name, 1))
    assert not np.array_equal(play(name, 1), play(name, 2))
    assert set(play(name, 3, steps=20_000, actions=7)) <= set(range(7))


def test_dirichlet_draws_a_policy_for_each_episode() -> None:
    shares = np.stack([np.bincount(play("dirichlet:0.3", seed), minlength=5) for seed in range(60)])
    shares = shares / shares.sum(1, keepdims=True)
    # The largest of five weights of Dirichlet(0.3) is 0.67 on average.
    assert shares.max(1).mean() > 0.55
    assert set(shares.argmax(1)) == set(range(5))
    nearly_uniform = np.bincount(play("dirichlet:900", 0, steps=20_000), minlength=5) / 20_000
    assert abs(nearly_uniform - 0.2).max() < 0.05
    assert np.isfinite(play("dirichlet:0.001", 0)).all()


def test_zipf_holds_actions_for_bursts_of_all_lengths() -> None:
    lengths = [len(list(run)) for _, run in groupby(play("zipf:2", 0, steps=20_000))]
    assert np.median(lengths) <= 2
    assert max(lengths) > 200


def test_hold_plays_one_action_but_for_fifteen_percent() -> None:
    for name, action in (("hold:right", 0), ("hold:jump", 4), ("hold:2", 2)):
        share = np.mean(play(name, 0, steps=20_000) == action)
        assert share == pytest.approx(0.85 + 0.15 / 5, abs=0.01)


@pytest.mark.parametrize(
    "name",
    ["dirichlet:0", "dirichlet:x", "zipf:1", "zipf:", "hold:", "hold:fire", "hold:-1", "walk", ""],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="policy"):
        builtin_policy(name)

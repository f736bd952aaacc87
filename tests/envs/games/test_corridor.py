"""The corridor and its noisy TV."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.games.corridor import CELLS_PER_ROOM, ROOMS, START, CorridorEnv, read_cell

RIGHT, LEFT, UP = 0, 1, 2


@pytest.mark.filterwarnings("ignore:.*render modes.*")
@pytest.mark.parametrize("game", ["Corridor", "NoisyTV"])
def test_gymnasium_checker(game: str) -> None:
    check_env(envs.make(game, max_steps=5))


@pytest.mark.parametrize("television", [False, True])
def test_every_cell_can_be_read_from_its_frame(television: bool) -> None:
    env = CorridorEnv(television=television)
    frame, _ = env.reset(seed=0)
    assert read_cell(frame) == START
    for _ in range(START + 1):
        frame, *_ = env.step(np.int64(LEFT))
    assert read_cell(frame) == 0, "the end is closed"
    for cell in range(1, ROOMS * CELLS_PER_ROOM):
        frame, reward, terminated, _, _ = env.step(np.int64(RIGHT))
        assert read_cell(frame) == cell
        assert (reward, terminated) == (cell // CELLS_PER_ROOM / (ROOMS - 1), False)
    assert read_cell(env.step(np.int64(UP))[0]) == ROOMS * CELLS_PER_ROOM - 1


def test_only_the_tv_changes_without_a_move() -> None:
    for television in (False, True):
        env = CorridorEnv(television=television)
        env.reset(seed=0)
        still = [env.step(np.int64(UP))[0] for _ in range(2)]
        assert np.array_equal(*still)
        for _ in range(START):
            env.step(np.int64(LEFT))
        still = [env.step(np.int64(UP))[0] for _ in range(2)]
        assert np.array_equal(*still) != television

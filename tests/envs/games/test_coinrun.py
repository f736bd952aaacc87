"""CoinRun: errors without its extra; with it actions, levels, velocity squares and episodes.

The tests of the game itself need the extra `coinrun` and are skipped without it.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

import envs
from envs.collect.collector import collect
from envs.collect.policies import RandomPolicy
from envs.collect.worker import EpisodeKey, GameError, play_episode
from envs.episodes.dataset import EpisodeReader
from envs.episodes.stats import compute_stats
from envs.games.coinrun import (
    COINRUN_ACTIONS,
    VELOCITY_COLUMNS,
    VELOCITY_ROWS,
    black_out_velocity,
    load_envpool,
)
from envs.utils.errors import InputError
from tests.conftest import EVERYTHING


def installed() -> bool:
    try:
        load_envpool()
    except InputError:
        return False
    return True


needs_game = pytest.mark.skipif(
    not EVERYTHING and not installed(), reason="the extra coinrun does not load here"
)

NONE, RIGHT, LEFT, JUMP, JUMP_RIGHT, JUMP_LEFT, DOWN = range(7)
LEVEL = {"levels": 1, "start_level": 5}


def play(actions: list[int], **options: Any) -> NDArray[np.uint8]:
    """Return the frames (len(actions) + 1, 64, 64, 3) of a level that outlasts the actions."""
    env = envs.make("CoinRun", **{**LEVEL, **options})
    frames = [env.reset(seed=0)[0]]
    for action in actions:
        frame, _, terminated, truncated, _ = env.step(action)
        assert not terminated
        assert not truncated
        frames.append(frame)
    env.close()
    return np.stack(frames)


def speeds(frames_THWC: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (across, up) of the painted squares relative to rest: positive is right and up."""
    grey = frames_THWC[:, 5].astype(np.int64)
    return grey[:, 5, 0] - grey[0, 5, 0], grey[:, 18, 0] - grey[0, 18, 0]


def test_without_the_extra_one_line_says_how_to_install_it(tmp_path: Path) -> None:
    """In a process that finds the packages of the project except those of the extra."""
    hide = (
        "import importlib.metadata as m, sys\n"
        "def version(name, real=m.version):\n"
        "    if name == 'envpool': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        "from experiments.__main__ import execute\n"
        f"sys.exit(execute(['collect', 'CoinRun', '--out', {str(tmp_path / 'out')!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert (
        "CoinRun needs the package envpool: install it with `pip install 'autoexplore[coinrun]'`"
        in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_options_out_of_range_are_refused_before_the_package_is_asked_for() -> None:
    for options, message in (
        ({"state": "Level1"}, "no savestates"),
        ({"size": 128}, "frames of 64 pixels"),
        ({"velocity": "white"}, "painted or black"),
        ({"difficulty": "extreme"}, "easy or hard"),
        ({"start_level": -1}, "are not within"),
        ({"frame_skip": 0}, "at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            envs.make("CoinRun", **options)


def test_blacking_out_changes_the_corner_of_every_frame_and_nothing_else() -> None:
    frames = np.random.default_rng(0).integers(1, 256, (3, 64, 64, 3), np.uint8)
    blacked = black_out_velocity(frames)
    assert not blacked[:, :13, :26].any()
    assert np.count_nonzero(blacked != frames) == 3 * 13 * 26 * 3
    assert frames.all()
    with pytest.raises(InputError, match="not \\(3, 32, 32, 3\\)"):
        black_out_velocity(frames[:, ::2, ::2])


@needs_game
@pytest.mark.filterwarnings("ignore:.*render modes.*")
def test_gymnasium_checker() -> None:
    env = envs.make("CoinRun-v0", max_steps=5)
    assert env.action_space.n == len(COINRUN_ACTIONS) == 7  # type: ignore[attr-defined]
    check_env(env)
    env.close()


@needs_game
def test_a_seed_fixes_the_level_and_with_the_actions_every_frame() -> None:
    actions = np.random.default_rng(0).integers(7, size=60)
    runs, levels = [], []
    for seed in (3, 3, 4):
        env = envs.make("CoinRun")
        frame, info = env.reset(seed=seed)
        runs.append(np.stack([frame, *(env.step(action)[0] for action in actions)]))
        levels.append(info["level"])
        env.close()
    assert levels[0] == levels[1] != levels[2]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    env = envs.make("CoinRun", levels=3, start_level=7)
    assert {env.reset(seed=0)[1]["level"], *(env.reset()[1]["level"] for _ in range(30))} == {
        7,
        8,
        9,
    }
    assert not np.array_equal(play([]), play([], difficulty="hard"))


@needs_game
def test_the_seven_actions_move_the_way_their_names_say() -> None:
    """Read from the painted speeds three steps right of the start, with room on both sides."""
    away = [RIGHT] * 3 + [NONE] * 12
    signs = {}
    for action, name in enumerate(COINRUN_ACTIONS):
        across, up = speeds(play([*away, action, action], velocity="painted"))
        signs[name] = int(np.sign(across[len(away) + 1])), int(np.sign(up[len(away) + 1]))
    assert signs == {
        "none": (0, 0),
        "right": (1, 0),
        "left": (-1, 0),
        "jump": (0, 1),
        "jump right": (1, 1),
        "jump left": (-1, 1),
        "down": (0, 0),
    }


@needs_game
def test_velocity_squares_are_painted_for_agents_and_black_for_models() -> None:
    actions = [RIGHT, RIGHT, JUMP_RIGHT, NONE, NONE, LEFT]
    painted, black = play(actions, velocity="painted"), play(actions)
    assert np.array_equal(black_out_velocity(painted), black)
    assert (
        painted[:, :VELOCITY_ROWS, :VELOCITY_COLUMNS].min(axis=(1, 2, 3)).all()
    )  # every pixel of it has a shade
    for square in (painted[:, :13, :13], painted[:, :13, 13:26]):
        assert (square == square[:, :1, :1, :1]).all()
        assert len(np.unique(square)) > 1
    assert black[:, :13, 26:].any()
    assert black[:, 13:, :26].any()


@needs_game
def test_frame_skip_repeats_an_action_and_the_end_is_final() -> None:
    once, four = play([RIGHT] * 4), play([RIGHT], frame_skip=4)
    assert np.array_equal(once[4], four[1])
    env = envs.make("CoinRun", max_steps=2, **LEVEL)
    with pytest.raises(InputError, match="call reset"):
        env.step(NONE)
    env.reset(seed=0)
    assert [env.step(NONE)[3] for _ in range(2)] == [False, True]
    with pytest.raises(InputError, match="action 7 is not one of 0 to 6"):
        env.step(7)


@needs_game
def test_the_last_frame_shows_the_end_and_not_the_next_level() -> None:
    """The last frame before a danger or the coin resembles the one before it."""
    env = envs.make("CoinRun", levels=50)
    rewards, generator = [], np.random.default_rng(0)
    env.reset(seed=0)
    for _ in range(60):
        before, _ = env.reset()
        for _ in range(300):
            frame, reward, terminated, truncated, _ = env.step(
                generator.choice([RIGHT, JUMP_RIGHT, JUMP_RIGHT])
            )
            if terminated or truncated:
                break
            before = frame
        if terminated:
            rewards.append(reward)
            with pytest.raises(InputError, match="call reset"):
                env.step(NONE)
            assert (
                np.abs(frame.astype(int) - before).mean()
                < np.abs(env.reset()[0].astype(int) - before).mean()
            )
    assert set(rewards) == {0.0, 10.0}


@needs_game
def test_episodes_are_stored_with_seven_actions_and_black_squares(
    tmp_path: Path, ray_cluster: None
) -> None:
    collect(["CoinRun-v0"], tmp_path, episodes=3, steps=60, workers=1, progress=False)
    reader = EpisodeReader(tmp_path)
    episodes = [reader[number] for number in range(len(reader))]
    assert {item.game for item in episodes} == {"CoinRun"}
    assert set(np.concatenate([item.actions for item in episodes])) == set(range(7))
    shares = compute_stats(str(tmp_path))["CoinRun"].to_json()["action_shares"]
    assert tuple(shares) == COINRUN_ACTIONS, "they are not the five actions of other games"
    for number, item in enumerate(sorted(episodes, key=lambda e: e.info["episode"])):
        assert not item.frames_THWC[:, :13, :26].any()
        env = envs.make("CoinRun")
        again = play_episode(
            env, RandomPolicy(), EpisodeKey("CoinRun", "random", 0, number), steps=60
        )
        assert np.array_equal(again.frames_THWC, item.frames_THWC)


@needs_game
def test_agents_see_the_squares_and_episodes_do_not(tmp_path: Path, ray_cluster: None) -> None:
    """The policy sees painted frames; levels are part of the identity of an episode."""
    seen: list[NDArray[np.uint8]] = []

    class Watching(RandomPolicy):
        def act(self, frame_HWC: NDArray[np.uint8]) -> int:
            seen.append(frame_HWC)
            return super().act(frame_HWC)

    options = (("velocity", "painted"), *LEVEL.items())
    key = EpisodeKey("CoinRun", "random", 0, 0, options=options)
    env = envs.make("CoinRun", **dict(options))
    episode = play_episode(env, Watching(), key, steps=20)
    assert any(frame[:13, :26].any() for frame in seen)
    assert np.array_equal(black_out_velocity(np.stack(seen)), episode.frames_THWC[:-1])
    assert episode.info["options"] == dict(options)
    assert key.id != EpisodeKey("CoinRun", "random", 0, 0).id
    collect(["CoinRun"], tmp_path, episodes=1, steps=20, workers=1, options=options, progress=False)
    assert np.array_equal(EpisodeReader(tmp_path)[0].frames_THWC, episode.frames_THWC)


@needs_game
def test_a_policy_for_five_actions_is_refused() -> None:
    class Agent:
        def reset(self, seed: int) -> None: ...

        def act(self, frame_HWC: NDArray[np.uint8]) -> int:
            return 0

    with pytest.raises(GameError, match="CoinRun has the actions none, right, left, jump,"):
        play_episode(envs.make("CoinRun"), Agent(), EpisodeKey("CoinRun", "agent", 0, 0), steps=3)

"""stable-retro games: frame skip, letterbox, determinism and bad input."""

import numpy as np
import pytest
import stable_retro
from gymnasium.utils.env_checker import check_env

import envs
from envs import catalog
from envs.controls import ACTIONS
from envs.games.retro import letterbox
from envs.utils.errors import InputError

PLAYABLE = catalog.games(playable=True)
ATARI = "Kangaroo-Atari2600"


@pytest.mark.filterwarnings("ignore:.*render modes.*")
@pytest.mark.parametrize("game", ["Airstriker-Genesis-v0", ATARI])
def test_gymnasium_checker(game: str) -> None:
    env = envs.make(game, max_steps=5)
    try:
        check_env(env)
    finally:
        env.close()


@pytest.mark.parametrize("game", ["Airstriker-Genesis", ATARI])
def test_a_step_is_four_emulator_frames_of_which_the_last_two_are_pooled(game: str) -> None:
    """Against stable-retro's own env, fed with the button masks that collecting records."""
    actions = np.random.default_rng(0).integers(5, size=40)
    env = envs.make(game)
    ours = [env.reset()[0]]
    rewards = []
    for action in actions:
        frame, reward, *_ = env.step(action)
        ours.append(frame)
        rewards.append(reward)
    masks, state = env.unwrapped.action_masks, env.unwrapped.init_state
    env.close()

    raw = stable_retro.make(
        f"{game}-v0",
        state=state,
        use_restricted_actions=stable_retro.Actions.ALL,
        render_mode="rgb_array",
    )
    raw.reset()
    expected, expected_rewards = [], []
    for mask in [0, *(masks[action] for action in actions)]:
        steps = [
            raw.step(np.array([mask >> i & 1 for i in range(raw.num_buttons)], np.uint8))
            for _ in range(4)
        ]
        expected.append(letterbox(np.maximum(steps[2][0], steps[3][0]), 64))
        expected_rewards.append(sum(step[1] for step in steps))
    raw.close()
    assert (np.stack(ours) == np.stack(expected)).all()
    assert rewards == expected_rewards[1:]


def test_reset_gives_the_same_frames_whatever_was_played_before() -> None:
    env = envs.make("Airstriker-Genesis")
    runs = []
    for seed, before in ((0, 0), (1, 50)):
        env.reset(seed=seed)
        for _ in range(before):
            env.step(np.int64(4))
        frames = [env.reset(seed=seed)[0]] + [env.step(np.int64(i % 5))[0] for i in range(30)]
        runs.append(np.stack(frames))
    env.close()
    assert (runs[0] == runs[1]).all()


@pytest.mark.parametrize("game", PLAYABLE)
def test_every_playable_game_starts_and_obeys(game: str) -> None:
    """The first screen is drawn, and actions soon make a difference: no game waits for START.

    Seven of them play a tune or an intro first, CrazyClimber the longest, of 80 steps.
    """
    env = envs.make(game)
    try:
        for horizon in (20, 100):
            ends = set()
            for action in range(len(ACTIONS)):
                first, _ = env.reset()
                for _ in range(horizon):
                    last = env.step(np.int64(action))[0]
                ends.add(last.tobytes())
            if len(ends) > 1:
                break
    finally:
        env.close()
    assert first.max() > 0
    assert len(ends) > 1


def test_episode_ends() -> None:
    env = envs.make("Airstriker-Genesis", max_steps=3)
    env.reset()
    flags = [env.step(np.int64(0))[2:4] for _ in range(3)]
    env.close()
    assert flags == [(False, False), (False, False), (False, True)]
    env = envs.make("Airstriker-Genesis")
    env.reset()
    steps = next(step for step in range(1, 2000) if env.step(np.int64(step % 2))[2])
    env.close()
    assert 100 < steps < 1999, "game over ends the episode"


def test_letterbox_keeps_the_shape_inside_black_bars() -> None:
    tall = letterbox(np.full((210, 160, 3), 255, np.uint8), 64)
    columns = tall.all(axis=(0, 2))
    assert tall.shape == (64, 64, 3)
    assert columns.sum() == round(64 * 160 / 210)
    assert not tall[:, ~columns].any()
    assert abs(int(columns.argmax()) - int(columns[::-1].argmax())) <= 1, "centred"
    wide = letterbox(np.full((224, 320, 3), 255, np.uint8), 64)
    assert wide.all(axis=(1, 2)).sum() == round(64 * 224 / 320)
    half = np.zeros((128, 128, 3), np.uint8)
    half[:, ::2] = 200
    assert (letterbox(half, 64) == 100).all(), "area averaging"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"game": "Airstriker"}, "did you mean Airstriker-Genesis"),
        ({"game": "airstriker-genesis"}, "did you mean Airstriker-Genesis"),
        ({"game": "zzzzqqqq"}, "autoexplore catalog"),
        (
            {"game": "SonicTheHedgehog-Genesis"},
            "no ROM for SonicTheHedgehog-Genesis.*python -m envs.roms FOLDER",
        ),
        ({"game": "Airstriker-Genesis", "state": "Level9"}, "no state 'Level9': it has Level1"),
        ({"game": "Airstriker-Genesis", "frame_skip": 0}, "must be at least 1"),
        ({"game": "Counting", "state": "Start"}, "no savestates"),
    ],
)
def test_bad_input_is_one_line(options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        envs.make(**options)
    assert "\n" not in str(error.value)


def test_state_of_another_emulator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stable_retro.RetroEnv, "load_state", _load_nonsense)
    with pytest.raises(InputError, match="does not belong to the Genesis emulator"):
        envs.make("Airstriker-Genesis")


def _load_nonsense(env: stable_retro.RetroEnv, name: str, kind: object) -> None:
    env.statename, env.initial_state = name, b"not a savestate"


def test_one_emulator_a_process_and_actions_in_range() -> None:
    env = envs.make(ATARI)
    with pytest.raises(InputError, match="already runs a game"):
        envs.make("Airstriker-Genesis")
    with pytest.raises(InputError, match="reset"):
        env.step(np.int64(0))
    env.reset()
    with pytest.raises(InputError, match="action -1"):
        env.step(np.int64(-1))
    env.close()
    envs.make("Airstriker-Genesis").close()

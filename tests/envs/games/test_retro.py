"""Every game through one env: buttons, frame skip, letterbox, determinism, counting, and what a person gets wrong."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import stable_retro
from gymnasium.utils.env_checker import check_env

import envs
from envs import catalog, roms
from envs.controls import ACTIONS, JUMP_BUTTON, action_masks, button_mask
from envs.games.counting import read_frame
from envs.games.retro import letterbox
from envs.utils.errors import InputError
from envs.utils.screen_hash import distinct_screens

PLAYABLE = catalog.games(playable=True)
CONSOLES = {core: info["buttons"] for core, info in stable_retro.data.EMU_INFO.items()}
ATARI = "Kangaroo-Atari2600"


@pytest.mark.parametrize("console", sorted(CONSOLES))
def test_each_action_presses_one_named_button_on_every_console(console: str) -> None:
    buttons = CONSOLES[console]
    pressed = [buttons[mask.bit_length() - 1] for mask in action_masks(buttons, console)]
    assert pressed == ["RIGHT", "LEFT", "UP", "DOWN", JUMP_BUTTON[console]]
    assert all(mask.bit_count() == 1 and mask < 2**16 for mask in action_masks(buttons, console))


def test_jump_buttons_are_the_ones_of_the_paper() -> None:
    expected = {
        "Nes": "A",
        "Sms": "A",
        "GameBoy": "A",
        "Snes": "B",
        "32x": "B",
        "Genesis": "C",
        "Atari2600": "BUTTON",
    }
    assert {console: JUMP_BUTTON[console] for console in expected} == expected


def test_every_game_of_the_catalogue_has_a_console_with_controls() -> None:
    for console in catalog.table()["console"].unique():
        buttons = CONSOLES["FBNeo" if console == "Arcade" else console]
        assert len(set(action_masks(buttons, console))) == len(ACTIONS)


def test_controls_refuse_what_does_not_exist() -> None:
    with pytest.raises(InputError, match="action 5 does not exist"):
        button_mask(5, CONSOLES["Nes"], "Nes")
    with pytest.raises(InputError, match="no jump button is known for console 'Vectrex'"):
        button_mask(4, CONSOLES["Nes"], "Vectrex")
    with pytest.raises(InputError, match="has no button RIGHT"):
        button_mask(0, ["A", None], "Nes")


@pytest.mark.filterwarnings("ignore:.*render modes.*")
@pytest.mark.parametrize("game", ["Airstriker-Genesis-v0", ATARI, "Counting"])
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
    """The first screen is drawn, and what is pressed makes a difference soon: no game waits for START.

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


def test_counting_frames_say_step_and_action() -> None:
    env = envs.make("Counting", max_steps=300)
    frame, _ = env.reset()
    assert read_frame(frame) == (0, -1)
    for step in range(1, 301):
        action = step * 7 % 5
        frame, reward, terminated, truncated, _ = env.step(np.int64(action))
        blurred = np.clip(frame * 0.7 + 20, 0, 255).astype(np.uint8)
        assert read_frame(frame) == read_frame(blurred) == (step, action)
        assert (reward, terminated, truncated) == (step, False, step == 300)


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


def test_catalogue_lists_every_integration() -> None:
    table = catalog.table()
    assert len(table) == table["game"].nunique() == 1006
    assert list(table.columns[:3]) == ["game", "console", "playable"]
    assert "Airstriker-Genesis" in PLAYABLE
    assert catalog.has_rom("Airstriker-Genesis-v0")
    assert not catalog.has_rom("SonicTheHedgehog-Genesis")
    assert catalog.games(console="Genesis", playable=True) == ["Airstriker-Genesis"]
    assert len(catalog.games(console="Nes", limit=7)) == 7
    with pytest.raises(InputError, match=r"known are .*Genesis"):
        catalog.games(console="Playstation")


def test_roms_are_imported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "incoming").mkdir()
    (tmp_path / "data" / "Game-Genesis-v0").mkdir(parents=True)
    rom = bytes(range(256))
    with zipfile.ZipFile(tmp_path / "incoming" / "pack.zip", "w") as archive:
        archive.writestr("game.md", rom)
    (tmp_path / "incoming" / "other.md").write_bytes(b"not a known game")
    known = {
        "4916d6bdb7f78e6803698cab32d1586ea457dfc8": (
            "Game-Genesis-v0",
            ".md",
            str(tmp_path / "data"),
        )
    }
    monkeypatch.setattr(stable_retro.data, "get_known_hashes", lambda: known)
    assert roms.import_roms(tmp_path / "incoming") == ["Game-Genesis"]
    stored = tmp_path / "data" / "Game-Genesis-v0" / "rom.md"
    assert stored.read_bytes() == rom
    assert roms.import_roms(tmp_path / "incoming") == []
    with pytest.raises(InputError, match="there is no folder"):
        roms.import_roms(tmp_path / "nowhere")


def test_roms_command_says_what_can_be_played(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    roms.main([])
    assert capsys.readouterr().out == f"0 games imported; {len(PLAYABLE)} of 1006 can be played\n"
    monkeypatch.setattr(roms, "bundled_folder", lambda: None)
    roms.main([])
    assert "ale-py is not installed" in capsys.readouterr().out


def test_distinct_screens_counts_places_not_pixels() -> None:
    frames = np.full((4, 64, 64, 3), 40, np.uint8)
    frames[1, 10, 10] = 60  # one faint pixel
    frames[2, 8:16, 8:16] = 200  # a sprite
    frames[3, 8:16, 40:48] = 200  # the same sprite elsewhere
    assert len(distinct_screens(frames[:2])) == 1
    assert len(distinct_screens(frames)) == 3
    assert distinct_screens(frames[:2]) | distinct_screens(frames[2:]) == distinct_screens(frames)
    with pytest.raises(InputError, match="uint8"):
        distinct_screens(frames.astype(np.float32))
    with pytest.raises(InputError, match="cells"):
        distinct_screens(np.zeros((1, 60, 60, 3), np.uint8))


LABEL_WORDS = {
    "view": {"side", "third person", "top", "first person", "several", "unknown"},
    "axis": {"free", "horizontal", "vertical", "fixed", "tube", "unknown"},
    "motion": {
        "platformer",
        "space_shooter",
        "fight",
        "shooter",
        "action",
        "sport",
        "maze",
        "race",
        "grid",
        "pong",
        "simulation",
        "pinball",
        "flying_platformer",
        "tetris",
        "other",
        "unknown",
    },
    "transition": {"yes", "no", "unknown"},
    "scrolling": {"yes", "no", "unknown"},
}


def test_every_game_is_labelled_in_the_vocabulary() -> None:
    table = catalog.table()
    assert list(table["game"]) == list(catalog.integrations())
    assert not table.isna().any().any()
    for column, words in LABEL_WORDS.items():
        assert set(table[column]) <= words, column
    assert table["confidence"].between(0, 1).all()
    assert (table.loc[table["motion"] == "unknown", "confidence"] == 0).all()
    assert (table["motion"] != "unknown").sum() >= 974


def test_games_answers_combinations_of_labels() -> None:
    side_platformers = catalog.games(console="Nes", view="side", motion="platformer")
    assert {"SuperMarioBros-Nes", "AdventureIslandII-Nes"} <= set(side_platformers)
    assert "1942-Nes" not in side_platformers
    assert catalog.games(motion="pong", playable=True) == ["Breakout-Atari2600", "Pong-Atari2600"]
    with pytest.raises(InputError, match="no game has motion 'dancing'"):
        catalog.games(motion="dancing")

"""Probing of controls on real games: motion is named, and the same seed gives the same."""

import json
from pathlib import Path

import numpy as np
import pytest

from envs.controls import control_buttons
from envs.games.retro import RetroEnv
from envs.utils.errors import InputError
from experiments.__main__ import execute
from experiments.catalog_tools.control_probe import compare, probe

AIRSTRIKER = "Airstriker-Genesis"


def test_controls_of_airstriker() -> None:
    found = probe(AIRSTRIKER, states=4)
    labels = {name: control.label for name, control in found.controls.items()}
    # Its ship flies right and left and shoots with B; up, down and C do nothing.
    dead = dict.fromkeys(("up", "down", "jump"), "none")
    assert labels == {"right": "right", "left": "left", **dead, "secondary": "shoot"}
    assert {name for name, control in found.controls.items() if control.dead} == set(dead)
    assert not found.needs_start
    assert found.controls["right"].confidence > 0.9
    assert all(trial.across > 0 for trial in found.controls["right"].trials)
    assert found == probe(AIRSTRIKER, states=4)


def test_a_game_that_waits_for_a_button_is_begun() -> None:
    found = probe("Seaquest-Atari2600", states=3)
    assert (found.needs_start, found.starter) == (True, "RESET")
    assert (found.controls["right"].label, found.controls["left"].label) == ("right", "left")
    assert not found.controls["secondary"].trials


def test_what_is_measured_of_a_square_that_moves() -> None:
    def moving_square(across: int, down: int) -> list[np.ndarray]:
        screens = []
        for step in range(10):
            screen = np.zeros((120, 160, 3), np.uint8)
            top, left = 50 + down * (step + 1), 70 + across * (step + 1)
            screen[top : top + 10, left : left + 10] = 200
            screens.append(screen)
        return screens

    held = {
        "right": moving_square(3, 0),
        "left": moving_square(-3, 0),
        "up": moving_square(0, -3),
        "down": moving_square(0, 3),
        "jump": moving_square(0, 0),
    }
    found = compare(moving_square(0, 0), held)
    assert {name: trial.label for name, trial in found.items()} == {
        **{name: name for name in held},
        "jump": "none",
    }
    assert found["right"].across == pytest.approx(9, abs=2)
    shots = moving_square(0, 0)
    for step, screen in enumerate(shots):
        screen[44 - 4 * step : 48 - 4 * step, 74:76] = 255
    shoots = compare(moving_square(0, 0), {**held, "jump": shots})["jump"]
    assert shoots.label == "shoot"


def test_a_state_that_is_restored_goes_on_bit_for_bit() -> None:
    env = RetroEnv(AIRSTRIKER)
    try:
        env.reset()
        for _ in range(7):
            env.hold(["RIGHT", "B"])
        state = env.save_state()
        first = [env.hold(["LEFT"]).copy() for _ in range(5)]
        env.hold(["UP"])
        env.load_state(state)
        assert all(np.array_equal(screen, env.hold(["LEFT"])) for screen in first)
        assert control_buttons(env.buttons, env.console) == {
            "right": "RIGHT",
            "left": "LEFT",
            "up": "UP",
            "down": "DOWN",
            "jump": "C",
            "secondary": "B",
        }
        with pytest.raises(InputError, match="has no button Q"):
            env.hold(["Q"])
        with pytest.raises(InputError, match="not a state of the Genesis emulator"):
            env.load_state(b"nothing")
    finally:
        env.close()


def test_the_command_probes_each_game_once_and_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    breakout = tmp_path / "Breakout-Atari2600.json"
    command = ["catalog", "probe", AIRSTRIKER, "Breakout-Atari2600", "--states", "3"]
    command += ["--out", str(tmp_path)]
    assert execute(command) == 0
    printed = capsys.readouterr().out
    assert ["right", "2", "2", "100%"] in [line.split() for line in printed.splitlines()]
    assert set(tmp_path.iterdir()) == {tmp_path / f"{AIRSTRIKER}.json", breakout}
    controls = json.loads(breakout.read_text())["probe"]["controls"]
    assert controls["right"]["label"] == "right"
    written = breakout.stat().st_mtime_ns
    assert execute(command) == 0
    assert breakout.stat().st_mtime_ns == written


def test_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="states 0 must be 1 or more"):
        probe(AIRSTRIKER, states=0)
    assert execute(["catalog", "probe", "SuperMarioBros-Nes"]) == 2
    assert "no ROM for SuperMarioBros-Nes" in capsys.readouterr().err

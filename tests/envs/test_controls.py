"""Actions and the console buttons that they press."""

import pytest
import stable_retro

from envs import action_names, catalog
from envs.controls import ACTIONS, COINRUN_ACTIONS, JUMP_BUTTON, action_masks, button_mask
from envs.utils.errors import InputError

CONSOLES = {core: info["buttons"] for core, info in stable_retro.data.EMU_INFO.items()}


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


def test_games_of_a_run_share_their_actions() -> None:
    assert action_names(["Counting", "Airstriker-Genesis"]) == ACTIONS
    assert action_names(["CoinRun", "CoinRun-v0"]) == COINRUN_ACTIONS
    with pytest.raises(InputError, match="seven actions, the other games five"):
        action_names(["CoinRun", "Counting"])

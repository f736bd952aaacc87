"""Actions and the console buttons that they press."""

import pytest
import stable_retro

from envs import action_names, catalog, chosen_actions
from envs.controls import (
    ACTIONS,
    COINRUN_ACTIONS,
    JUMP_BUTTON,
    action_masks,
    button_mask,
    parse_action_names,
)
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
    with pytest.raises(InputError, match="console Nes has no button fly"):
        button_mask("fly", CONSOLES["Nes"], "Nes")
    with pytest.raises(InputError, match="no jump button is known for console 'Vectrex'"):
        button_mask("jump", CONSOLES["Nes"], "Vectrex")
    with pytest.raises(InputError, match="has no button RIGHT"):
        button_mask("right", ["A", None], "Nes")
    with pytest.raises(InputError, match="action 'secondary': console Atari2600 has no button"):
        button_mask("secondary", CONSOLES["Atari2600"], "Atari2600")


def test_chosen_actions_hold_any_buttons() -> None:
    buttons = CONSOLES["Nes"]
    actions = ("none", "jump+right", "secondary", "SELECT+A")
    masks = action_masks(buttons, "Nes", actions)
    pressed = [{buttons[bit] for bit in range(16) if mask >> bit & 1} for mask in masks]
    assert pressed == [set(), {"A", "RIGHT"}, {"B"}, {"SELECT", "A"}]
    with pytest.raises(InputError, match="two of them press the same buttons"):
        action_masks(buttons, "Nes", ("jump", "A"))


def test_actions_are_parsed_with_and_without_commas() -> None:
    assert parse_action_names(["right,left", "jump+right"]) == ("right", "left", "jump+right")
    for given in (["right"], ["right,right"], ["right,,left"]):
        with pytest.raises(InputError, match="give"):
            parse_action_names(given)


def test_games_of_a_run_share_their_actions() -> None:
    assert action_names(["Counting", "Airstriker-Genesis"]) == ACTIONS
    assert action_names(["CoinRun", "CoinRun-v0"]) == COINRUN_ACTIONS
    with pytest.raises(InputError, match="seven actions, the other games five"):
        action_names(["CoinRun", "Counting"])
    chosen = ("right", "jump+right")
    assert action_names(["Airstriker-Genesis"], chosen) == chosen
    assert chosen_actions(["Airstriker-Genesis"], chosen) == chosen
    assert chosen_actions(["Airstriker-Genesis"], ACTIONS) == (), "its own"
    with pytest.raises(InputError, match=r"Counting has the actions .* others cannot be chosen"):
        action_names(["Airstriker-Genesis", "Counting"], chosen)

"""The five actions of every game, and the buttons of a console that they press.

Buttons are always chosen by name from the list of the emulator core: their positions differ from console to console.
START, SELECT, RESET and PAUSE belong to no action, because pressed at random they pause or restart a game.
"""

from collections.abc import Sequence

from envs.utils.errors import InputError

ACTIONS: tuple[str, ...] = ("right", "left", "up", "down", "jump")

DIRECTIONS = {"right": "RIGHT", "left": "LEFT", "up": "UP", "down": "DOWN"}

# Jump is the first button of the pairs in RetroAct (jump / secondary); consoles outside it follow their nearest kin.
JUMP_BUTTON = {
    "Nes": "A",
    "Sms": "A",
    "GameBoy": "A",
    "GbColor": "A",
    "GbAdvance": "A",
    "GameGear": "A",
    "Snes": "B",
    "32x": "B",
    "NintendoDs": "B",
    "Genesis": "C",
    "SCD": "C",
    "Saturn": "C",
    "N64": "A",
    "PCEngine": "I",
    "Arcade": "B",  # libretro's name for the first button of an arcade board
    "FBNeo": "B",  # the core behind Arcade
    "Atari2600": "BUTTON",
}


# The second button of the pairs in RetroAct, for consoles outside it their nearest kin's. Atari 2600 has one button.
SECONDARY_BUTTON = {
    **dict.fromkeys(
        ("Nes", "Sms", "GameBoy", "GbColor", "GbAdvance", "GameGear", "SCD", "Genesis", "N64"), "B"
    ),
    **dict.fromkeys(("Snes", "32x", "NintendoDs"), "Y"),
    **dict.fromkeys(("Saturn", "Arcade", "FBNeo"), "A"),
    "PCEngine": "II",
}


def button_mask(action: int, buttons: Sequence[str | None], console: str) -> int:
    """The buttons that `action` holds, as bits: bit i is `buttons[i]` of the emulator core. Fits uint16.

    `action` is an index into `ACTIONS`; `buttons` is `env.buttons` of stable-retro, None where a core leaves a place
    out. Raises InputError where the action does not exist or the console has no such button.
    """
    if not 0 <= action < len(ACTIONS):
        raise InputError(
            f"action {action} does not exist: actions are 0 to {len(ACTIONS) - 1} ({', '.join(ACTIONS)})"
        )
    name = ACTIONS[action]
    if name == "jump" and console not in JUMP_BUTTON:
        raise InputError(
            f"no jump button is known for console {console!r}: add it to envs.controls.JUMP_BUTTON"
        )
    wanted = DIRECTIONS.get(name) or JUMP_BUTTON[console]
    if wanted not in buttons:
        raise InputError(
            f"console {console} has no button {wanted}: it has {', '.join(b for b in buttons if b)}"
        )
    return 1 << list(buttons).index(wanted)


def action_masks(buttons: Sequence[str | None], console: str) -> tuple[int, ...]:
    """`button_mask` of each action in the order of `ACTIONS`."""
    return tuple(button_mask(action, buttons, console) for action in range(len(ACTIONS)))


def control_buttons(buttons: Sequence[str | None], console: str) -> dict[str, str]:
    """Control -> the button of the console that it presses: the five actions, and `secondary` where there is one."""
    named = {**DIRECTIONS, "jump": JUMP_BUTTON[console]}
    second = SECONDARY_BUTTON.get(console)
    return {**named, "secondary": second} if second is not None and second in buttons else named

"""The five actions shared by all games and the console buttons that they press.

Buttons are looked up by name in the emulator core's list, because their positions differ between
consoles. No action presses START, SELECT, RESET or PAUSE: pressed at random they would pause or
restart a game.
"""

from collections.abc import Sequence

from envs.utils.errors import InputError

ACTIONS: tuple[str, ...] = ("right", "left", "up", "down", "jump")

COINRUN_ACTIONS = ("none", "right", "left", "jump", "jump right", "jump left", "down")
"""The seven actions of the original CoinRun, in its order. Down drops through a crate."""

DIRECTIONS = {"right": "RIGHT", "left": "LEFT", "up": "UP", "down": "DOWN"}

# Arcade and its core FBNeo number their buttons from B, libretro's name for the first one.
JUMP_BUTTON = {
    **dict.fromkeys(("Nes", "Sms", "GameBoy", "GbColor", "GbAdvance", "GameGear", "N64"), "A"),
    **dict.fromkeys(("Snes", "32x", "NintendoDs", "Arcade", "FBNeo"), "B"),
    **dict.fromkeys(("Genesis", "SCD", "Saturn"), "C"),
    "PCEngine": "I",
    "Atari2600": "BUTTON",
}
"""First button of RetroAct's pair (jump / secondary); that of the most similar console elsewhere.
"""

SECONDARY_BUTTON = {
    **dict.fromkeys(
        ("Nes", "Sms", "GameBoy", "GbColor", "GbAdvance", "GameGear", "SCD", "Genesis", "N64"), "B"
    ),
    **dict.fromkeys(("Snes", "32x", "NintendoDs"), "Y"),
    **dict.fromkeys(("Saturn", "Arcade", "FBNeo"), "A"),
    "PCEngine": "II",
}
"""Second button of these pairs; Atari 2600 has a single button."""


def button_mask(action: int, buttons: Sequence[str | None], console: str) -> int:
    """Return the button of `action` as a uint16 mask: bit i is `buttons[i]` of the emulator core.

    `action` is an index into `ACTIONS`; `buttons` is `env.buttons` of stable-retro, with None for
    unused positions.

    Raises: InputError if the action does not exist or the console has no such button.
    """
    if not 0 <= action < len(ACTIONS):
        raise InputError(
            f"action {action} does not exist: actions are 0 to {len(ACTIONS) - 1} "
            f"({', '.join(ACTIONS)})"
        )
    name = ACTIONS[action]
    if name == "jump" and console not in JUMP_BUTTON:
        raise InputError(
            f"no jump button is known for console {console!r}: add it to envs.controls.JUMP_BUTTON"
        )
    button = DIRECTIONS.get(name) or JUMP_BUTTON[console]
    if button not in buttons:
        raise InputError(
            f"console {console} has no button {button}: it has {', '.join(b for b in buttons if b)}"
        )
    return 1 << list(buttons).index(button)


def action_masks(buttons: Sequence[str | None], console: str) -> tuple[int, ...]:
    """Return `button_mask` of each action in the order of `ACTIONS`."""
    return tuple(button_mask(action, buttons, console) for action in range(len(ACTIONS)))


def control_buttons(buttons: Sequence[str | None], console: str) -> dict[str, str]:
    """Return control -> button, for the five actions and `secondary` if the console has it."""
    named = {**DIRECTIONS, "jump": JUMP_BUTTON[console]}
    second = SECONDARY_BUTTON.get(console)
    return {**named, "secondary": second} if second is not None and second in buttons else named

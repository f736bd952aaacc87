"""The five actions shared by all games, other actions by name, and the buttons that they press.

Buttons are looked up by name in the emulator core's list, because their positions differ between
consoles. None of the five actions presses START, SELECT, RESET or PAUSE: pressed at random they
would pause or restart a game.
"""

from collections.abc import Sequence

from envs.utils.errors import InputError

ACTIONS: tuple[str, ...] = ("right", "left", "up", "down", "jump")

COINRUN_ACTIONS = ("none", "right", "left", "jump", "jump right", "jump left", "down")
"""The seven actions of the original CoinRun, in its order. Down drops through a crate."""

OWN_ACTIONS = (ACTIONS, COINRUN_ACTIONS)
"""Actions that games have if no others are chosen."""


def numbered_actions(count: int) -> tuple[str, ...]:
    """Return names of actions of which only the number is known."""
    return tuple(f"action {index}" for index in range(count))


def custom_actions(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of actions that were chosen; empty for a game's own and for numbered ones."""
    names = tuple(names)
    return () if names in (*OWN_ACTIONS, numbered_actions(len(names))) else names


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


def parse_action_names(given: Sequence[str]) -> tuple[str, ...]:
    """Return names of actions, each given on its own or several joined by commas.

    Raises: InputError for a single action, more than 256, or one given twice.
    """
    names = tuple(name.strip() for text in given for name in text.split(","))
    if names and not 2 <= len(names) <= 256:
        raise InputError(f"actions {', '.join(names)}: give 2 to 256")
    if not all(names) or len(set(names)) < len(names):
        raise InputError(f"actions {', '.join(names)}: give each a name of its own")
    return names


def button_mask(action: str, buttons: Sequence[str | None], console: str) -> int:
    """Return the buttons of `action` as a uint16 mask: bit i is `buttons[i]` of the emulator core.

    `action` is "none", or names joined by "+", as in "jump+right": right, left, up, down, jump,
    secondary, or a button of the console. `buttons` is `env.buttons` of stable-retro, with None for
    unused positions.

    Raises: InputError if the console has no such button.
    """
    if action == "none":
        return 0
    mask = 0
    for name in action.split("+"):
        if name == "jump" and console not in JUMP_BUTTON:
            raise InputError(
                f"no jump button is known for console {console!r}: add it to "
                "envs.controls.JUMP_BUTTON"
            )
        known = {**DIRECTIONS, "jump": JUMP_BUTTON.get(console)}
        known["secondary"] = SECONDARY_BUTTON.get(console)
        button = known.get(name, name)
        if button is None or button not in buttons:
            raise InputError(
                f"action {action!r}: console {console} has no button {button or name}: it has "
                f"{', '.join(b for b in buttons if b)}"
            )
        mask |= 1 << list(buttons).index(button)
    return mask


def action_masks(
    buttons: Sequence[str | None], console: str, actions: Sequence[str] = ACTIONS
) -> tuple[int, ...]:
    """Return `button_mask` of each action. Raises: InputError if two press the same buttons."""
    masks = tuple(button_mask(action, buttons, console) for action in actions)
    if len(set(masks)) < len(masks):
        raise InputError(
            f"actions {', '.join(actions)}: two of them press the same buttons of console {console}"
        )
    return masks


def control_buttons(buttons: Sequence[str | None], console: str) -> dict[str, str]:
    """Return control -> button, for the five actions and `secondary` if the console has it."""
    named = {**DIRECTIONS, "jump": JUMP_BUTTON[console]}
    second = SECONDARY_BUTTON.get(console)
    return {**named, "secondary": second} if second is not None and second in buttons else named

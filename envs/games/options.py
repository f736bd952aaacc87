"""Options of games as text, such as levels=200, for command lines."""

from collections.abc import Mapping, Sequence
from typing import Any

from envs import COINRUN, make
from envs.games.base import EnvOptions
from envs.utils.errors import InputError

COINRUN_OPTIONS = {"levels": int, "start_level": int, "velocity": str, "difficulty": str}
"""Options of CoinRun (`envs.games.coinrun`) with their types; the other games have none."""


def parse_env_options(texts: Sequence[str], games: Sequence[str]) -> EnvOptions:
    """Return the options of `envs.make` that texts such as "levels=200" name, sorted by name.

    The order of the texts must not matter, because options are part of an episode's identity.

    Raises: InputError for an option that not all of the games have, one given twice, or a value
    that its game refuses.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name or not value:
            raise InputError(f"option {text!r}: give name=value, e.g. levels=200")
        without = [game for game in games if game != COINRUN]
        if name not in COINRUN_OPTIONS or without:
            game = without[0] if without else COINRUN
            raise InputError(
                f"{game} has no option {name}: CoinRun alone has {', '.join(COINRUN_OPTIONS)}"
            )
        if name in options:
            raise InputError(f"option {name} is given twice")
        try:
            options[name] = COINRUN_OPTIONS[name](value)
        except ValueError:
            raise InputError(f"option {text}: give a whole number") from None
    if options:
        make(COINRUN, **options).close()  # refuses wrong values
    return tuple(sorted(options.items()))


def format_env_options(options: Mapping[str, str | int]) -> list[str]:
    """Return recorded options as the texts that `parse_env_options` reads."""
    return [f"{name}={value}" for name, value in options.items()]

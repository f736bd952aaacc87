"""Games as Gymnasium environments, recorded episodes, and the workers that record them."""

from typing import TYPE_CHECKING, Any

from envs.controls import ACTIONS, COINRUN_ACTIONS, custom_actions
from envs.utils.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import gymnasium

COUNTING = "Counting"
COINRUN = "CoinRun"
CORRIDOR, NOISY_TV = "Corridor", "NoisyTV"
BUILTIN = (COUNTING, CORRIDOR, NOISY_TV, COINRUN)
"""Games that are not part of stable-retro and need no ROM. CoinRun needs the extra `coinrun`."""


def make(game: str, *, actions: "Sequence[str]" = (), **options: Any) -> "gymnasium.Env[Any, Any]":
    """Return the env of a game: observations uint8 (64, 64, 3), actions Discrete(5).

    `game` is a name of stable-retro, with or without "-v0", or one of these games, which need no
    ROM: "Counting" (`envs.games.counting`), "Corridor" and "NoisyTV" (`envs.games.corridor`),
    "CoinRun" (`envs.games.coinrun`, with seven actions and more options). Actions are in the order
    of `envs.controls.ACTIONS`; `actions` names others of a game of stable-retro, such as
    "jump+right", see `envs.controls.button_mask`.

    Options: frame_skip=4 (CoinRun: 1), size=64, seed=None, state=None (name of a savestate),
    max_steps=None. A process holds one emulator at a time: close an env before you make the next
    one.

    Raises: InputError for an unknown game, state or action, a missing ROM or a missing package.
    """
    action_names([game], actions)  # refuses those that cannot be chosen
    # Imported here, so that readers of episodes load no emulator.
    name = game.removesuffix("-v0")
    if name == COINRUN:
        from envs.games.coinrun import CoinRunEnv

        return CoinRunEnv(**options)
    if name == COUNTING:
        from envs.games.counting import CountingEnv

        return CountingEnv(**options)
    if name in (CORRIDOR, NOISY_TV):
        from envs.games.corridor import CorridorEnv

        return CorridorEnv(television=name == NOISY_TV, **options)
    from envs.games.retro import RetroEnv

    return RetroEnv(game, actions=actions, **options)


def has_levels(game: str) -> bool:
    """Return True for a game whose every reset with another seed starts another level."""
    return _is_coinrun(game)


def action_names(games: "Sequence[str]", chosen: "Sequence[str]" = ()) -> tuple[str, ...]:
    """Return the actions that all of some games share: the chosen ones, else the games' own.

    Raises: InputError for games with different actions, and for chosen ones of a built-in game.
    """
    coinrun = set(map(_is_coinrun, games))
    if coinrun == {True, False}:
        raise InputError("CoinRun has seven actions, the other games five: use it alone")
    own = COINRUN_ACTIONS if coinrun == {True} else ACTIONS
    if not chosen or tuple(chosen) == own:
        return own
    fixed = [game for game in games if game.removesuffix("-v0") in BUILTIN]
    if fixed:
        raise InputError(f"{fixed[0]} has the actions {', '.join(own)}: others cannot be chosen")
    return tuple(chosen)


def chosen_actions(games: "Sequence[str]", actions: "Sequence[str]") -> tuple[str, ...]:
    """Return actions other than the games' own; empty for their own.

    Raises: InputError for actions of a built-in game, which cannot be chosen.
    """
    return custom_actions(action_names(games, actions)) if actions else ()


def _is_coinrun(game: str) -> bool:
    return game.removesuffix("-v0") == COINRUN


def builtin_name(game: str) -> str | None:
    """Return the name of a game of `BUILTIN`, or None for a game of stable-retro.

    CoinRun's package is loaded, because an installed package may still lack a system library.

    Raises: InputError if the game's package cannot be loaded.
    """
    name = game.removesuffix("-v0")
    if name == COINRUN:
        from envs.games.coinrun import load_envpool

        load_envpool()
    return name if name in BUILTIN else None

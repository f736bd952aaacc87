"""Real games and what they leave behind: a Gymnasium env per game, episodes on disk, and the actors that play."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gymnasium

COUNTING = "Counting"
COINRUN = "CoinRun"
CORRIDOR, NOISY_TV = "Corridor", "NoisyTV"
BUILTIN = (COUNTING, CORRIDOR, NOISY_TV, COINRUN)
"""Games that are not stable-retro's: they need no ROM. CoinRun needs the extra `coinrun`."""


def make(game: str, **options: Any) -> "gymnasium.Env[Any, Any]":
    """The env of one game: observations uint8 (64, 64, 3), actions Discrete(5) in the order of `envs.controls.ACTIONS`.

    `game` is a stable-retro name, with or without its "-v0" ending; or, without any ROM, "Counting" for the env of
    `envs.games.counting`, "Corridor" or "NoisyTV" for those of `envs.games.corridor`, or "CoinRun" for the one of `envs.games.coinrun`
    with seven actions and further options.
    Options: frame_skip=4 (CoinRun: 1), size=64, seed=None, state=None (a savestate's name), max_steps=None.
    A process holds one emulator at a time: close the env before you make the next one.
    Raises InputError for an unknown game, a missing ROM or package, or an unknown state.
    """
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

    return RetroEnv(game, **options)


def builtin_name(game: str) -> str | None:
    """The name of a game of `BUILTIN`, or None for one of stable-retro's. Raises InputError if its package is missing.

    The package of CoinRun is loaded for that: it can be there, and still lack a library of the system.
    """
    name = game.removesuffix("-v0")
    if name == COINRUN:
        from envs.games.coinrun import load_envpool

        load_envpool()
    return name if name in BUILTIN else None

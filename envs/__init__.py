"""Real games and what they leave behind: a Gymnasium env per game, episodes on disk, and the actors that play."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gymnasium

COUNTING = "Counting"


def make(game: str, **options: Any) -> "gymnasium.Env[Any, Any]":
    """The env of one game: observations uint8 (64, 64, 3), actions Discrete(5) in the order of `envs.controls.ACTIONS`.

    `game` is a stable-retro name, with or without its "-v0" ending, or "Counting" for the env of `envs.counting` that
    needs no ROM. Options: frame_skip=4, size=64, seed=None, state=None (a savestate's name), max_steps=None.
    A process holds one emulator at a time: close the env before you make the next one.
    Raises InputError for an unknown game, a missing ROM or an unknown state.
    """
    # Imported here, so that readers of episodes load no emulator.
    if game.removesuffix("-v0") == COUNTING:
        from envs.counting import CountingEnv

        return CountingEnv(**options)
    from envs.retro import RetroGame

    return RetroGame(game, **options)

"""Settings of `autoexplore reproduce`: the pipeline's presets with the games of the tables."""

from dataclasses import replace
from typing import Any

from experiments.pipeline.config import PipelineConfig, pipeline_preset

GAMES = ("PrivateEye-Atari2600", "Hero-Atari2600", "ElevatorAction-Atari2600")
MORE_GAMES = (
    "Alien-Atari2600",
    "CrazyClimber-Atari2600",
    "Frostbite-Atari2600",
    "Jamesbond-Atari2600",
    "JourneyEscape-Atari2600",
    "Kangaroo-Atari2600",
    "MontezumaRevenge-Atari2600",
    "Qbert-Atari2600",
)
"""Other games with a character, for the pretraining."""
PAPER_GAMES = ("SuperMarioBros-Nes", "AdventureIslandII-Nes", "Smurfs-Nes")
"""Games that the paper explores."""


def reproduction_preset(name: str, games: tuple[str, ...] = ()) -> PipelineConfig:
    """Return the settings of a preset: its pipeline's, with games of the same five actions.

    `games` are those of an item that is about them, e.g. CoinRun.
    """
    c = replace(pipeline_preset(name), games_apart=False, explorers=("agent",))
    if games:
        alone: dict[str, Any] = {"pretraining_games": (), "base_games": ()}
        return replace(c, games=games, **alone, **coinrun_settings(c))
    if name == "paper":
        return replace(c, games=PAPER_GAMES, evaluate={})
    if name == "debug":
        return replace(c, pretraining_games=("Corridor",), pretraining_episodes=2)
    # All games share a base model, so that each needs the agent's full training.
    c = replace(c, pretraining_games=MORE_GAMES, pretraining_episodes=8)
    return replace(c, games=GAMES, evaluate=_evaluation(name))


def coinrun_settings(c: PipelineConfig) -> dict[str, Any]:
    """Return the settings of the case study on CoinRun that differ from a preset's.

    An episode shows one level, so that short ones show more of them. The paper gives the batches of
    84 and the 50,000 steps of its best model (App. F), not how much was played.
    """
    if c.preset == "debug":
        return {}
    if c.preset == "paper":
        batch = {"batch_size": 84}
        components = {"tokenizer": batch, "lam": batch, "dynamics": {**batch, "iterations": 50_000}}
        play = {"random_episodes": 10_000, "explored_steps": c.random_steps}
        return {**components, **play, "evaluate": {}}
    length = {"random_steps": 100, "explored_steps": 100}
    lam = {"lam": {"iterations": c.tokenizer["iterations"]}} if c.tokenizer else {}
    return {
        **length,
        **lam,
        "random_episodes": 4 * c.random_episodes,
        "test_episodes": 4 * c.test_episodes,
        "evaluate": _evaluation(c.preset),
    }


def _evaluation(name: str) -> dict[str, Any]:
    return {"limit": 48, "steps": 4} if name == "cpu" else {"limit": 64, "steps": 8}

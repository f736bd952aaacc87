"""Settings of `autoexplore reproduce`: the pipeline's presets with the games of the tables."""

from dataclasses import replace

from experiments.pipeline.config import PipelineConfig, pipeline_preset

GAMES = ("PrivateEye-Atari2600", "Hero-Atari2600", "ElevatorAction-Atari2600")
PAPER_GAMES = ("SuperMarioBros-Nes", "AdventureIslandII-Nes", "Smurfs-Nes")
"""Games that the paper explores."""


def reproduction_preset(name: str) -> PipelineConfig:
    """Return the settings of a preset: its pipeline's, with games of the same five actions."""
    c = replace(pipeline_preset(name), games_apart=False, explorers=("agent",))
    if name == "paper":
        return replace(c, games=PAPER_GAMES, evaluate={})
    if name == "debug":
        return c
    # All games share a base model, so that each needs the agent's full training.
    evaluate = {"limit": 48, "steps": 4} if name == "cpu" else {"limit": 64, "steps": 8}
    return replace(c, games=GAMES, evaluate=evaluate)

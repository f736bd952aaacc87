"""What a pipeline does at each preset: games, amounts of play, lengths of training. Data, not code."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from envs.utils.errors import InputError


@dataclass(frozen=True)
class PipelineConfig:
    """A whole pipeline. Seeds of its parts are derived from `seed`, so that no two of them play the same episodes."""

    preset: str
    """Sizes of the models and of their training: debug, cpu, paper."""
    games: tuple[str, ...]
    """Games of every stage."""
    seed: int = 0
    """The same seed gives the same run."""
    random_episodes: int = 50
    """Random agent's episodes of each game, for the first training."""
    explored_episodes: int = 10_000
    """Explorer's episodes of each game, for fine-tuning; the comparison gets as many frames of random play."""
    test_episodes: int = 500
    """Held-out episodes of each game and of each of the two agents."""
    random_steps: int = 500
    """Longest episode of the first training."""
    explored_steps: int = 700
    """Longest episode of the data for fine-tuning and of the test set."""
    explored_epsilon: float = 0.0
    """Share of random actions mixed into the explorer's own when it collects."""
    workers: int = 2
    """Emulator processes that collect."""
    threads: int = 0
    """Torch threads of training and evaluation; 0 for as many as there are cores."""
    train_workers: int = 0
    """Ray Train workers that share each training, one a GPU where there are as many; 0 trains in the driver."""
    tokenizer: dict[str, Any] = field(default_factory=dict)
    """Changes to the preset's recipe of the tokenizer's training."""
    dynamics: dict[str, Any] = field(default_factory=dict)
    """Changes to the preset's recipe of the dynamics model's training."""
    decoder_finetune: dict[str, Any] = field(default_factory=dict)
    """The same for the decoder's fine-tuning; both sides of the comparison get it alike."""
    dynamics_finetune: dict[str, Any] = field(default_factory=dict)
    """The same for the dynamics model's fine-tuning; both sides of the comparison get it alike."""
    explore: dict[str, Any] = field(default_factory=dict)
    """Arguments of `exploration.explore`."""
    scorer: Literal["local", "serve"] = "serve"
    """Who computes the explorer's reward."""
    evaluate: dict[str, Any] = field(default_factory=dict)
    """Arguments of `worldmodel.evaluation.evaluate.evaluate`."""
    expected_seconds: float | None = None
    """How long the whole takes on two cores; None where it was not measured."""


DEMO_GAMES = ("Airstriker-Genesis", "StarGunner-Atari2600", "JourneyEscape-Atari2600")

PLANS: dict[str, PipelineConfig] = {
    "debug": PipelineConfig(
        preset="debug",
        games=("Counting",),
        random_episodes=3,
        explored_episodes=2,
        test_episodes=1,
        random_steps=60,
        explored_steps=60,
        explored_epsilon=0.1,
        explore={"runners": 1, "envs_per_runner": 2},
        threads=1,
        scorer="local",
        evaluate={"horizon": 4, "limit": 2, "steps": 2, "mode": "autoregressive", "distance_frames": 4},
        expected_seconds=90.0,
    ),
    "cpu": PipelineConfig(
        preset="cpu",
        games=DEMO_GAMES,
        random_episodes=16,
        explored_episodes=8,
        test_episodes=3,
        random_steps=400,
        explored_steps=400,
        explored_epsilon=0.1,
        explore={"runners": 2, "envs_per_runner": 4},
        evaluate={"limit": 12, "steps": 1, "mode": "autoregressive", "distance_frames": 60},
        expected_seconds=1_000.0,
    ),
    "paper": PipelineConfig(
        preset="paper",
        games=("SuperMarioBros-Nes",),
        workers=64,
        train_workers=8,
        explore={"runners": 8, "envs_per_runner": 1},
        evaluate={"mode": "autoregressive"},
    ),
}


def plan(preset: str, **changes: Any) -> PipelineConfig:
    """The plan of a preset with single fields changed; a change of None is none. InputError for wrong ones."""
    if preset not in PLANS:
        raise InputError(f"unknown preset {preset!r}: choose one of {', '.join(PLANS)}")
    made = dataclasses.replace(PLANS[preset], **{name: value for name, value in changes.items() if value is not None})
    for name in ("random_episodes", "explored_episodes", "test_episodes", "random_steps", "explored_steps", "workers"):
        if getattr(made, name) < 1:
            raise InputError(f"{name.replace('_', ' ')} {getattr(made, name)}: give 1 or more")
    if made.train_workers < 0:
        raise InputError(f"train workers {made.train_workers}: give 0 (in this process) or more")
    return made

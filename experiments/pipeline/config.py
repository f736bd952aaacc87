"""Presets of the pipeline: games, amounts of data, lengths of training."""

from dataclasses import dataclass, field
from typing import Any, Literal

import tyro

from envs.utils.errors import InputError

Settings = tyro.conf.Fixed[dict[str, Any]]
"""Changes to the preset of a stage. They are no flags, but a --config file may hold them."""


@dataclass(frozen=True)
class PipelineConfig:
    """Settings of a whole pipeline. The seeds of its parts derive from `seed`, without overlap."""

    preset: Literal["debug", "cpu", "paper"]
    """debug: minutes, without learning anything; cpu: three games, 48 minutes on two busy cores;
    paper: the published sizes."""
    games: tuple[str, ...]
    """Games to play in every stage."""
    seed: int = 0
    """Random seed of the run."""
    random_episodes: int = 50
    """Episodes of random play per game, for the base model."""
    explored_episodes: int = 10_000
    """Episodes of the explorer per game, for fine-tuning. The comparison gets as many frames of
    random play."""
    test_episodes: int = 500
    """Held-out episodes per game and agent."""
    random_steps: int = 500
    """Maximum steps of an episode for the base model."""
    explored_steps: int = 700
    """Maximum steps of an episode for fine-tuning and for the test set."""
    explored_epsilon: float = 0.0
    """Probability of a random action in the explorer's episodes."""
    workers: int = 2
    """Number of emulator processes for collecting."""
    threads: int = 0
    """Torch threads for training and evaluation; 0 for one per core."""
    train_workers: int = 0
    """Ray Train workers of each training, one per GPU if there are enough; 0 trains in the
    driver."""
    tokenizer: Settings = field(default_factory=dict)
    """Changes to the training of the tokenizer."""
    dynamics: Settings = field(default_factory=dict)
    """Changes to the training of the dynamics model."""
    decoder_finetune: Settings = field(default_factory=dict)
    """Changes to the fine-tuning of the decoder, on both sides of the comparison."""
    dynamics_finetune: Settings = field(default_factory=dict)
    """Changes to the fine-tuning of the dynamics model, on both sides of the comparison."""
    explore: Settings = field(default_factory=dict)
    """Changes to the training of the explorer."""
    reward_backend: Literal["local", "serve"] = "serve"
    """Processes that compute the explorer's reward: the env runners (local), or replicas of a Ray
    Serve app (serve). With --rounds the default is serve; each round swaps the app's weights."""
    evaluate: Settings = field(default_factory=dict)
    """Arguments of `worldmodel.evaluation.evaluate.evaluate`."""

    def __post_init__(self) -> None:
        episodes = (f"{part}_episodes" for part in ("random", "explored", "test"))
        for name in (*episodes, "random_steps", "explored_steps", "workers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name.replace('_', ' ')} {getattr(self, name)}: give 1 or more")
        if self.train_workers < 0:
            raise InputError(
                f"train workers {self.train_workers}: give 0 (in this process) or more"
            )


DEMO_GAMES = ("Airstriker-Genesis", "StarGunner-Atari2600", "JourneyEscape-Atari2600")

PRESETS: dict[str, PipelineConfig] = {
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
        reward_backend="local",
        evaluate={
            "horizon": 4,
            "limit": 2,
            "steps": 2,
            "mode": "autoregressive",
            "distance_frames": 4,
        },
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


def pipeline_preset(name: str) -> PipelineConfig:
    """Return the configuration called debug, cpu or paper. Raises InputError for another name."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]

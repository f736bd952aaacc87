"""Presets of the pipeline: games, amounts of data, lengths of training."""

from dataclasses import dataclass, field
from typing import Any, Literal

import tyro

from envs.utils.errors import InputError

Settings = tyro.conf.Fixed[dict[str, Any]]
"""Settings of a stage over its preset; no flags, but a file of --config may hold them."""


@dataclass(frozen=True)
class PipelineConfig:
    """A whole pipeline. Its parts have seeds derived from `seed`, so that no episode occurs
    twice."""

    preset: Literal["debug", "cpu", "paper"]
    """debug: minutes, learns nothing; cpu: three games in about 18 minutes on two cores; paper: the
    published sizes."""
    games: tuple[str, ...]
    """Games of every stage."""
    seed: int = 0
    """Random seed of the run."""
    random_episodes: int = 50
    """Episodes of random play of each game, for the first training."""
    explored_episodes: int = 10_000
    """Episodes of the explorer of each game, for fine-tuning; the comparison gets as many frames of
    random play."""
    test_episodes: int = 500
    """Held-out episodes of each game and of each of the two agents."""
    random_steps: int = 500
    """Maximum episode length of the first training's data."""
    explored_steps: int = 700
    """Maximum episode length of the data for fine-tuning and of the test set."""
    explored_epsilon: float = 0.0
    """Probability of a random action in the explorer's episodes."""
    workers: int = 2
    """Emulator processes that collect."""
    threads: int = 0
    """Torch threads of training and evaluation; 0 for one on each core."""
    train_workers: int = 0
    """Ray Train workers of each training, one on each GPU where there are enough; 0 trains in the
    driver."""
    tokenizer: Settings = field(default_factory=dict)
    """Training of the tokenizer."""
    dynamics: Settings = field(default_factory=dict)
    """Training of the dynamics model."""
    decoder_finetune: Settings = field(default_factory=dict)
    """Fine-tuning of the decoder, for both sides of the comparison alike."""
    dynamics_finetune: Settings = field(default_factory=dict)
    """Fine-tuning of the dynamics model, for both sides of the comparison alike."""
    explore: Settings = field(default_factory=dict)
    """Training of the explorer."""
    reward_backend: Literal["local", "serve"] = "serve"
    """Compute the explorer's reward in each process that plays (local) or in replicas of a Ray
    Serve app (serve). Rounds use an app by default, whose weights are swapped while it runs."""
    evaluate: Settings = field(default_factory=dict)
    """Arguments of `worldmodel.evaluation.evaluate.evaluate`."""

    def __post_init__(self) -> None:
        kinds = ("random", "explored", "test")
        counts = (
            *(f"{kind}_episodes" for kind in kinds),
            "random_steps",
            "explored_steps",
            "workers",
        )
        for name, value in ((name, getattr(self, name)) for name in counts):
            if value < 1:
                raise InputError(f"{name.replace('_', ' ')} {value}: give 1 or more")
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

"""Presets of the pipeline: games, amounts of data, lengths of training."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import tyro

from envs import action_names
from envs.controls import parse_action_names
from envs.utils.errors import InputError
from experiments.arguments import check_games, playable_games
from worldmodel.config import Precision

Settings = tyro.conf.Fixed[dict[str, Any]]
"""Changes to the preset of a stage. They are no flags, but a --config file may hold them."""

Explorer = Literal["agent", "archive"]
TestPlayer = Literal["random", "deep", "agent"]


@dataclass(frozen=True)
class PipelineConfig:
    """Settings of a whole pipeline. The seeds of its parts derive from `seed`, without overlap."""

    preset: Literal["debug", "cpu", "gpu", "paper"]
    """debug: minutes, without learning anything; cpu: two games with depth on two cores; gpu: the
    same on one GPU, with larger models and more play; paper: the published sizes."""
    games: tuple[str, ...]
    """Games to play in every stage."""
    actions: tuple[str, ...] = ()
    """Actions instead of the games' own five, e.g. right left jump jump+right none; see
    `collect --help`."""
    seed: int = 0
    """Random seed of the run."""
    games_apart: bool = False
    """Give each game a pipeline and a world model of its own, as many at a time as there are
    threads. Games with different actions need it."""
    explorers: tuple[Explorer, ...] = ("agent",)
    """Explorers compared with random play: agent, trained on the uncertainty of the base model (the
    paper's), and archive, which plays on from savestates chosen by that uncertainty. The first one
    is the main result."""
    tests: tuple[TestPlayer, ...] = ("random", "agent")
    """Players of the held-out episodes: random; deep, an archive of savestates chosen by the game's
    score (Go-Explore), of whose play the quarter least like the base model's data is evaluated; or
    agent."""
    pretraining_games: tuple[str, ...] = ()
    """Games, or a list of the catalogue, that the tokenizer and the dynamics model learn from first
    (GenieRedux-G-200): platformers-200. Those without a ROM are left out. Empty: the base model
    starts from scratch."""
    base_games: tuple[str, ...] = ()
    """Games, or a list of the catalogue, that the base model is trained on besides `games`
    (GenieRedux-G-50): platformers-50. Those without a ROM are left out."""
    finetune_data: Literal["new", "half"] = "new"
    """Data of the fine-tuning: new, the player's alone (the paper); half, the base data besides."""
    random_episodes: int = 50
    """Episodes of random play per game, for the base model."""
    pretraining_episodes: int = 50
    """Episodes of random play per game of the pretraining."""
    explored_episodes: int = 10_000
    """Episodes of the agent per game, for fine-tuning. Every other player of the comparison gets as
    many steps."""
    test_episodes: int = 500
    """Held-out episodes per game and player."""
    random_steps: int = 500
    """Maximum steps of an episode for the base model."""
    pretraining_steps: int = 500
    """Maximum steps of an episode for the pretraining."""
    explored_steps: int = 700
    """Maximum steps of an episode for fine-tuning and for the test set."""
    explored_epsilon: float = 0.0
    """Probability of a random action in the agent's episodes."""
    workers: int = 2
    """Number of emulator processes for collecting."""
    threads: int = 0
    """Torch threads for training and evaluation; 0 for one per core."""
    precision: Precision = "auto"
    """Precision of the world model: bf16 (autocast), fp32, or auto: the preset's in training, and
    otherwise bf16 on NVIDIA GPUs since Ampere, else fp32."""
    train_workers: int = 0
    """Ray Train workers of each training, one per GPU if there are enough; 0 trains in the
    driver."""
    model: Settings = field(default_factory=dict)
    """Changes to the sizes of the world model."""
    tokenizer: Settings = field(default_factory=dict)
    """Changes to the training of the tokenizer."""
    lam: Settings = field(default_factory=dict)
    """Changes to the training of the latent action model, which only tables of CoinRun need."""
    dynamics: Settings = field(default_factory=dict)
    """Changes to the training of the dynamics model."""
    decoder_finetune: Settings = field(default_factory=dict)
    """Changes to the fine-tuning of the decoder, on all sides of the comparison."""
    dynamics_finetune: Settings = field(default_factory=dict)
    """Changes to the fine-tuning of the dynamics model, on all sides of the comparison."""
    explore: Settings = field(default_factory=dict)
    """Changes to the training of the agent."""
    archive: Settings = field(default_factory=dict)
    """Changes to `exploration.archive.ArchiveConfig`."""
    reward_backend: Literal["auto", "local", "serve"] = "auto"
    """Processes that compute the explorer's reward: the env runners (local), or replicas of a Ray
    Serve app (serve); auto: serve if Ray has GPUs or nodes to serve, else local. With --rounds the
    default is serve; each round swaps the app's weights."""
    evaluate: Settings = field(default_factory=dict)
    """Arguments of `worldmodel.evaluation.evaluate.evaluate`."""

    @property
    def games_of_base(self) -> tuple[str, ...]:
        """Games that the base model is trained on."""
        return tuple(dict.fromkeys([*self.games, *self.base_games]))

    def __post_init__(self) -> None:
        amounts = [
            f"{part}_{unit}"
            for part in ("random", "pretraining", "explored")
            for unit in ("episodes", "steps")
        ]
        for name in (*amounts, "test_episodes", "workers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name.replace('_', ' ')} {getattr(self, name)}: give 1 or more")
        if not self.explorers or not self.tests:
            raise InputError("explorers and tests: give 1 or more of each")
        if "agent" in self.tests and "agent" not in self.explorers:
            raise InputError("tests: agent is the player of explorers agent: add it to --explorers")
        if self.games_apart and (self.pretraining_games or self.base_games):
            raise InputError(
                "games apart: each game has a base model of its own: leave pretraining games and "
                "base games out, or games apart"
            )
        if self.train_workers < 0:
            raise InputError(
                f"train workers {self.train_workers}: give 0 (in this process) or more"
            )


DEMO_GAMES = ("PrivateEye-Atari2600", "CoinRun")

PRESETS: dict[str, PipelineConfig] = {
    "debug": PipelineConfig(
        preset="debug",
        games=("Counting",),
        explorers=("archive", "agent"),
        tests=("random", "deep"),
        archive={"steps": 20, "round_episodes": 2},
        random_episodes=3,
        explored_episodes=2,
        test_episodes=1,
        random_steps=60,
        explored_steps=60,
        explored_epsilon=0.1,
        explore={"runners": 1, "envs_per_runner": 2},
        threads=1,
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
        games_apart=True,
        explorers=("archive", "agent"),
        tests=("random", "deep"),
        finetune_data="half",
        random_episodes=16,
        explored_episodes=12,
        test_episodes=10,
        random_steps=400,
        explored_steps=400,
        explored_epsilon=0.1,
        tokenizer={"iterations": 700},
        dynamics={"iterations": 420},
        # The base decoder has trained for a minute: it can take a larger learning rate than the
        # preset of one that is finished, and half of the data keeps what it knows.
        decoder_finetune={"iterations": 300, "lr": 1e-3},
        dynamics_finetune={"iterations": 150},
        explore={
            "epochs": 3,
            "runners": 1,
            "envs_per_runner": 4,
            "steps_per_epoch": 60,
            "updates_per_epoch": 12,
            # The best of the three epochs, by episodes as long as those that are collected.
            "evaluate_every": 1,
            "evaluation_episodes": 2,
            "evaluation_steps": 400,
        },
        # A Frechet distance of so few frames would say nothing.
        evaluate={"limit": 24, "steps": 1, "mode": "autoregressive", "distance": False},
    ),
    "gpu": PipelineConfig(
        preset="gpu",
        games=DEMO_GAMES,
        games_apart=True,
        explorers=("archive", "agent"),
        tests=("random", "deep"),
        finetune_data="half",
        random_episodes=32,
        explored_episodes=32,
        test_episodes=16,
        random_steps=400,
        explored_steps=400,
        explored_epsilon=0.1,
        workers=8,
        evaluate={"limit": 64, "steps": 4, "mode": "autoregressive"},
    ),
    "paper": PipelineConfig(
        preset="paper",
        games=("SuperMarioBros-Nes",),
        pretraining_games=("platformers-200",),
        base_games=("platformers-50",),
        random_episodes=100,
        random_steps=1_000,
        workers=64,
        train_workers=8,
        explore={"runners": 8, "envs_per_runner": 1},
        evaluate={"mode": "autoregressive"},
    ),
}


def pipeline_preset(name: str) -> PipelineConfig:
    """Return the configuration debug, cpu, gpu or paper. Raises InputError for another name."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def check_pipeline_games(c: PipelineConfig, *, roms: bool) -> PipelineConfig:
    """Return the configuration with the names of its games, which have these actions.

    `roms`: games are played, and need their ROMs. Raises InputError for games that cannot be.
    """
    checked = replace(
        c,
        games=tuple(check_games(c.games, roms=roms)),
        pretraining_games=playable_games(c.pretraining_games, "--pretraining-games", roms=roms),
        base_games=playable_games(c.base_games, "--base-games", roms=roms),
        actions=parse_action_names(c.actions),
    )
    apart = [(game,) for game in checked.games]
    together = (*checked.games, *checked.pretraining_games, *checked.base_games)
    for games in apart if checked.games_apart else [together]:
        action_names(games, checked.actions)
    return checked

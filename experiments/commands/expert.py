"""From a game to a test set of deep play: train an agent on the game's own reward, and record it."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from envs.utils.ray_session import ray_session
from experiments.arguments import Preset, RunArgs, check_games


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Train an expert and let it play a test set, with random actions mixed in."""

    game: tyro.conf.Positional[str]
    """Game to play, e.g. Airstriker-Genesis."""
    out: Path
    """Folder: the run of the training in agent/, the episodes in data/."""
    preset: Preset = "cpu"
    """Sizes of network, batches and schedule."""
    epochs: int | None = None
    """Epochs of training, where the preset's number does not fit."""
    runners: int | None = None
    """Processes that play for the training, where the preset's number does not fit."""
    episodes: int = 10
    """Episodes to record; the paper's test sets have 1,000."""
    steps: int = 700
    """Longest episode in steps."""
    epsilon: float = 0.15
    """Share of random actions mixed into the expert's own when it is recorded."""
    workers: int = 2
    """Emulator processes that record."""


def run(args: Args) -> None:
    """Train, record, and say where both lie and what the episodes earned. --resume goes on with either."""
    (game,) = check_games([args.game])

    from envs.collect.collector import collect
    from envs.episodes import manifest
    from envs.episodes.dataset import EpisodeReader
    from envs.utils.errors import InputError
    from envs.utils.progress import console
    from exploration.agent.policy import check_exploration, policy_spec
    from exploration.train import explore

    check_exploration(args.epsilon, 1.0)
    agent, data = args.out / "agent", args.out / "data"
    if (data / manifest.NAME).exists() and not args.resume:
        raise InputError(
            f"{data} already holds episodes: --resume completes the set, another --out begins a new one"
        )
    with ray_session(args.ray_address):
        best = explore(
            [game],
            None,
            agent,
            preset=f"expert-{args.preset}",
            reward="env",
            epochs=args.epochs,
            runners=args.runners,
            resume=args.resume,
            seed=args.seed,
        )
        collect(
            [game],
            str(data),
            episodes=args.episodes,
            steps=args.steps,
            policy=policy_spec(f"expert:{best}", epsilon=args.epsilon),
            workers=args.workers,
            seed=args.seed,
        )
    reader = EpisodeReader(data)
    returns = [float(reader[index].rewards.sum()) for index in range(len(reader))]
    console.print(
        f"{data}: {len(reader)} episodes of {game}, which earned {sum(returns) / max(len(returns), 1):.1f} each; "
        f"the expert is {best}"
    )

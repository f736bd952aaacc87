"""Compare trained explorers with random play over several seeds: how unsure is the model of what they see, and how much
is it."""

from dataclasses import dataclass
from pathlib import Path

from envs.utils.ray_session import ray_session
from experiments.arguments import GameArgs, Preset, RayArgs, check_folder


@dataclass(frozen=True, kw_only=True)
class Args(GameArgs, RayArgs):
    """Train an explorer for each seed and compare its play with random play. Goes on where it stopped."""

    model: Path
    """World model that the explorers are paid by and that both are judged by."""
    out: Path
    """Folder of the runs, the episodes and agents.json."""
    preset: Preset = "cpu"
    """Sizes of the explorer and its schedule."""
    epochs: int | None = None
    """Epochs of an explorer's training, where the preset's number does not fit."""
    seeds: int = 3
    """How many explorers of each."""
    episodes: int = 4
    """Episodes of each game, seed and agent."""
    steps: int = 400
    """Longest episode in steps."""
    epsilon: float = 0.1
    """Share of random actions in the explorer's play."""
    windows: int = 60
    """Windows of each episode that the model judges."""


def run(args: Args) -> None:
    """Compare, and print means over seeds with their 95 % intervals."""
    games = args.chosen()
    check_folder(args.model, "world model", "pipeline")

    from rich.table import Table

    from envs.utils.progress import console
    from exploration.evaluate import AGENTS, evaluate_explorers

    with ray_session(args.ray_address):
        result = evaluate_explorers(
            games,
            args.model,
            args.out,
            preset=args.preset,
            seeds=range(args.seeds),
            episodes=args.episodes,
            steps=args.steps,
            epsilon=args.epsilon,
            windows=args.windows,
            epochs=args.epochs,
        )
    table = Table("game", "", *AGENTS, "difference", box=None, header_style="bold")
    for game, quantities in result["summary"].items():
        for quantity, values in quantities.items():
            digits = 0 if quantity == "screens" else 4
            cells = (f"{value['mean']:.{digits}f} ± {value['half_width']:.{digits}f}" for value in values.values())
            table.add_row(game, quantity, *cells)
    console.print(table)
    console.print(f"{args.seeds} seeds, 95 % intervals; written to {args.out / 'agents.json'}")

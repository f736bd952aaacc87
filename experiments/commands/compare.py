"""Compare trained explorers with random play over several seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from envs.utils.progress import console
from envs.utils.ray_session import ray_session
from experiments.arguments import (
    ConfigArgs,
    DeviceArgs,
    GameArgs,
    Preset,
    RayArgs,
    check_at_least,
    check_model,
)
from experiments.commands.explore import agent_of_run
from experiments.configuration import default_args, flag_value
from exploration.config import ExploreConfig, explore_preset


@dataclass(frozen=True, kw_only=True)
class Args(GameArgs, RayArgs, ConfigArgs, DeviceArgs):
    """Train an explorer for each seed and compare it with random play: mean reward and number of
    distinct screens. Run it again in the same folder to continue."""

    model: Path
    """World model that rewards the explorers and measures both agents."""
    out: Path
    """Folder of the runs, the episodes and agents.json."""
    preset: Preset = "cpu"
    """Size and schedule of the explorer: debug (seconds), cpu (two cores), paper."""
    seeds: int = 3
    """Number of explorers, trained with the seeds 0, 1, 2, ..."""
    episodes: int = 4
    """Number of episodes of each game, seed and agent."""
    steps: int = 400
    """Maximum episode length in steps."""
    epsilon: float = 0.1
    """Probability of a random action in the explorer's episodes, from 0 to 1."""
    windows: int = 60
    """Number of windows of each episode that the model scores."""
    explorer: ExploreConfig


def defaults(argv: Sequence[str]) -> Args:
    """Return the arguments of the preset and the --config file in argv."""
    preset = explore_preset(flag_value(argv, "--preset", "cpu"))
    return default_args(Args, argv, translate=agent_of_run, explorer=preset)


def run(args: Args) -> None:
    """Compare, and print means over seeds with their 95 % intervals."""
    games = args.select()
    check_model(args.model)
    check_at_least(
        1, seeds=args.seeds, episodes=args.episodes, steps=args.steps, windows=args.windows
    )
    from exploration.evaluate import (  # imports torch and RLlib
        AGENTS,
        ComparisonConfig,
        evaluate_explorers,
    )

    with ray_session(args.ray_address):
        result = evaluate_explorers(
            games,
            args.model,
            args.out,
            explorer=args.explorer.with_envs_for(len(games)),
            comparison=ComparisonConfig(
                args.seeds, args.episodes, args.steps, args.epsilon, args.windows
            ),
        )
    table = Table("game", "", *AGENTS, "difference", box=None, header_style="bold")
    for game, quantities in result["summary"].items():
        for quantity, values in quantities.items():
            digits = 0 if quantity == "screens" else 4
            cells = (
                f"{value['mean']:.{digits}f} ± {value['half_width']:.{digits}f}"
                for value in values.values()
            )
            table.add_row(game, quantity, *cells)
    console.print(table)
    console.print(f"{args.seeds} seeds, 95 % intervals; written to {args.out / 'agents.json'}")

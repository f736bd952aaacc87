"""Explore, collect, fine-tune, swap the served weights, and explore again: several rounds as one command.

Round k's agent seeks what the model of round k-1 is unsure of. A second run in the same folder skips what is finished
and continues what was cut off; a larger --rounds adds rounds.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from envs.cluster import ray_session
from experiments.common import Preset, RayArgs, check_games


@dataclass(frozen=True, kw_only=True)
class Args(RayArgs):
    """Explore and learn in rounds; run it again to continue where it stopped, or with more rounds."""

    out: Path
    """Folder of the run. That of a pipeline of the same preset, games and seed has the base model already."""
    rounds: int = 3
    """How often to explore and learn."""
    preset: Preset = "cpu"
    """Sizes of models, play and training: debug, cpu, paper."""
    games: tuple[str, ...] | None = None
    """Games, where the preset's do not fit."""
    seed: int = 0
    """The same seed gives the same run."""
    scorer: Literal["local", "serve"] = "serve"
    """Who computes the rewards: one service, whose weights are swapped while it runs, or the model in each process."""
    workers: int | None = None
    """Emulator processes that collect, where the preset's number does not fit."""


def run(args: Args) -> None:
    """Run the stages that are left, then print the main figures and the report's path."""
    from envs.errors import InputError
    from envs.files import write_json_atomic
    from envs.runs import console
    from experiments.pipeline import check_ours
    from experiments.plan import plan
    from experiments.rounds_stages import Service, rounds_table
    from experiments.stages import Context, run_stages

    if args.rounds < 1:
        raise InputError(f"--rounds {args.rounds}: give 1 or more")
    chosen = plan(args.preset, games=args.games, seed=args.seed, scorer=args.scorer, workers=args.workers)
    chosen = dataclasses.replace(chosen, games=tuple(check_games(chosen.games)))
    check_ours(args.out)
    context = Context(args.out, chosen)
    write_json_atomic(args.out / "config.json", {"rounds": args.rounds, "pipeline": dataclasses.asdict(chosen)})
    console.print(f"{args.rounds} rounds of {', '.join(chosen.games)} in {args.out}")
    service = Service(chosen)
    with ray_session(args.ray_address):
        try:
            done = run_stages(rounds_table(chosen, args.rounds, service), context, None)
        finally:
            service.stop()
    if not done:
        console.print("Nothing was left to do.")
    for line in context.result("report-rounds")["lines"]:
        console.print(line)
    console.print(f"Report: {(context.path('report-rounds') / 'index.html').resolve()}")

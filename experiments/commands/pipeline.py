"""The whole loop: play at random, learn to predict, explore where the model is unsure, learn from that, compare.

The stages are a table, in `experiments.pipeline.stages`. A second run in the same folder skips what is finished and continues
what was cut off. For a fair comparison the same base model is fine-tuned twice, alike but for the data: on what the
explorer brought back, and on as many frames of more random play; both meet the same held-out episodes.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from envs.utils.ray_session import ray_session
from experiments.arguments import Preset, RayArgs, check_games


@dataclass(frozen=True, kw_only=True)
class Args(RayArgs):
    """Run everything from playing games to the report; run it again to continue where it stopped."""

    out: Path
    """Folder of the run."""
    rounds: int = 0
    """Explore and learn so many times, each time from the model of the round before, instead of comparing explored data
    with random play once. More of them continue a run, also one of a pipeline of the same preset, games and seed."""
    preset: Preset = "cpu"
    """debug: minutes, learns nothing; cpu: three games in about 18 minutes on two cores; paper: the published sizes."""
    games: tuple[str, ...] | None = None
    """Games, where the preset's do not fit."""
    seed: int = 0
    """The same seed gives the same run."""
    scorer: Literal["local", "serve"] | None = None
    """Who computes the explorer's reward, where the preset's choice does not fit: the model in each process, or
    replicas of a Ray Serve app. Rounds use a service, whose weights are swapped while it runs."""
    workers: int | None = None
    """Emulator processes that collect, where the preset's number does not fit."""
    train_workers: int | None = None
    """Ray Train workers that share each training, where the preset's number does not fit; 0 trains in the driver."""


def run(args: Args) -> None:
    """Run the stages that are left, then print the main figures and the report's path."""
    from envs.utils.atomic_io import write_json_atomic
    from envs.utils.errors import InputError
    from envs.utils.progress import console, format_duration
    from experiments.pipeline.config import plan
    from experiments.pipeline.rounds import Service, rounds_table
    from experiments.pipeline.runner import Context, run_stages
    from experiments.pipeline.stages import stage_table

    if args.rounds < 0:
        raise InputError(f"--rounds {args.rounds}: give 1 or more, or 0 for one comparison with random play")
    chosen = plan(
        args.preset,
        games=args.games,
        seed=args.seed,
        scorer=args.scorer or ("serve" if args.rounds else None),
        workers=args.workers,
        train_workers=args.train_workers,
    )
    chosen = dataclasses.replace(chosen, games=tuple(check_games(chosen.games)))
    check_ours(args.out)
    context = Context(args.out, chosen)
    rounds = {"rounds": args.rounds} if args.rounds else {}
    write_json_atomic(args.out / "config.json", {**rounds, "pipeline": dataclasses.asdict(chosen)})
    what = f"{args.rounds} rounds" if args.rounds else f"Pipeline {chosen.preset}"
    console.print(f"{what} of {', '.join(chosen.games)} in {args.out}")
    expected = None if args.rounds else chosen.expected_seconds
    if expected is not None:
        console.print(f"On two cores the whole takes about {format_duration(expected)}.")
    service = Service(chosen)
    stages = rounds_table(chosen, args.rounds, service) if args.rounds else stage_table(chosen)
    with ray_session(args.ray_address):
        try:
            done = run_stages(stages, context, expected)
        finally:
            service.stop()
    if not done:
        console.print("Nothing was left to do.")
    report = "report-rounds" if args.rounds else "report"
    for line in context.result(report)["lines"]:
        console.print(line)
    console.print(f"Report: {(context.path(report) / 'index.html').resolve()}")


def check_ours(out: Path) -> None:
    """Raises InputError where `out` holds something that no pipeline wrote: stages replace their outputs."""
    from envs.utils.errors import InputError

    if out.is_file() or (out.exists() and any(out.iterdir()) and not (out / "stages").is_dir()):
        raise InputError(f"{out} holds something else than a pipeline's run: give another --out")

"""Run the whole pipeline: collect, train, explore, fine-tune, evaluate, report.

The stages are a table in `experiments.pipeline.stages`. A second run in the same folder skips
finished stages and resumes interrupted ones. For a fair comparison the same base model is
fine-tuned twice, on the explorer's data and on as many frames of more random play; both models are
evaluated on the same held-out episodes.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError
from envs.utils.interrupt import follow_parent
from envs.utils.progress import console
from envs.utils.ray_session import ray_session
from experiments.arguments import ConfigArgs, DeviceArgs, RayArgs, check_at_least
from experiments.configuration import Flat, default_args, flag_value
from experiments.pipeline.config import PipelineConfig, check_pipeline_games, pipeline_preset
from experiments.pipeline.runner import Context, run_stages


@dataclass(frozen=True, kw_only=True)
class Args(RayArgs, ConfigArgs, DeviceArgs):
    """Run everything from playing games to the report; run it again to resume."""

    out: Path | None = None
    """Folder of the run. Required without --dry-run."""
    rounds: int = 0
    """Number of rounds of exploring and learning, each from the model of the round before; 0
    compares explored data with random play once. More rounds continue a run, also that of a
    pipeline of the same preset, games and seed."""
    dry_run: bool = False
    """Print the stages, and predict time and memory of those that train, instead of running them.
    """
    hardware: str = "here"
    """For --dry-run: here (this machine, measured) or a card and their number, e.g. a100x8, l4."""
    pipeline: Flat[PipelineConfig]


def defaults(argv: Sequence[str]) -> Args:
    """Return the arguments of the preset and the --config file in argv."""
    config = pipeline_preset(flag_value(argv, "--preset", "cpu"))
    if flag_value(argv, "--rounds", "0") != "0":
        # Rounds are for a single model, whose weights the reward service swaps.
        config = dataclasses.replace(
            config, reward_backend="serve", games=config.games[:1], games_apart=False
        )
    return default_args(Args, argv, pipeline=config)


def run(args: Args) -> None:
    """Run the missing stages, then print the main results and the report's path."""
    follow_parent()
    check_at_least(0, rounds=args.rounds)
    config = check_pipeline_games(args.pipeline, roms=not args.dry_run)
    if args.out is not None:
        check_own_run(args.out)
    elif not args.dry_run:
        raise InputError("pipeline needs --out, the folder of the run")
    if config.games_apart and args.rounds:
        raise InputError("--games-apart: with --rounds all games share one model: leave it out")

    # These import torch: wrong arguments are reported first.
    from experiments.pipeline.dry_run import print_prediction
    from experiments.pipeline.rounds import Service, rounds_table
    from experiments.pipeline.stages import check_settings, stage_table

    check_settings(config)
    if args.dry_run:
        print_prediction(config, args.rounds, args.hardware)
        return
    assert args.out is not None
    context = Context(args.out, config)
    settings = {"pipeline": dataclasses.asdict(config)}
    recorded = {"rounds": args.rounds, **settings} if args.rounds else settings
    write_json_atomic(args.out / "config.json", recorded)
    what = f"{args.rounds} rounds" if args.rounds else f"Pipeline {config.preset}"
    console.print(f"{what} of {', '.join(config.games)} in {args.out}")
    if config.games_apart:
        run_apart(config, args.out, args.ray_address)
        return
    service = Service(config)
    stages = rounds_table(config, args.rounds, service) if args.rounds else stage_table(config)
    with ray_session(args.ray_address):
        try:
            ran = run_stages(stages, context)
        finally:
            service.stop()
    if not ran:
        console.print("Nothing was left to do.")
    report = "report-rounds" if args.rounds else "report"
    for line in context.result(report)["lines"]:
        console.print(line)
    console.print(f"Report: {(context.path(report) / 'index.html').resolve()}")


def run_apart(config: PipelineConfig, out: Path, ray_address: str | None) -> None:
    """Run the missing stages of each game, then print the main results and the report's path."""
    from experiments.pipeline.games_apart import run_games
    from experiments.reports.games_report import build_games_report

    run_games(config, out, ray_address)
    for line in build_games_report(out, out / "report"):
        console.print(line)
    console.print(f"Report: {(out / 'report' / 'index.html').resolve()}")


def check_own_run(out: Path) -> None:
    """Raise InputError if `out` holds files of something else: stages replace their outputs."""
    known = any((out / name).is_dir() for name in ("stages", "games"))
    if out.is_file() or (out.exists() and any(out.iterdir()) and not known):
        raise InputError(f"{out} holds something else than a pipeline's run: give another --out")

"""The whole loop: play at random, learn to predict, explore where the model is unsure, learn from that, compare.

The stages are a table, in `experiments.loop`. A second run in the same folder skips what is finished and continues
what was cut off. For a fair comparison the same base model is fine-tuned twice, alike but for the data: on what the
explorer brought back, and on as many frames of more random play; both meet the same held-out episodes.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from envs.cluster import ray_session
from experiments.common import Preset, RayArgs, check_games


@dataclass(frozen=True, kw_only=True)
class Args(RayArgs):
    """Run everything from playing games to the report; run it again to continue where it stopped."""

    out: Path
    """Folder of the run."""
    preset: Preset = "cpu"
    """debug: minutes, learns nothing; cpu: three games in about 18 minutes on two cores; paper: the published sizes."""
    games: tuple[str, ...] | None = None
    """Games, where the preset's do not fit."""
    seed: int = 0
    """The same seed gives the same run."""
    scorer: str | None = None
    """Who computes the explorer's reward, local or serve, where the preset's choice does not fit."""
    workers: int | None = None
    """Emulator processes that collect, where the preset's number does not fit."""
    train_workers: int | None = None
    """Ray Train workers that share each training, where the preset's number does not fit; 0 trains in the driver."""


def run(args: Args) -> None:
    """Run the stages that are left, then print the main figures and the report's path."""
    from envs.errors import InputError
    from envs.files import write_json_atomic
    from envs.runs import console
    from experiments.loop import stage_table
    from experiments.plan import plan
    from experiments.stages import Context, duration, run_stages

    if args.scorer not in (None, "local", "serve"):
        raise InputError(f"--scorer {args.scorer}: choose local or serve")
    chosen = plan(
        args.preset,
        games=args.games,
        seed=args.seed,
        scorer=args.scorer,
        workers=args.workers,
        train_workers=args.train_workers,
    )
    chosen = dataclasses.replace(chosen, games=tuple(check_games(chosen.games)))
    check_ours(args.out)
    context = Context(args.out, chosen)
    write_json_atomic(args.out / "config.json", {"pipeline": dataclasses.asdict(chosen)})
    console.print(f"Pipeline {chosen.preset} of {', '.join(chosen.games)} in {args.out}")
    if chosen.expected_seconds is not None:
        console.print(f"On two cores the whole takes about {duration(chosen.expected_seconds)}.")
    stages = stage_table(chosen)
    with ray_session(args.ray_address):
        done = run_stages(stages, context, chosen.expected_seconds)
    if not done:
        console.print("Nothing was left to do.")
    for line in context.result("report")["lines"]:
        console.print(line)
    console.print(f"Report: {(context.path('report') / 'index.html').resolve()}")


def check_ours(out: Path) -> None:
    """Raises InputError where `out` holds something that no pipeline wrote: stages replace their outputs."""
    from envs.errors import InputError

    if out.is_file() or (out.exists() and any(out.iterdir()) and not (out / "stages").is_dir()):
        raise InputError(f"{out} holds something else than a pipeline's run: give another --out")

"""Verify, summarise, compact, convert and re-render recorded episodes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table

from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError
from envs.utils.progress import console
from experiments.configuration import Flat


@dataclass(frozen=True, kw_only=True)
class DataArgs:
    """Positional of every action on one data set."""

    uri: tyro.conf.Positional[str]
    """Episode folder or URI (s3://bucket/prefix)."""


@dataclass(frozen=True, kw_only=True)
class Verify(DataArgs):
    """Verify every byte, frame and manifest entry of a data set, and name damaged files."""

    workers: int = 2
    """Number of threads."""


@dataclass(frozen=True, kw_only=True)
class Stats(DataArgs):
    """Count episodes, frames, actions, rewards and distinct screens of each game."""

    out: Path | None = None
    """Also write the statistics to this JSON file."""
    workers: int = 2
    """Number of threads."""


@dataclass(frozen=True, kw_only=True)
class Compact(DataArgs):
    """Merge the small files of each game into few large ones. Sessions and splits stay the same.
    No other process may write to the data set at the same time."""

    megabytes: int = 128
    """Maximum file size in megabytes; 64 to 256 suits most disks."""
    recompress: bool = False
    """Recompress the frames at the highest level: files are an eighth smaller and read as fast; it
    takes a millisecond per frame."""


@dataclass(frozen=True, kw_only=True)
class Export(DataArgs):
    """Write a data set in the format of other software."""

    to: Path
    """Folder to create."""
    format: Literal["genieredux", "minari", "lerobot"]
    """genieredux: the paper's published layout (JPEG, lossy); minari: Minari 0.5, one data set per
    game, lossless; lerobot: LeRobotDataset v3.0 with PNG frames."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """Add the episodes of a data set of other software to one of this project."""

    source: tyro.conf.Positional[Path]
    """Folder in the paper's published layout, or of Minari data sets."""
    out: str
    """Data set to add the episodes to; episodes that it already holds are skipped."""
    format: Literal["genieredux", "minari"] | None = None
    """Format of the source. Default: detected from the files."""


@dataclass(frozen=True, kw_only=True)
class Rerender:
    """Replay the actions of recorded episodes and render them at another frame size."""

    source: tyro.conf.Positional[str]
    """Episode folder or URI to replay."""
    out: str
    """Episode folder or URI of the new frames."""
    size: int = 256
    """Height and width of the new frames in pixels."""
    workers: int = 2
    """Number of parallel emulator processes."""


@dataclass(frozen=True, kw_only=True)
class Args:
    """Verify, summarise, compact, convert or re-render recorded episodes."""

    what: Flat[
        Annotated[Verify, tyro.conf.subcommand(name="verify")]
        | Annotated[Stats, tyro.conf.subcommand(name="stats")]
        | Annotated[Compact, tyro.conf.subcommand(name="compact")]
        | Annotated[Export, tyro.conf.subcommand(name="export")]
        | Annotated[Import, tyro.conf.subcommand(name="import")]
        | Annotated[Rerender, tyro.conf.subcommand(name="rerender")]
    ]


def run(args: Args) -> None:
    """Run the action. Raises InputError for a data set that is damaged or cannot be used."""
    match args.what:
        case Verify():
            verify_data(args.what)
        case Stats():
            print_stats(args.what)
        case Compact():
            compact_data(args.what)
        case Export():
            export_data(args.what)
        case Import():
            import_data(args.what)
        case Rerender():
            rerender_data(args.what)


# The functions below import pyarrow or Ray when they are called.


def verify_data(args: Verify) -> None:
    """Print the size of a data set and its damaged files. Raises InputError if there are any."""
    from envs.episodes.verify import verify

    report = verify(args.uri, workers=args.workers)
    console.print(
        f"{args.uri}: {report.files:,} files, {report.sessions:,} sessions, "
        f"{report.frames:,} frames, {report.bytes:,} bytes"
    )
    for path, fault in report.faults.items():
        console.print(f"bad: {path}: {fault}", markup=False)
    if report.faults:
        raise InputError(
            f"{args.uri} has {len(report.faults)} bad files, "
            f"the first of them {next(iter(report.faults))}"
        )
    console.print("all files are intact")


def print_stats(args: Stats) -> None:
    """Print one line of statistics per game; write them to --out."""
    from envs.episodes.stats import GameStats, compute_stats

    games = compute_stats(args.uri, workers=args.workers)
    total = GameStats()
    for stats in games.values():
        total.add(stats)
    names = list(total.actions)
    heads = ("game", "episodes", "frames", "bytes/frame", "mean length", *names)
    table = Table(*heads, "reward", "ended", "screens", box=None, header_style="bold")
    for game, stats in {**games, **({"all": total} if len(games) > 1 else {})}.items():
        values = stats.to_json()
        shares, screens = values["action_shares"], values["distinct_screens"]
        table.add_row(
            game,
            f"{values['episodes']:,}",
            f"{values['frames']:,}",
            f"{values['bytes_per_frame']:.0f}",
            f"{values['mean_length']:.1f}",
            *(f"{shares[name]:.0%}" if name in shares else "-" for name in names),
            f"{values['reward_mean']:.3g}",
            f"{values['terminated_share']:.0%}",
            "-" if screens is None else f"{screens:,}",
        )
    console.print(table)
    console.print(f"{total.file_bytes:,} bytes in total")
    if args.out is not None:
        by_game = {game: stats.to_json() for game, stats in games.items()}
        write_json_atomic(args.out, {"all": total.to_json(), "games": by_game})
        console.print(f"statistics: {args.out}")


def compact_data(args: Compact) -> None:
    """Merge the files of a data set and print their numbers."""
    from envs.episodes.compact import compact

    result = compact(args.uri, megabytes=args.megabytes, recompress=args.recompress)
    console.print(
        f"{args.uri}: {result.files_before:,} files became {result.files_after:,} "
        f"({result.sessions:,} sessions, {result.bytes:,} bytes written)"
        + (f"; {result.leftovers} files of a stopped run were deleted" if result.leftovers else "")
    )


def export_data(args: Export) -> None:
    """Convert a data set and print the number of its episodes."""
    from envs.episodes.formats.convert import export_episodes

    written = export_episodes(args.uri, args.to, args.format)
    console.print(f"{args.to}: {written:,} episodes as {args.format}")


def import_data(args: Import) -> None:
    """Add episodes to a data set and print their number."""
    from envs.episodes.formats.convert import import_episodes

    added, skipped = import_episodes(args.source, args.out, args.format)
    note = f"; {skipped:,} were there already" if skipped else ""
    console.print(f"{args.out}: {added:,} episodes added from {args.source}{note}")


def rerender_data(args: Rerender) -> None:
    """Render the episodes of a data set at another size."""
    from envs.collect.rerender import rerender

    rerender(args.source, args.out, size=args.size, workers=args.workers)
    console.print(f"{args.out}: the episodes of {args.source} at {args.size}x{args.size}")

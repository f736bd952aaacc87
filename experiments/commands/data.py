"""Verify, summarise, compact, convert and re-render recorded episodes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table

from envs.controls import ACTIONS
from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError
from envs.utils.progress import console
from envs.utils.ray_session import ray_session


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Verify every byte, frame and manifest entry of a data set; name damaged files."""

    uri: tyro.conf.Positional[str]
    """The data set."""
    workers: int = 2
    """Threads."""


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Count episodes, frames, actions, rewards and distinct screens of each game."""

    uri: tyro.conf.Positional[str]
    """The data set."""
    out: Path | None = None
    """Also write the figures to this JSON file."""
    workers: int = 2
    """Threads."""


@dataclass(frozen=True, kw_only=True)
class Compact:
    """Merge the small files of each game into few large ones. Sessions and splits stay the same."""

    uri: tyro.conf.Positional[str]
    """The data set. No other process may write to it meanwhile."""
    megabytes: int = 128
    """Maximum file size; 64 to 256 suits most disks."""
    recompress: bool = False
    """Compress the merged files again at the highest level: an eighth smaller, read as fast, at a
    millisecond a frame."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a data set in the format of other software."""

    uri: tyro.conf.Positional[str]
    """The data set."""
    to: Path
    """New folder."""
    format: Literal["genieredux", "minari", "lerobot"]
    """genieredux: the paper's published layout (JPEG, lossy); minari: Minari 0.5, one data set a
    game, lossless; lerobot: LeRobotDataset v3.0 with PNG frames."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """Import episodes of other software."""

    source: tyro.conf.Positional[Path]
    """Folder of the published layout or of Minari data sets."""
    out: str
    """Data set to add them to; episodes that it already holds are skipped."""
    format: Literal["genieredux", "minari"] | None = None
    """Default: detected from the files."""


@dataclass(frozen=True, kw_only=True)
class Rerender:
    """Re-render recorded episodes, action by action, at another frame size."""

    source: tyro.conf.Positional[str]
    """The data set."""
    out: str
    """The data set of the new frames."""
    size: int = 256
    """Height and width of the new frames in pixels."""
    workers: int = 2
    """Emulator processes at a time."""


@dataclass(frozen=True, kw_only=True)
class Args:
    """Verify, summarise, compact, convert or re-render recorded episodes."""

    what: (
        Annotated[Verify, tyro.conf.subcommand(name="verify")]
        | Annotated[Stats, tyro.conf.subcommand(name="stats")]
        | Annotated[Compact, tyro.conf.subcommand(name="compact")]
        | Annotated[Export, tyro.conf.subcommand(name="export")]
        | Annotated[Import, tyro.conf.subcommand(name="import")]
        | Annotated[Rerender, tyro.conf.subcommand(name="rerender")]
    )


def run(args: Args) -> None:
    """Run the action. Raises InputError for a data set that is damaged or cannot be used."""
    match args.what:
        case Verify():
            _verify(args.what)
        case Stats():
            _stats(args.what)
        case Compact():
            _compact(args.what)
        case Export():
            _export(args.what)
        case Import():
            _import(args.what)
        case Rerender():
            _rerender(args.what)


# The functions below load pyarrow or Ray only where they are run.


def _verify(args: Verify) -> None:
    from envs.episodes.verify import verify

    found = verify(args.uri, workers=args.workers)
    console.print(
        f"{args.uri}: {found.files:,} files, {found.sessions:,} sessions, {found.frames:,} frames, "
        f"{found.bytes:,} bytes"
    )
    for path, fault in found.faults.items():
        console.print(f"bad: {path}: {fault}", markup=False)
    if found.faults:
        raise InputError(
            f"{args.uri} has {len(found.faults)} bad files, "
            f"the first of them {next(iter(found.faults))}"
        )
    console.print("every file is whole")


def _stats(args: Stats) -> None:
    from envs.episodes.stats import GameStats, compute_stats

    games = compute_stats(args.uri, workers=args.workers)
    total = GameStats()
    for figures in games.values():
        total.add(figures)
    columns = (
        "game",
        "episodes",
        "frames",
        "bytes/frame",
        "mean length",
        *ACTIONS,
        "reward",
        "ended",
        "screens",
    )
    shown = Table(*columns, box=None, header_style="bold")
    rows = {**games, **({"all": total} if len(games) > 1 else {})}
    for game, figures in rows.items():
        values = figures.to_json()
        known = values["action_shares"]
        shares = [f"{known[name]:.0%}" if name in known else "-" for name in ACTIONS]
        shown.add_row(
            game,
            f"{values['episodes']:,}",
            f"{values['frames']:,}",
            f"{values['bytes_per_frame']:.0f}",
            f"{values['mean_length']:.1f}",
            *shares,
            f"{values['reward_mean']:.3g}",
            f"{values['terminated_share']:.0%}",
            "-" if values["distinct_screens"] is None else f"{values['distinct_screens']:,}",
        )
    console.print(shown)
    console.print(f"{total.file_bytes:,} bytes in all")
    if args.out is not None:
        write_json_atomic(
            args.out, {"all": total.to_json(), "games": {g: f.to_json() for g, f in games.items()}}
        )
        console.print(f"figures: {args.out}")


def _compact(args: Compact) -> None:
    from envs.episodes.compact import compact

    done = compact(args.uri, megabytes=args.megabytes, recompress=args.recompress)
    leftovers = f"; {done.leftovers} files of a stopped run were deleted" if done.leftovers else ""
    console.print(
        f"{args.uri}: {done.files_before:,} files became {done.files_after:,} "
        f"({done.sessions:,} sessions, {done.bytes:,} bytes written){leftovers}"
    )


def _export(args: Export) -> None:
    from envs.episodes.formats.convert import export_episodes

    written = export_episodes(args.uri, args.to, args.format)
    console.print(f"{args.to}: {written:,} episodes as {args.format}")


def _import(args: Import) -> None:
    from envs.episodes.formats.convert import import_episodes

    added, held = import_episodes(args.source, args.out, args.format)
    known = f"; {held:,} were there already" if held else ""
    console.print(f"{args.out}: {added:,} episodes added from {args.source}{known}")


def _rerender(args: Rerender) -> None:
    from envs.collect.rerender import rerender

    with ray_session():
        rerender(args.source, args.out, size=args.size, workers=args.workers, progress=True)
    console.print(f"{args.out}: the episodes of {args.source} at {args.size}x{args.size}")

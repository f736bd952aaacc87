"""Look after recorded episodes: check them, sum them up, merge their files, convert them, play them again larger."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check every byte, frame and claim of a data set, and name the files that are bad."""

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
    """Merge the small files of each game into few large ones; no session and no split changes."""

    uri: tyro.conf.Positional[str]
    """The data set. Nobody else may write to it meanwhile."""
    megabytes: int = 128
    """Largest file; 64 to 256 suits most disks."""
    recompress: bool = False
    """Compress the merged files again, as small as they go: an eighth less, read as fast, at a millisecond a frame."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a data set in the format of other software."""

    uri: tyro.conf.Positional[str]
    """The data set."""
    to: Path
    """New folder."""
    format: Literal["genieredux", "minari", "lerobot"]
    """genieredux: the paper's published layout (JPEG, lossy); minari: Minari 0.5, one data set a game, lossless;
    lerobot: LeRobotDataset v3.0 with PNG frames."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """Take in episodes that other software wrote."""

    source: tyro.conf.Positional[Path]
    """Folder of the published layout or of Minari data sets."""
    out: str
    """The data set to add them to; those that it holds already are skipped."""
    format: Literal["genieredux", "minari"] | None = None
    """Default: found out from the files."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Play recorded episodes again, action by action, and record their frames at another size."""

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
    """Check, count, merge, convert or replay recorded episodes."""

    what: (
        Annotated[Verify, tyro.conf.subcommand(name="verify")]
        | Annotated[Stats, tyro.conf.subcommand(name="stats")]
        | Annotated[Compact, tyro.conf.subcommand(name="compact")]
        | Annotated[Export, tyro.conf.subcommand(name="export")]
        | Annotated[Import, tyro.conf.subcommand(name="import")]
        | Annotated[Replay, tyro.conf.subcommand(name="replay")]
    )


def run(args: Args) -> None:
    """Do it and say what came out. Raises InputError where a data set is damaged or cannot be used."""
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
        case Replay():
            _replay(args.what)


def _verify(args: Verify) -> None:
    from envs.episodes.verify import verify
    from envs.utils.errors import InputError
    from envs.utils.progress import console

    found = verify(args.uri, workers=args.workers)
    console.print(
        f"{args.uri}: {found.files:,} files, {found.sessions:,} sessions, {found.frames:,} frames, "
        f"{found.bytes:,} bytes"
    )
    for path, fault in found.faults.items():
        console.print(f"bad: {path}: {fault}", markup=False)
    if found.faults:
        raise InputError(f"{args.uri} has {len(found.faults)} bad files, the first of them {next(iter(found.faults))}")
    console.print("every file is whole")


def _stats(args: Stats) -> None:
    from rich.table import Table

    from envs.controls import ACTIONS
    from envs.episodes.stats import GameStats, compute_stats
    from envs.utils.atomic_io import write_json_atomic
    from envs.utils.progress import console

    games = compute_stats(args.uri, workers=args.workers)
    total = GameStats()
    for figures in games.values():
        total.add(figures)
    columns = ("game", "episodes", "frames", "bytes/frame", "mean length", *ACTIONS, "reward", "ended", "screens")
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
        write_json_atomic(args.out, {"all": total.to_json(), "games": {g: f.to_json() for g, f in games.items()}})
        console.print(f"figures: {args.out}")


def _compact(args: Compact) -> None:
    from envs.episodes.compact import compact
    from envs.utils.progress import console

    done = compact(args.uri, megabytes=args.megabytes, recompress=args.recompress)
    leftovers = f"; {done.leftovers} files of a stopped run were deleted" if done.leftovers else ""
    console.print(
        f"{args.uri}: {done.files_before:,} files became {done.files_after:,} "
        f"({done.sessions:,} sessions, {done.bytes:,} bytes written){leftovers}"
    )


def _export(args: Export) -> None:
    from envs.episodes.formats.convert import export_episodes
    from envs.utils.progress import console

    written = export_episodes(args.uri, args.to, args.format)
    console.print(f"{args.to}: {written:,} episodes as {args.format}")


def _import(args: Import) -> None:
    from envs.episodes.formats.convert import import_episodes
    from envs.utils.progress import console

    added, held = import_episodes(args.source, args.out, args.format)
    known = f"; {held:,} were there already" if held else ""
    console.print(f"{args.out}: {added:,} episodes added from {args.source}{known}")


def _replay(args: Replay) -> None:
    from envs.collect.rerender import rerender
    from envs.utils.progress import console
    from envs.utils.ray_session import ray_session

    with ray_session():
        rerender(args.source, args.out, size=args.size, workers=args.workers, progress=True)
    console.print(f"{args.out}: the episodes of {args.source} at {args.size}x{args.size}")

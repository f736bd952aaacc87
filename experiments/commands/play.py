"""Play inside a world model with the keyboard. Arrows: right, left, up, down. Space or X: jump.
Backspace: restart. U: uncertainty on or off. R: record a GIF, on or off. Escape: end.

Pressing a key generates one frame at once; holding it generates frames until it is released. The
key pressed last counts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from envs.utils.errors import InputError
from envs.utils.progress import console
from experiments.arguments import GenerationArgs, default_threads

if TYPE_CHECKING:
    from experiments.interactive.session import World

KEYS = "arrows, Space or X: play; Backspace: restart; U: uncertainty; R: record; Escape: end"
RANGES = {"fps": (1, 240), "scale": (1, 32), "sampling_steps": (1, 1000), "seed": (0, 2**63)}
"""Smallest and largest value of a flag."""


@dataclass(frozen=True, kw_only=True)
class Args(GenerationArgs):
    """Play in a window, or play given actions without one."""

    episode: int = 0
    """Index of the episode in the folder, from 0, whose first two frames from --start are given."""
    out: Path = Path("runs/play")
    """Folder of the GIFs."""
    default_action: Literal["wait", "right", "left", "up", "down", "jump"] = "wait"
    """Action while no key is pressed; `wait` stops the world. Models have no action that does
    nothing; `up` comes closest in most games."""
    fps: int = 15
    """Maximum frames per second, 1 to 240; 15 is the speed of the games."""
    scale: int = 8
    """Window pixels per frame pixel, 1 to 32. GIFs are 256 pixels wide."""
    sampling_steps: int = 1
    """MaskGIT steps per frame, 1 to 1,000. Frames are always generated one at a time."""
    actions: str | None = None
    """Play these actions without a window, write the GIF and exit: r l u d j for right, left, up,
    down, jump, each with an optional number of repetitions, e.g. r8jr4."""
    uncertainty: bool = False
    """Show the uncertainty from the start, also in the GIF of --actions."""


def run(args: Args) -> None:
    """Open the window, or play the actions. GIFs are `<game>-<session>-<start>-<n>.gif`."""
    check_flags(args)
    args.check_folders()

    # These import torch: wrong arguments are reported first.
    import torch

    from experiments.interactive import session, window

    torch.set_num_threads(default_threads())
    if args.actions is not None:
        actions = session.parse_actions(args.actions)
        world = open_world(args)
        world.start_recording()
        for action in actions:
            world.step(action)
        path = world.end_recording()
        console.print(f"{path}: {len(actions)} generated frames after the given one")
        return
    with window.display() as pygame:
        console.print(KEYS, style="dim")
        default = session.parse_default_action(args.default_action)
        world = open_world(args)
        window.play(pygame, world, scale=args.scale, fps=args.fps, default_action=default)


def open_world(args: Args) -> "World":
    """Return the world of the flags. Raises InputError for a bad episode, start or model."""
    from envs.episodes.dataset import EpisodeReader
    from experiments.interactive.session import CONTEXT, World
    from worldmodel.loading import load_upscaler

    reader = EpisodeReader(args.data)
    if not 0 <= args.episode < len(reader):
        raise InputError(
            f"--episode {args.episode}: {args.data} holds episodes 0 to {len(reader) - 1}"
        )
    frames = reader.num_frames(args.episode)
    if not 0 <= args.start <= frames - CONTEXT:
        raise InputError(
            f"--start {args.start}: episode {args.episode} has {frames} frames, "
            f"so choose 0 to {frames - CONTEXT}"
        )
    episode = reader[args.episode]
    return World(
        args.load_model(args.model).for_game(episode.game),
        episode.frames_THWC[args.start : args.start + CONTEXT],
        episode.actions[args.start : args.start + CONTEXT - 1],
        game=episode.game,
        name=args.out / f"{episode.game}-{episode.session_id}-{args.start:05d}",
        steps=args.sampling_steps,
        temperature=args.temperature,
        upscaler=None if args.upscaler is None else load_upscaler(args.upscaler, args.device),
        uncertainty=args.uncertainty,
        seed=args.seed,
    )


def check_flags(args: Args) -> None:
    """Raise InputError for numbers out of range, and for an --out that is a file."""
    for name, (low, high) in RANGES.items():
        if not low <= getattr(args, name) <= high:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} {getattr(args, name)}: expected {low} to {high}")
    if not 0 <= args.temperature < float("inf"):
        raise InputError(f"--temperature {args.temperature}: expected 0 or more")
    if args.out.exists() and not args.out.is_dir():
        raise InputError(f"--out {args.out} is a file: give a folder for the GIFs")

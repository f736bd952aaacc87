"""Play inside a world model by keyboard: it goes on from frames of a recorded episode. Arrows: right, left, up, down.
Space or X: jump. Backspace: start again. U: the model's doubts, on or off. R: record a GIF, on or off. Escape: end.

A key that goes down makes one frame at once, a held one makes frames until it is let go; the newest key counts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from experiments.arguments import check_folder, default_threads

if TYPE_CHECKING:
    from experiments.interactive.session import World


@dataclass(frozen=True, kw_only=True)
class Args:
    """Play in a window, or a script without one."""

    model: tyro.conf.Positional[Path]
    """The world model: the `model` folder of `train dynamics`, or one that `export` or the pipeline made."""
    data: Path
    """Folder of episodes, one of which gives the first two frames."""
    episode: int = 0
    """Which episode of the folder, counted from 0."""
    start: int = 0
    """The first of the two given frames in the episode."""
    out: Path = Path("runs/play")
    """Folder for the GIFs."""
    idle: Literal["wait", "right", "left", "up", "down", "jump"] = "wait"
    """What happens while no key is down: the world waits, or goes on with this action. No model knows an action that
    does nothing; up comes nearest in most games."""
    fps: int = 15
    """At most so many frames a second; the games' own speed is 15."""
    scale: int = 8
    """Each pixel of the window is drawn as a square of so many. GIFs are 256 pixels wide."""
    sampling_steps: int = 1
    """MaskGIT steps for each frame. A frame at a time is the only way where nobody knows the next key, so that there is
    no choice of mode as in `generate`."""
    temperature: float = 1.0
    """Of the sampling; it needs two steps or more to matter."""
    upscaler: Path | None = None
    """Draw frames four times as large by this upscaler, the run folder of `autoexplore train upscaler`."""
    script: str | None = None
    """Play these actions without a window, write the GIF and end: r l u d j for right, left, up, down, jump, with a
    number for how often, e.g. r8jr4."""
    uncertainty: bool = False
    """Begin with the uncertainty shown, in a script's GIF too."""
    seed: int = 0
    """Seed of the sampling."""


def run(args: Args) -> None:
    """Open the window, or play the script. GIFs are called `<game>-<session>-<start>-<n>.gif`."""
    check_folder(args.model, "world model", "pipeline")
    check_folder(args.data, "data folder", "collect")
    if args.upscaler is not None:
        check_folder(args.upscaler, "upscaler", "train upscaler")

    import torch

    from envs.utils.progress import console
    from experiments.interactive import session, window

    torch.set_num_threads(default_threads())
    check_flags(args)
    if args.script is not None:
        actions = session.parse_script(args.script)
        world = open_world(args)
        world.start_recording()
        for action in actions:
            world.step(action)
        console.print(f"{world.end_recording()}: {len(actions)} frames dreamt, the first one given")
        return
    with window.display() as pygame:
        console.print("arrows, Space or X: play; Backspace: again; U: uncertainty; R: record; Escape: end", style="dim")
        world = open_world(args)
        window.play(pygame, world, scale=args.scale, fps=args.fps, idle=session.idle_action(args.idle))


def open_world(args: Args) -> "World":
    """The world that the flags of `play` ask for. Raises InputError for a bad episode, start, model or upscaler."""
    from envs.episodes.dataset import EpisodeReader
    from envs.utils.errors import InputError
    from experiments.interactive.session import CONTEXT, World
    from worldmodel import load_world_model
    from worldmodel.loading import load_upscaler

    reader = EpisodeReader(args.data)
    if not 0 <= args.episode < len(reader):
        raise InputError(f"--episode {args.episode}: {args.data} holds episodes 0 to {len(reader) - 1}")
    frames = reader.num_frames(args.episode)
    if not 0 <= args.start <= frames - CONTEXT:
        raise InputError(
            f"--start {args.start}: episode {args.episode} has {frames} frames, so choose 0 to {frames - CONTEXT}"
        )
    episode = reader[args.episode]
    return World(
        load_world_model(args.model).for_game(episode.game),
        episode.frames_THWC[args.start : args.start + CONTEXT],
        episode.actions[args.start : args.start + CONTEXT - 1],
        game=episode.game,
        name=args.out / f"{episode.game}-{episode.session_id}-{args.start:05d}",
        steps=args.sampling_steps,
        temperature=args.temperature,
        upscaler=None if args.upscaler is None else load_upscaler(args.upscaler),
        uncertainty=args.uncertainty,
        seed=args.seed,
    )


def check_flags(args: Args) -> None:
    """Raises InputError for numbers out of range, and for an --out that is a file."""
    from envs.utils.errors import InputError

    for name, value, least, most in (
        ("fps", args.fps, 1, 240),
        ("scale", args.scale, 1, 32),
        ("sampling-steps", args.sampling_steps, 1, 1000),
        ("seed", args.seed, 0, 2**63),
    ):
        if not least <= value <= most:
            raise InputError(f"--{name} {value}: expected {least} to {most}")
    if not 0 <= args.temperature < float("inf"):
        raise InputError(f"--temperature {args.temperature}: expected 0 or more")
    if args.out.exists() and not args.out.is_dir():
        raise InputError(f"--out {args.out} is a file: give a folder for the GIFs")

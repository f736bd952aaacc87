"""Play inside a world model by keyboard: it goes on from frames of a recorded episode. Arrows: right, left, up, down.
Space or X: jump. Backspace: start again. U: the model's doubts, on or off. R: record a GIF, on or off. Escape: end.

A key that goes down makes one frame at once, a held one makes frames until it is let go; the newest key counts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from experiments.common import check_folder, default_threads


@dataclass(frozen=True, kw_only=True)
class Args:
    """Play in a window, or a script without one."""

    model: tyro.conf.Positional[Path]
    """The world model: the `model` folder of `train dynamics`, or one that `map` or the pipeline made."""
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

    from envs.runs import console
    from experiments import play_window, play_world

    torch.set_num_threads(default_threads())
    play_world.check_flags(args)
    if args.script is not None:
        actions = play_world.parse_script(args.script)
        world = play_world.open_world(args)
        world.start_recording()
        for action in actions:
            world.step(action)
        console.print(f"{world.end_recording()}: {len(actions)} frames dreamt, the first one given")
        return
    with play_window.display() as pygame:
        console.print("arrows, Space or X: play; Backspace: again; U: uncertainty; R: record; Escape: end", style="dim")
        world = play_world.open_world(args)
        play_window.play(pygame, world, scale=args.scale, fps=args.fps, idle=play_world.idle_action(args.idle))

"""Format of the clips that the annotation page shows."""

import json
from pathlib import Path
from typing import Any

from envs.controls import DIRECTIONS

VERSION = 1
"""Of the recording; clips of another one are recorded anew."""
FPS = 30
FRAMES = 72
ACROSS = 9
"""Frames side by side in the PNG."""
LEAD = 8
"""Frames before the button goes down, the same in every clip."""
MOMENTS = {"start": 0, "after 5 s": 5 * FPS, "after 15 s": 15 * FPS}
"""Where the clips begin: frames of random play after the game's start, where controls may still be locked."""


def pressed(action: str) -> list[bool]:
    """Whether the button is down, frame by frame: a direction is held, another button tapped three times."""
    if action == "none":
        return [False] * FRAMES
    if action in DIRECTIONS:
        return [LEAD <= frame < FRAMES - LEAD for frame in range(FRAMES)]
    return [frame >= LEAD and (frame - LEAD) % 22 < 12 for frame in range(FRAMES)]


def read_clips(folder: Path) -> dict[str, Any] | None:
    """What `record` wrote about the clips in `folder`, or None where they are missing or of another version."""
    try:
        clips: dict[str, Any] = json.loads((folder / "clips.json").read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return clips if clips.get("version") == VERSION else None

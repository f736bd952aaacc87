"""Format of the clips that the annotation page shows."""

import json
from pathlib import Path
from typing import Any

from envs.controls import DIRECTIONS

VERSION = 1
"""Version of the recording; clips of another version are recorded again."""
FPS = 30
FRAMES = 72
ACROSS = 9
"""Number of frames side by side in the PNG."""
LEAD = 8
"""Number of frames before the button goes down, the same in every clip."""
MOMENTS = {"start": 0, "after 5 s": 5 * FPS, "after 15 s": 15 * FPS}
"""Starts of the clips, in frames of random play; controls may be locked at first."""


def pressed(action: str) -> list[bool]:
    """Return True for each frame in which the button is down.

    A direction is held; another button is pressed three times.
    """
    if action == "none":
        return [False] * FRAMES
    if action in DIRECTIONS:
        return [LEAD <= frame < FRAMES - LEAD for frame in range(FRAMES)]
    return [frame >= LEAD and (frame - LEAD) % 22 < 12 for frame in range(FRAMES)]


def read_clips(folder: Path) -> dict[str, Any] | None:
    """Return the `clips.json` of a folder, or None if it is missing or of another version."""
    try:
        clips: dict[str, Any] = json.loads((folder / "clips.json").read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return clips if clips.get("version") == VERSION else None

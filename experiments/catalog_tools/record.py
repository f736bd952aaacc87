"""Recording one game's clips: what its process does. Only there, because it loads the emulator."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from envs.controls import ACTIONS, control_buttons
from envs.games.retro import RetroEnv
from envs.utils.atomic_io import new_folder, write_json_atomic
from experiments.catalog_tools.clip_format import ACROSS, FPS, FRAMES, MOMENTS, VERSION, pressed

HELD = 6
"""Frames that random play holds a button for."""


def record(game: str, folder: Path) -> None:
    """Write the clips of a game into `folder`, which appears when they are complete: PNGs and `clips.json`.

    `clips.json` holds fps, frames, across, lively (the earliest moment at which most buttons do something) and moments:
    moment -> its clips, each with action ("none" first), button, file, width, height and, frame by frame, pressed.
    Raises InputError where the game cannot be opened, also because this process already has one open.
    """
    env = RetroEnv(game, frame_skip=60 // FPS)
    names = {"none": "", **control_buttons(env.buttons, env.console)}
    generator = np.random.default_rng(0)
    env.reset()
    played = 0
    moments: dict[str, list[dict[str, Any]]] = {}
    lively: dict[str, int] = {}
    try:
        with new_folder(folder) as new:
            for number, (moment, begin) in enumerate(MOMENTS.items()):
                while played < begin:
                    button = names[ACTIONS[generator.integers(len(ACTIONS))]]
                    for _ in range(HELD):
                        env.hold([button])
                    played += HELD
                state = env.save_state()
                sheets = {action: sheet(env, state, name, pressed(action)) for action, name in names.items()}
                moments[moment] = []
                for action, (sheet_HWC, width, height) in sheets.items():
                    file = f"{number}-{action}.png"
                    _write(new / file, sheet_HWC)
                    clip = {"action": action, "button": names[action], "file": file, "width": width, "height": height}
                    moments[moment].append({**clip, "pressed": pressed(action)})
                lively[moment] = sum(not np.array_equal(sheets["none"][0], other) for other, _, _ in sheets.values())
                env.load_state(state)
            about = {"version": VERSION, "game": game, "fps": FPS, "frames": FRAMES, "across": ACROSS}
            about["lively"] = max(lively, key=lively.__getitem__)
            write_json_atomic(new / "clips.json", {**about, "moments": moments})
    finally:
        env.close()


def sheet(env: RetroEnv, state: bytes, button: str, down: list[bool]) -> tuple[NDArray[np.uint8], int, int]:
    """Play from `state`, holding `button` while `down` says so. A picture of all frames, a frame's width and height.

    The picture is uint8 RGB (height * rows, width * ACROSS, 3).
    """
    env.load_state(state)
    env.hold([])  # a core draws its first frame after a rewind only in part
    frames: list[NDArray[Any]] = [env.hold([button] if is_down and button else []).copy() for is_down in down]
    height, width = frames[0].shape[:2]
    # Some games change resolution within a clip.
    frames = [frame if frame.shape[:2] == (height, width) else cv2.resize(frame, (width, height)) for frame in frames]
    rows = [np.concatenate(frames[first : first + ACROSS], axis=1) for first in range(0, FRAMES, ACROSS)]
    return np.concatenate(rows).astype(np.uint8, copy=False), width, height


def _write(path: Path, picture_HWC: NDArray[np.uint8]) -> None:
    """Write a PNG. Raises OSError."""
    done, png = cv2.imencode(".png", picture_HWC[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 6])
    if not done:
        raise OSError(f"{path} cannot be encoded as PNG")
    path.write_bytes(png.tobytes())

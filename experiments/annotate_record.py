"""Recording one game's clips: what its process does. Only there, because it loads the emulator."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from envs.controls import ACTIONS, DIRECTIONS, JUMP_BUTTON
from envs.files import new_folder, write_json_atomic
from envs.retro import RetroGame
from experiments.annotate_clips import ACROSS, FPS, FRAMES, MOMENTS, SECONDARY_BUTTON, VERSION, pressed

HELD = 6
"""Frames that random play holds a button for."""


class Held(RetroGame):
    """The game as any buttons play it, from any state of the emulator."""

    def hold(self, mask: int) -> NDArray[np.uint8]:
        """Hold the buttons whose bits are set for one step. The screen, uint8 (h, w, 3)."""
        self._advance(np.array([mask >> bit & 1 for bit in range(len(self.buttons))], np.uint8))
        return np.array(self._screen, np.uint8)

    def state(self) -> bytes:
        """Everything that decides what follows."""
        return bytes(self._emulator_env.em.get_state())

    def rewind(self, state: bytes) -> None:
        """Back to a state. The step is there because a core draws its first frame after a rewind only in part."""
        self._emulator_env.em.set_state(state)
        self.hold(0)


def record(game: str, folder: Path) -> None:
    """Write the clips of a game into `folder`, which appears when they are complete: PNGs and `clips.json`.

    `clips.json` holds fps, frames, across, lively (the earliest moment at which most buttons do something) and moments:
    moment -> its clips, each with action ("none" first), button, file, width, height and, frame by frame, pressed.
    Raises InputError where the game cannot be opened, also because this process already has one open.
    """
    env = Held(game, frame_skip=60 // FPS)
    secondary = SECONDARY_BUTTON.get(env.console)
    masks = {"none": 0, **dict(zip(ACTIONS, env.action_masks, strict=True))}
    if secondary is not None and secondary in env.buttons:
        masks["secondary"] = 1 << env.buttons.index(secondary)
    names = {"none": "", **DIRECTIONS, "jump": JUMP_BUTTON[env.console], "secondary": secondary}
    generator = np.random.default_rng(0)
    env.reset()
    played = 0
    moments: dict[str, list[dict[str, Any]]] = {}
    lively: dict[str, int] = {}
    try:
        with new_folder(folder) as new:
            for number, (moment, begin) in enumerate(MOMENTS.items()):
                while played < begin:
                    mask = int(generator.choice(env.action_masks))
                    for _ in range(HELD):
                        env.hold(mask)
                    played += HELD
                state = env.state()
                sheets = {action: sheet(env, state, mask, pressed(action)) for action, mask in masks.items()}
                moments[moment] = []
                for action, (sheet_HWC, width, height) in sheets.items():
                    file = f"{number}-{action}.png"
                    _write(new / file, sheet_HWC)
                    clip = {"action": action, "button": names[action], "file": file, "width": width, "height": height}
                    moments[moment].append({**clip, "pressed": pressed(action)})
                lively[moment] = sum(not np.array_equal(sheets["none"][0], other) for other, _, _ in sheets.values())
                env.rewind(state)
            about = {"version": VERSION, "game": game, "fps": FPS, "frames": FRAMES, "across": ACROSS}
            about["lively"] = max(lively, key=lively.__getitem__)
            write_json_atomic(new / "clips.json", {**about, "moments": moments})
    finally:
        env.close()


def sheet(env: Held, state: bytes, mask: int, down: list[bool]) -> tuple[NDArray[np.uint8], int, int]:
    """Play from `state`, holding `mask` while `down` says so. A picture of all frames, a frame's width and height.

    The picture is uint8 RGB (height * rows, width * ACROSS, 3).
    """
    env.rewind(state)
    frames: list[NDArray[Any]] = [env.hold(mask if is_down else 0) for is_down in down]
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

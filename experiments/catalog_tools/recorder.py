"""Recording of clips that show the effect of each button, for the annotation page.

A clip is one PNG with all its frames side by side, row by row. Every clip of a set begins at the
same state of the emulator and differs only in the button that is held, and the page draws the
frames of all clips by one clock: two clips show the same moment of two futures.
"""

import math
import multiprocessing
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from envs.controls import ACTIONS, control_buttons
from envs.games.retro import RetroEnv
from envs.utils.atomic_io import new_folder, write_json_atomic
from envs.utils.errors import InputError
from experiments.catalog_tools.clip_format import (
    ACROSS,
    FPS,
    FRAMES,
    MOMENTS,
    VERSION,
    pressed,
    read_clips,
)

HOLD_FRAMES = 6
"""Number of frames for which random play holds a button."""


@dataclass(frozen=True)
class Progress:
    """Progress of a game's clips.

    status: waiting, recording, ready or failed. reason: cause of the failure, else empty.
    """

    status: str
    reason: str = ""


class Recorder:
    """Background recorder of games, one after the other; the last requested one comes first.

    Clips that exist in `folder`, which has one folder per game, are not recorded again. A process
    can hold only one emulator, so each game gets its own process, for at most `seconds`.
    """

    def __init__(self, games: Sequence[str], folder: Path, seconds: float = 120.0) -> None:
        self._folder, self._seconds = folder, seconds
        self._waiting = [game for game in games if read_clips(folder / game) is None]
        waiting = set(self._waiting)
        self._progress = {
            game: Progress("waiting" if game in waiting else "ready") for game in games
        }
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Start recording in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the current recording, whose clips are then discarded, and start no other."""
        self._stopping.set()
        self._thread.join()

    def progress(self, game: str) -> Progress:
        """Return the progress of the game's clips."""
        return self._progress[game]

    def prioritise(self, game: str) -> None:
        """Record this game next."""
        with self._lock:
            if game in self._waiting:
                self._waiting.remove(game)
                self._waiting.insert(0, game)

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                if not self._waiting:
                    return
                game = self._waiting.pop(0)
            self._progress[game] = Progress("recording")
            reason = self._record(game)
            self._progress[game] = Progress("failed", reason) if reason else Progress("ready")

    def _record(self, game: str) -> str:
        """Record in a new process; return the cause of a failure, or an empty string."""
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        arguments = (game, self._folder / game, sender)
        process = context.Process(target=_record_and_report, args=arguments, daemon=True)
        process.start()
        sender.close()

        # Wait for its answer, for the end of its time, or for the end of the page.
        reason = None
        for _ in range(math.ceil(self._seconds * 10)):
            if self._stopping.is_set() or receiver.poll(0.1):
                break
        else:
            reason = f"{game}: the recording took more than {self._seconds:g} s and was ended"
        if self._stopping.is_set():
            reason = reason or "the page was stopped"
        elif reason is None:
            try:
                reason = receiver.recv()
            except EOFError:
                process.join()
                reason = f"{game}: the emulator's process ended with exit code {process.exitcode}"

        process.kill()
        process.join()
        receiver.close()
        for unfinished in self._folder.glob(f".{game}.*.tmp"):
            shutil.rmtree(unfinished)
        return str(reason)


def _record_and_report(game: str, folder: Path, sender: Connection) -> None:
    """Record in this process; send an empty string, or the failure as one line."""
    try:
        record(game, folder)
        sender.send("")
    except InputError as error:
        sender.send(str(error))
    except Exception as error:  # a core that fails on one game must not stop the others
        sender.send(f"{game}: {type(error).__name__}: {error}")


def record(game: str, folder: Path) -> None:
    """Write the clips of a game and `clips.json` into `folder`, which appears when complete.

    `clips.json` holds fps, frames, across, lively (the earliest moment at which most buttons have
    an effect) and moments: moment -> its clips, each with action ("none" first), button, file,
    width, height and, frame by frame, pressed.

    Raises InputError if the game cannot be opened, also because this process has another one open.
    """
    env = RetroEnv(game, frame_skip=60 // FPS)
    buttons = {"none": "", **control_buttons(env.buttons, env.console)}
    generator = np.random.default_rng(0)
    env.reset()
    played = 0
    moments: dict[str, list[dict[str, Any]]] = {}
    effects: dict[str, int] = {}
    try:
        with new_folder(folder) as new:
            for number, (moment, begin) in enumerate(MOMENTS.items()):
                while played < begin:
                    button = buttons[ACTIONS[generator.integers(len(ACTIONS))]]
                    for _ in range(HOLD_FRAMES):
                        env.hold([button])
                    played += HOLD_FRAMES
                state = env.save_state()
                moments[moment], effects[moment] = _record_moment(env, state, buttons, new, number)
                env.load_state(state)
            lively = max(effects, key=effects.__getitem__)
            about = {"version": VERSION, "game": game, "fps": FPS, "frames": FRAMES}
            about |= {"across": ACROSS, "lively": lively, "moments": moments}
            write_json_atomic(new / "clips.json", about)
    finally:
        env.close()


def _record_moment(
    env: RetroEnv, state: bytes, buttons: dict[str, str], folder: Path, number: int
) -> tuple[list[dict[str, Any]], int]:
    """Write the clips that begin at `state`; return them and the number of buttons with effect."""
    sheets: dict[str, NDArray[np.uint8]] = {}
    clips = []
    for action, button in buttons.items():
        sheets[action], width, height = sheet(env, state, button, pressed(action))
        file = f"{number}-{action}.png"
        _write_png(folder / file, sheets[action])
        clip = {"action": action, "button": button, "file": file, "width": width, "height": height}
        clips.append({**clip, "pressed": pressed(action)})
    idle = sheets["none"]
    return clips, sum(not np.array_equal(idle, other) for other in sheets.values())


def sheet(
    env: RetroEnv, state: bytes, button: str, down: list[bool]
) -> tuple[NDArray[np.uint8], int, int]:
    """Play from `state` with `button` held while `down` says so.

    Returns a picture of all frames, uint8 RGB (height * rows, width * ACROSS, 3), and a frame's
    width and height.
    """
    env.load_state(state)
    env.hold([])  # a core draws its first frame after a rewind only in part
    frames: list[NDArray[Any]] = []
    for is_down in down:
        frames.append(env.hold([button] if is_down and button else []).copy())
    height, width = frames[0].shape[:2]
    # Some games change resolution within a clip.
    frames = [
        frame if frame.shape[:2] == (height, width) else cv2.resize(frame, (width, height))
        for frame in frames
    ]
    rows = [
        np.concatenate(frames[first : first + ACROSS], axis=1) for first in range(0, FRAMES, ACROSS)
    ]
    return np.concatenate(rows).astype(np.uint8, copy=False), width, height


def _write_png(path: Path, picture_HWC: NDArray[np.uint8]) -> None:
    done, png = cv2.imencode(".png", picture_HWC[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 6])
    if not done:
        raise OSError(f"{path} cannot be encoded as PNG")
    path.write_bytes(png.tobytes())

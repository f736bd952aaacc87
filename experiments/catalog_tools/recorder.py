"""Recording of clips that show the effect of each button, for the annotation page.

A clip is one PNG with its frames side by side, row by row. The clips of a set begin at the same
state of the emulator and differ only in the button that is held. The page plays them in step.
"""

import multiprocessing
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from envs.controls import ACTIONS, control_buttons
from envs.games.retro import RetroEnv
from envs.utils.atomic_io import new_folder, write_json_atomic
from envs.utils.errors import InputError
from experiments.catalog_tools import clip_format
from experiments.catalog_tools.clip_format import ACROSS, FPS, FRAMES, MOMENTS, pressed, read_clips

POLL_SECONDS = 0.1
HOLD_FRAMES = 6
"""Number of frames for which random play holds a button."""


@dataclass(frozen=True)
class RecordingStatus:
    """Status of a game's clips: waiting, recording, ready or failed, and why it failed."""

    status: str
    reason: str = ""


class Recorder:
    """Background recorder of games, one after the other; the last requested one comes first.

    Clips that exist in `folder`, which has one folder per game, are not recorded again. Each game
    is recorded in a new process, which can hold only one emulator, for at most `seconds`.
    """

    def __init__(self, games: Sequence[str], folder: Path, seconds: float = 120.0) -> None:
        self._folder, self._seconds = folder, seconds
        self._waiting = [game for game in games if read_clips(folder / game) is None]
        self._progress = dict.fromkeys(games, RecordingStatus("ready"))
        self._progress |= dict.fromkeys(self._waiting, RecordingStatus("waiting"))
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

    def progress(self, game: str) -> RecordingStatus:
        """Return the status of the game's clips."""
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
            self._progress[game] = RecordingStatus("recording")
            reason = self._record(game)
            self._progress[game] = RecordingStatus("failed" if reason else "ready", reason)

    def _record(self, game: str) -> str:
        """Record in a new process; return the reason of a failure, or an empty string."""
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        arguments = (game, self._folder / game, sender)
        process = context.Process(target=_record_and_report, args=arguments, daemon=True)
        process.start()
        sender.close()

        # Wait for its answer, the time limit or the end of the page.
        deadline = time.monotonic() + self._seconds
        while not (answered := receiver.poll(POLL_SECONDS)):
            if self._stopping.is_set() or time.monotonic() > deadline:
                break
        if self._stopping.is_set():
            reason = "the page was stopped"
        elif not answered:
            reason = f"{game}: the recording took more than {self._seconds:g} s and was ended"
        else:
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
        return reason


def _record_and_report(game: str, folder: Path, sender: Connection) -> None:
    """Record in this process; send the reason of a failure, or an empty string."""
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
    width, height and, for each frame, pressed. Raises InputError if the game cannot be opened.
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
            for number, (moment, first_frame) in enumerate(MOMENTS.items()):
                while played < first_frame:
                    button = buttons[ACTIONS[generator.integers(len(ACTIONS))]]
                    for _ in range(HOLD_FRAMES):
                        env.hold([button])
                    played += HOLD_FRAMES
                state = env.save_state()
                moments[moment], effects[moment] = _record_moment(env, state, buttons, new, number)
                env.load_state(state)
            lively = max(effects, key=effects.__getitem__)
            description = {"version": clip_format.VERSION, "game": game, "fps": FPS}
            description |= {"frames": FRAMES, "across": ACROSS, "lively": lively}
            write_json_atomic(new / "clips.json", {**description, "moments": moments})
    finally:
        env.close()


def _record_moment(
    env: RetroEnv, state: bytes, buttons: dict[str, str], folder: Path, number: int
) -> tuple[list[dict[str, Any]], int]:
    """Write the clips that begin at `state`; return them and the number of buttons with effect."""
    sheets: dict[str, NDArray[np.uint8]] = {}
    clips = []
    for action, button in buttons.items():
        down, file = pressed(action), f"{number}-{action}.png"
        sheets[action], width, height = sheet(env, state, button, down)
        _write_png(folder / file, sheets[action])
        clip = {"action": action, "button": button, "file": file, "width": width, "height": height}
        clips.append({**clip, "pressed": down})
    idle = sheets["none"]
    return clips, sum(not np.array_equal(idle, other) for other in sheets.values())


def sheet(
    env: RetroEnv, state: bytes, button: str, down: list[bool]
) -> tuple[NDArray[np.uint8], int, int]:
    """Play from `state` with `button` held in the frames where `down` is True.

    Returns a picture of all frames, uint8 RGB (height * rows, width * ACROSS, 3), and a frame's
    width and height.
    """
    env.load_state(state)
    env.hold([])  # a core draws its first frame after a rewind only in part
    frames: list[NDArray[Any]] = [
        env.hold([button] if is_down and button else []).copy() for is_down in down
    ]
    height, width = frames[0].shape[:2]
    # Some games change resolution within a clip.
    frames = [
        frame if frame.shape[:2] == (height, width) else cv2.resize(frame, (width, height))
        for frame in frames
    ]
    picture = rearrange(np.stack(frames), "(r a) h w c -> (r h) (a w) c", a=ACROSS)
    return picture.astype(np.uint8, copy=False), width, height


def _write_png(path: Path, picture_HWC: NDArray[np.uint8]) -> None:
    bgr_HWC = picture_HWC[..., ::-1]
    if not cv2.imwrite(str(path), bgr_HWC, [cv2.IMWRITE_PNG_COMPRESSION, 6]):
        raise OSError(f"{path} cannot be written")

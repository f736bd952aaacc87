"""CoinRun, the procedurally generated platformer of the paper's case study.

The game is Procgen's CoinRun inside envpool, which the extra `coinrun` installs. envpool links
against Qt 5, which the extra installs as a Python package, so that no system package is needed.
"""

import ctypes
import importlib
import importlib.metadata
import json
from functools import cache
from typing import Any, Literal

import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray

from envs.controls import COINRUN_ACTIONS
from envs.games.base import GameEnv
from envs.utils.errors import InputError

SIZE = 64
RIGHT, LEFT, JUMP, DOWN = 1, 2, 4, 8
BUTTONS = (0, RIGHT, LEFT, JUMP, JUMP | RIGHT, JUMP | LEFT, DOWN)
# Procgen encodes directions as 3 * (1 + x) + (1 + y); its six other buttons do nothing in CoinRun.
PROCGEN_ACTIONS = (4, 7, 1, 5, 8, 2, 3)

VELOCITY_ROWS, VELOCITY_COLUMNS = 13, 26
"""Size of the upper-left corner in which the grey of two squares shows the agent's velocity."""

LEVELS = 2**31 - 1
"""Number of levels that Procgen can generate."""


def black_out_velocity(frames_THWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a copy of frames uint8 (..., 64, 64, 3) with black velocity squares."""
    if frames_THWC.shape[-3:] != (SIZE, SIZE, 3):
        raise InputError(
            f"frames with velocity squares have shape (..., {SIZE}, {SIZE}, 3), "
            f"not {frames_THWC.shape}"
        )
    blacked = frames_THWC.copy()
    blacked[..., :VELOCITY_ROWS, :VELOCITY_COLUMNS, :] = 0
    return blacked


class CoinRunEnv(GameEnv):
    """The env of `envs.make("CoinRun")`: frames uint8 (64, 64, 3), actions `COINRUN_ACTIONS`.

    Every reset draws a level from `levels` levels (0: all) starting at `start_level` and returns it
    as info["level"]. The same reset seed gives the same level, and level and actions determine
    every frame. `difficulty` "easy" has one theme and no walking monsters near pits. `velocity`
    "painted" shows the agent's velocity as two grey squares in the upper-left corner (for agents),
    "black" hides them (for world models); recorded episodes have black ones either way. The reward
    is 10 at the coin. The coin, an enemy, a saw or lava terminate; 1,000 steps or `max_steps`
    truncate. A step is one frame of the game, repeated `frame_skip` times (default: 1).

    Raises: InputError for options out of range, or if the extra is not installed.
    """

    game = console = "CoinRun"
    action_masks, action_names = BUTTONS, COINRUN_ACTIONS

    def __init__(
        self,
        *,
        velocity: Literal["painted", "black"] = "black",
        difficulty: Literal["easy", "hard"] = "easy",
        levels: int = 0,
        start_level: int = 0,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(seed=seed, **{"frame_skip": 1, **options})
        if self.size != SIZE:
            raise InputError(f"CoinRun draws frames of {SIZE} pixels, not {self.size}")
        if velocity not in ("painted", "black") or difficulty not in ("easy", "hard"):
            raise InputError(
                f"CoinRun: velocity must be painted or black, not {velocity!r}, "
                f"and difficulty easy or hard, not {difficulty!r}"
            )
        if min(levels, start_level) < 0 or start_level + max(levels, 1) > LEVELS:
            raise InputError(
                f"CoinRun: levels {levels} from start_level {start_level} are not within 0 to "
                f"{LEVELS - 1}"
            )
        self._envpool = load_envpool()
        self.retro_version = f"envpool {self._envpool.__version__}"
        self.velocity, self.difficulty = velocity, difficulty
        self._levels = (start_level, start_level + levels if levels else LEVELS)
        if seed is not None:
            self._np_random, self._np_random_seed = seeding.np_random(seed)
        self._level, self._played = 0, bytearray()
        self._pool: Any = None
        self._frame: NDArray[np.uint8] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Draw a level and start it. info["level"] is its number.

        options["state"], a `GameState`, continues from another moment instead.
        """
        super().reset(seed=seed)
        if options and "state" in options:
            self.load_state(options["state"].data)
        else:
            self._start(int(self.np_random.integers(*self._levels)))
        self._steps = 0
        return self.render(), {"level": self._level}

    def _start(self, level: int) -> None:
        """Start a level. The pool is created again, in a millisecond: its seed is fixed then."""
        self._level, self._played = level, bytearray()
        self._pool = self._envpool.make(
            f"Coinrun{self.difficulty.capitalize()}-v0",
            "gymnasium",
            num_envs=1,
            num_threads=1,
            seed=0,
            channel_first=False,
            num_levels=1,
            start_level=level,
            paint_vel_info=True,
        )
        frames_NHWC, _ = self._pool.reset()
        self._show(frames_NHWC[0])

    def save_state(self) -> bytes:
        """Return the level and the actions played in it: the game has no savestates of its own."""
        return json.dumps({"level": self._level, "actions": self._played.hex()}).encode()

    def load_state(self, state: bytes) -> None:
        """Start the level of a state and play its actions again, a thousand in a second."""
        saved = json.loads(state)
        self._start(saved["level"])
        for action in bytes.fromhex(saved["actions"]):
            self._play(action)

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Play one of the seven actions. The last frame of an episode shows the end itself."""
        if self._pool is None:
            raise InputError("CoinRun: call reset() before step()")
        self._check_action(action)
        reward, terminated, ended = self._play(int(action))
        return self.render(), reward, terminated, self._count_step() or ended, {}

    def _play(self, action: int) -> tuple[float, bool, bool]:
        """Play a step; return its reward, and whether the game terminated or was cut off."""
        self._played.append(action)
        procgen_action = np.array([PROCGEN_ACTIONS[action]], np.int32)
        reward = 0.0
        for _ in range(self.frame_skip):
            frames_NHWC, rewards_N, terminated_N, truncated_N, _ = self._pool.step(procgen_action)
            reward += float(rewards_N[0])
            if terminated_N[0] or truncated_N[0]:
                self._pool = None  # envpool would restart the level at the next step
                break
        self._show(frames_NHWC[0])
        return reward, bool(terminated_N[0]), bool(truncated_N[0])

    def _show(self, frame_HWC: NDArray[np.uint8]) -> None:
        painted = self.velocity == "painted"
        self._frame = frame_HWC.copy() if painted else black_out_velocity(frame_HWC)

    def hide_aids(self, frames_THWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return frames with black velocity squares, as world models see them (App. F.1)."""
        return black_out_velocity(frames_THWC) if self.velocity == "painted" else frames_THWC

    def render(self) -> Any:
        """Return a copy of the current frame, uint8 (64, 64, 3); None before the first reset."""
        return None if self._frame is None else self._frame.copy()

    def close(self) -> None:
        """Free the game."""
        self._pool = self._frame = None


@cache
def load_envpool() -> Any:
    """Return the module envpool with its Qt loaded.

    Raises: InputError if the extra or a system library is missing.
    """
    try:
        importlib.metadata.version("envpool")
        libraries = [_qt_library(name) for name in ("libQt5Core.so.5", "libQt5Gui.so.5")]
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            f"CoinRun needs the package {error.name}: install it with "
            "`pip install 'autoexplore[coinrun]'`"
        ) from error
    try:
        for library in libraries:  # the loader prefers loaded libraries to the system's
            ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        module = importlib.import_module("envpool")
        importlib.import_module("envpool.procgen.procgen_envpool")
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"cannot load the package of CoinRun ({reason}): run `pip install --force-reinstall "
            "'autoexplore[coinrun]'`, and on a bare Linux `apt install libgl1 libglib2.0-0`"
        ) from error
    return module


def _qt_library(name: str) -> str:
    """Return the path of a library in the wheel PyQt5-Qt5, or its name if it is not there."""
    for path in importlib.metadata.files("PyQt5-Qt5") or []:
        if path.name == name:
            return str(path.locate())
    return name

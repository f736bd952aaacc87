"""CoinRun, the procedurally generated platformer of the paper's case study; needs the extra
`coinrun`.

The game is Procgen's CoinRun inside envpool. envpool links against Qt 5, which the extra installs
as a Python package, so that no system package of Qt is needed.
"""

import ctypes
import importlib
import importlib.metadata
from functools import cache
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray

from envs.utils.errors import InputError

SIZE = 64
COINRUN_ACTIONS = ("none", "right", "left", "jump", "jump right", "jump left", "down")
"""The seven actions of the original CoinRun, in its order. Down drops through a crate."""

RIGHT, LEFT, JUMP, DOWN = 1, 2, 4, 8
BUTTONS = (0, RIGHT, LEFT, JUMP, JUMP | RIGHT, JUMP | LEFT, DOWN)
# Procgen encodes directions as 3 * (1 + x) + (1 + y); its six other buttons do nothing in CoinRun.
PROCGEN_ACTIONS = (4, 7, 1, 5, 8, 2, 3)

VELOCITY_ROWS, VELOCITY_COLUMNS = 13, 26
"""Size of the upper-left corner in which the grey of two squares shows the agent's velocity."""

# Procgen draws levels below 2^31 - 1.
LEVELS = 2**31 - 1


def black_out_velocity(frames_THWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a copy of frames uint8 (..., 64, 64, 3) with black velocity squares, as for world
    models.
    """
    if frames_THWC.shape[-3:] != (SIZE, SIZE, 3):
        raise InputError(
            f"velocity squares lie in frames of (..., {SIZE}, {SIZE}, 3), not {frames_THWC.shape}"
        )
    blacked = frames_THWC.copy()
    blacked[..., :VELOCITY_ROWS, :VELOCITY_COLUMNS, :] = 0
    return blacked


class CoinRunEnv(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """The env of `envs.make("CoinRun")`: observations uint8 (64, 64, 3), actions `COINRUN_ACTIONS`.

    Every reset draws a level from `levels` levels (0: all) starting at `start_level` and returns it
    as info["level"]. The same reset seed gives the same level, and level and actions determine
    every frame. `difficulty` "easy" has one theme and no walking monsters near pits. `velocity`
    "painted" shows the agent's velocity as two grey squares in the upper-left corner (for agents),
    "black" hides them (for world models). The reward is 10 at the coin. The coin, an enemy, a saw
    or lava terminate; 1,000 steps or `max_steps` truncate. A step is one frame of the game,
    repeated `frame_skip` times.

    Raises: InputError for options out of range, or if the extra is not installed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012 (gymnasium's own declaration)
    game = console = "CoinRun"
    init_state = rom_sha1 = resize = ""
    action_masks = BUTTONS

    def __init__(
        self,
        *,
        frame_skip: int = 1,
        size: int = SIZE,
        seed: int | None = None,
        state: str | None = None,
        max_steps: int | None = None,
        velocity: Literal["painted", "black"] = "black",
        difficulty: Literal["easy", "hard"] = "easy",
        levels: int = 0,
        start_level: int = 0,
    ) -> None:
        if state is not None:
            raise InputError(
                f"CoinRun has no savestates: omit state {state!r} and choose levels with "
                "start_level"
            )
        if size != SIZE:
            raise InputError(f"CoinRun draws frames of {SIZE} pixels, not {size}")
        if frame_skip < 1 or (max_steps is not None and max_steps < 1):
            raise InputError(
                f"CoinRun: frame_skip {frame_skip} and max_steps {max_steps} must be at least 1"
            )
        if velocity not in ("painted", "black") or difficulty not in ("easy", "hard"):
            raise InputError(
                f"CoinRun: velocity {velocity!r} is painted or black, difficulty {difficulty!r} "
                "easy or hard"
            )
        if min(levels, start_level) < 0 or start_level + max(levels, 1) > LEVELS:
            raise InputError(
                f"CoinRun: levels {levels} from start_level {start_level} are not within 0 to "
                f"{LEVELS - 1}"
            )
        self._envpool = load_envpool()
        self.retro_version = f"envpool {self._envpool.__version__}"
        self.frame_skip, self.size, self.max_steps = frame_skip, size, max_steps
        self.velocity, self.difficulty = velocity, difficulty
        self._levels = (start_level, start_level + levels if levels else LEVELS)
        self.observation_space = gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(COINRUN_ACTIONS), seed=seed)
        self.render_mode = "rgb_array"
        if seed is not None:
            self._np_random, self._np_random_seed = seeding.np_random(seed)
        self._pool: Any = None
        self._frame: NDArray[np.uint8] | None = None
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Draw a level and start it. info["level"] is its number.

        The pool is created again, in a millisecond, because its seed is fixed at creation.
        """
        super().reset(seed=seed)
        level = int(self.np_random.integers(*self._levels))
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
        self._show(frames_NHWC)
        self._steps = 0
        return self.render(), {"level": level}

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Play one of the seven actions. After an end, call reset(); the last frame shows the end
        itself.
        """
        if self._pool is None:
            raise InputError("CoinRun: call reset() before step()")
        if not 0 <= action < len(COINRUN_ACTIONS):
            raise InputError(
                f"CoinRun: action {action} is not one of 0 to {len(COINRUN_ACTIONS) - 1}"
            )
        press = np.array([PROCGEN_ACTIONS[int(action)]], np.int32)
        total = 0.0
        for _ in range(self.frame_skip):
            frames_NHWC, rewards_N, terminated_N, truncated_N, _ = self._pool.step(press)
            total += float(rewards_N[0])
            if terminated_N[0] or truncated_N[0]:
                break
        self._show(frames_NHWC)
        self._steps += 1
        terminated, truncated = bool(terminated_N[0]), bool(truncated_N[0])
        if terminated or truncated:  # envpool would restart the level at the next step
            self._pool = None
        truncated = truncated or (self.max_steps is not None and self._steps >= self.max_steps)
        return self.render(), total, terminated, truncated, {}

    def _show(self, frames_NHWC: NDArray[np.uint8]) -> None:
        frame_HWC = frames_NHWC[0]
        self._frame = (
            frame_HWC.copy() if self.velocity == "painted" else black_out_velocity(frame_HWC)
        )

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
            f"CoinRun needs the package {error.name}: install it with `pip install "
            "'autoexplore[coinrun]'`"
        ) from error
    try:
        for library in libraries:  # the loader prefers loaded libraries to the system's
            ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        module = importlib.import_module("envpool")
        importlib.import_module("envpool.procgen.procgen_envpool")
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"CoinRun's package does not load ({reason}): `pip install --force-reinstall "
            "'autoexplore[coinrun]'`, "
            "and on a bare Linux `apt install libgl1 libglib2.0-0`"
        ) from error
    return module


def _qt_library(name: str) -> str:
    """Return the path of a library in the wheel PyQt5-Qt5, or the bare name for the loader if
    missing.
    """
    for path in importlib.metadata.files("PyQt5-Qt5") or []:
        if path.name == name:
            return str(path.locate())
    return name

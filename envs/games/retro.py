"""One stable-retro game as a Gymnasium env: actions hold buttons for four emulator frames.

An emulator core keeps global state, so a process can hold one game at a time; stable-retro refuses
a second one.
"""

import gc
import hashlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import stable_retro
from numpy.typing import NDArray

from envs import catalog
from envs.controls import action_masks
from envs.games.base import GameEnv
from envs.utils.errors import InputError

RESIZE = "letterbox-cv2-area"


class RetroEnv(GameEnv):
    """The env of a stable-retro game: observations uint8 (size, size, 3), actions Discrete(5).

    `actions`: names of other actions than the five of `ACTIONS`, see `envs.controls.button_mask`.
    A step holds the action's buttons for `frame_skip` emulator frames and shows the brighter value
    per channel of the last two (App. A.3: consoles draw some sprites only every second frame).
    The screen keeps its aspect ratio inside black bars. Rewards are summed over the skipped frames.
    `terminated` is the game's own end, `truncated` comes after `max_steps`. The emulator is
    deterministic: the same actions give the same frames. `seed` seeds only the action space.

    Raises: InputError for an unknown game, a missing ROM, an unknown or unreadable state, or an
    action whose buttons the console lacks.
    """

    def __init__(
        self, game: str, *, state: str | None = None, actions: Sequence[str] = (), **options: Any
    ) -> None:
        if actions:
            self.action_names = tuple(actions)
        super().__init__(**options)
        self.game = catalog.canonical(game)
        self.console = catalog.console_of(self.game)
        rom = catalog.rom_path(self.game)
        if rom is None:
            raise InputError(_missing_rom(self.game))
        self.resize, self.retro_version = RESIZE, stable_retro.__version__.strip()
        self.rom_sha1 = hashlib.sha1(rom.read_bytes()).hexdigest()
        self._emulator_env = _open(self.game, state)
        self.init_state = (self._emulator_env.statename or "").removesuffix(".state")
        self.buttons: list[str | None] = list(self._emulator_env.buttons)
        try:
            self.action_masks = action_masks(self.buttons, self.console, self.action_names)
        except InputError:
            self._emulator_env.close()
            raise
        self._presses = [_bits(mask, len(self.buttons)) for mask in self.action_masks]
        self._start = self._start_state()
        self._is_plain = False
        self._screen: Any = None

    def _start_state(self) -> bytes:
        """Return the savestate of every episode; stable-retro itself loads it unchecked."""
        start = self._emulator_env.initial_state
        if start is None:  # stable-retro would then never rewind: start from power-on
            return self.save_state()
        if not self._emulator_env.em.set_state(start):
            self.close()
            raise InputError(
                f"{self.game}: state {self.init_state!r} does not belong to the {self.console} "
                "emulator"
            )
        return start

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Rewind to the start state and press nothing for one step; the seed has no effect.

        The step is needed because a core draws its first frame after a rewind only in part, or
        black. options["state"], a `GameState`, continues from another moment instead.
        """
        super().reset(seed=seed)
        self._emulator_env.initial_state = self._start
        self._emulator_env.reset(seed=seed)
        cropped = any(self._emulator_env.data.crop_info(0))
        self._is_plain = not cropped and self._emulator_env.em.get_rotation() == 0
        self._advance(_bits(0, len(self.buttons)))
        self._steps = 0
        if options and "state" in options:
            self.load_state(options["state"].data)
            self._screen = options["state"].frame_HWC.copy()
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Hold the buttons of `action` for `frame_skip` emulator frames.

        All of them are played even if the game ends meanwhile, so that frames are equally spaced in
        time.
        """
        if self._screen is None:
            raise InputError(f"{self.game}: call reset() before step()")
        self._check_action(action)
        reward, terminated = self._advance(self._presses[int(action)])
        return self._observe(), reward, terminated, self._count_step(), {}

    def save_state(self) -> bytes:
        """Return the state of the whole console, for `load_state`."""
        return bytes(self._emulator_env.em.get_state())

    def load_state(self, state: bytes) -> None:
        """Restore a state of `save_state` bit for bit. The next step draws the screen."""
        if not self._emulator_env.em.set_state(state):
            raise InputError(f"{self.game}: not a state of the {self.console} emulator")
        # Rewards are differences to the values of the step before.
        self._emulator_env.data.reset()
        self._emulator_env.data.update_ram()

    def _observe(self) -> NDArray[np.uint8]:
        return letterbox(self._screen, self.size)

    def hold(self, buttons: Sequence[str]) -> NDArray[np.uint8]:
        """Hold any number of buttons, by name, for one step and return the screen, uint8 (h, w, 3).

        Raises: InputError for a button that the console lacks.
        """
        for button in buttons:
            if button not in self.buttons:
                raise InputError(f"{self.game}: console {self.console} has no button {button}")
        self._advance(np.array([button in buttons for button in self.buttons], np.uint8))
        screen: NDArray[np.uint8] = self._screen
        return screen

    @property
    def game_over(self) -> bool:
        """True if the game has ended."""
        return bool(self._emulator_env.data.is_done())

    def _advance(self, buttons: NDArray[np.uint8]) -> tuple[float, bool]:
        """Play `frame_skip` emulator frames, draw the last two, and return reward and game over.

        stable-retro's own step would also draw, and look up all variables, in the frames between.
        """
        emulator, data = self._emulator_env.em, self._emulator_env.data
        emulator.set_button_mask(buttons, 0)
        reward, terminated = 0.0, False
        before_last: NDArray[np.uint8] | None = None
        for frame in range(self.frame_skip):
            emulator.step()
            data.update_ram()
            if not terminated:
                reward += data.current_reward()
                terminated = bool(data.is_done())
            if frame == self.frame_skip - 2:
                before_last = self._read_screen()
        self._screen = self._read_screen()
        # The shapes differ when the game changes its resolution.
        if before_last is not None and before_last.shape == self._screen.shape:
            self._screen = np.maximum(before_last, self._screen)
        return float(reward), terminated

    def _read_screen(self) -> NDArray[np.uint8]:
        """Return the screen, cropped and rotated only for games that need it, to save time."""
        env = self._emulator_env
        screen: NDArray[np.uint8] = (
            env.em.get_screen() if self._is_plain else env.get_screen(apply_rotation=True)
        )
        return screen

    def render(self) -> Any:
        """Return the screen at the console's resolution, uint8 (h, w, 3); None before a reset."""
        return self._screen

    def close(self) -> None:
        """Free the emulator, so that this process can open another game."""
        self._screen = None
        self._emulator_env.close()
        gc.collect()


def letterbox(screen_HWC: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return a screen shrunk by area averaging and centred on black, uint8 (size, size, 3).

    The aspect ratio is kept.
    """
    height, width = screen_HWC.shape[:2]
    scale = size / max(height, width)
    inner_height, inner_width = max(1, round(height * scale)), max(1, round(width * scale))
    small: NDArray[Any] = cv2.resize(
        screen_HWC, (inner_width, inner_height), interpolation=cv2.INTER_AREA
    )
    if small.shape == (size, size, 3):
        return small.astype(np.uint8, copy=False)
    frame_HWC = np.zeros((size, size, 3), np.uint8)
    top, left = (size - inner_height) // 2, (size - inner_width) // 2
    frame_HWC[top : top + inner_height, left : left + inner_width] = small
    return frame_HWC


def _open(game: str, state: str | None) -> stable_retro.RetroEnv:
    """Return stable-retro's env of a game whose ROM is imported, with its errors as InputError."""
    if state is not None and state not in (known := catalog.states(game)):
        raise InputError(f"{game} has no state {state!r}: it has {', '.join(known) or 'none'}")
    try:
        return stable_retro.make(
            catalog.folder(game).name,
            state=stable_retro.State.DEFAULT if state is None else state,
            inttype=stable_retro.data.Integrations.STABLE,
            use_restricted_actions=stable_retro.Actions.ALL,
            render_mode="rgb_array",
        )
    except RuntimeError as error:
        if "multiple emulator" in str(error):
            raise InputError(
                f"{game}: this process already runs a game: close() it, or use another process"
            ) from error
        raise InputError(f"{game}: the emulator cannot start it: {error}") from error


def _missing_rom(game: str) -> str:
    """Return the error message for a ROM that is not imported."""
    atari = catalog.console_of(game) == "Atari2600"
    bundled = "run `python -m envs.roms` to import 32 Atari games, or " if atari else ""
    return f"no ROM for {game}: {bundled}import your own with `python -m envs.roms FOLDER`"


def _bits(mask: int, count: int) -> NDArray[np.uint8]:
    """Return a button mask as the array of 0 and 1 that the emulator takes."""
    return np.array([mask >> bit & 1 for bit in range(count)], np.uint8)

"""Window of `play`: keys in, frames out. It imports pygame, the extra `play`, when it opens."""

import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from envs.controls import ACTIONS
from envs.utils.errors import InputError
from envs.utils.images import enlarged
from envs.utils.progress import console
from envs.utils.ray_session import captured_output
from experiments.interactive.session import World

GROUND, INK, RED = (16, 16, 20), (222, 222, 222), (235, 80, 70)
PACE_FRAMES = 15
"""Number of frames over which the frame rate is measured."""
LONG_PAUSE = 2.0
"""Seconds without a frame after which the frame rate is measured again."""


@contextmanager
def display() -> Iterator[Any]:
    """Yield pygame with its display started.

    Raises InputError without pygame, and on a machine without a screen, where SDL falls back to an
    invisible driver. SDL_VIDEODRIVER=dummy requests one, as the tests do.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import pygame
    except ImportError as error:
        raise InputError(
            'playing needs pygame: pip install "autoexplore[play]"; '
            "--actions plays without a window"
        ) from error
    try:
        with captured_output(drop="XDG_RUNTIME_DIR"):  # Wayland's warning without a screen
            pygame.display.init()
        if pygame.display.get_driver() == "offscreen" and "SDL_VIDEODRIVER" not in os.environ:
            raise pygame.error("no screen was found")
        pygame.font.init()
        yield pygame
    except pygame.error as error:
        raise InputError(
            f"no display to open a window on ({error}): "
            "play on a machine with a screen, or give --actions"
        ) from error
    finally:
        pygame.quit()


def play(pygame: Any, world: World, *, scale: int, fps: int, default_action: int | None) -> None:
    """Open the window and play until Escape or until it is closed; then write a running recording.

    scale: window pixels per frame pixel. fps: maximum frames per second. default_action: action
    while no key is down, None to wait for a key.
    """
    window = _Window(pygame, world, scale)
    clock = pygame.time.Clock()
    keys = _keys(pygame)
    held: dict[int, int] = {}  # key -> action, the key pressed last at the end
    try:
        while True:
            event = pygame.event.poll()  # one at a time, so that each press is played, in order
            pressed, nothing = event.type == pygame.KEYDOWN, event.type == pygame.NOEVENT
            if event.type == pygame.QUIT or (pressed and event.key == pygame.K_ESCAPE):
                return
            if event.type == pygame.KEYUP:
                held.pop(event.key, None)
            action = next(reversed(held.values()), default_action) if nothing else None
            if pressed and event.key in keys:
                action = held[event.key] = keys[event.key]
            elif pressed:
                _command(pygame, event.key, world)
            if action is not None:
                window.step(action)
            if pressed or nothing:
                window.draw()
            if nothing or action is not None:
                clock.tick(fps)
    finally:
        _end_recording(world)


def _keys(pygame: Any) -> dict[int, int]:
    """Return the action of each key."""
    arrows = (pygame.K_RIGHT, pygame.K_LEFT, pygame.K_UP, pygame.K_DOWN, pygame.K_SPACE)
    keys = dict(zip(arrows, range(len(ACTIONS)), strict=True))
    return {**keys, pygame.K_x: ACTIONS.index("jump")}


def _command(pygame: Any, key: int, world: World) -> None:
    """Run the command of a key that is no action, if it has one."""
    if key == pygame.K_BACKSPACE:
        world.restart()
    elif key == pygame.K_u:
        world.uncertainty = not world.uncertainty
    elif key == pygame.K_r and world.recording:
        _end_recording(world)
    elif key == pygame.K_r:
        world.start_recording()


def _end_recording(world: World) -> None:
    """Write the recording, if there is one, and print its path."""
    path = world.end_recording()
    if path is not None:
        console.print(f"written to {path}")


class _Window:
    """A frame in squares of `scale` pixels, and two lines of text below it."""

    def __init__(self, pygame: Any, world: World, scale: int) -> None:
        self._pygame, self._world = pygame, world
        self._side = world.frame.shape[0] * scale
        line = max(12, min(24, self._side // 20))
        self._font, self._line = pygame.font.Font(None, line), line
        self._surface = pygame.display.set_mode((self._side, self._side + 2 * line + 4))
        pygame.display.set_caption(f"AutoExplore: {world.game}, generated")
        self._times: deque[float] = deque(maxlen=PACE_FRAMES)

    def step(self, action: int) -> None:
        """Generate one frame and note its time."""
        self._world.step(action)
        now = time.monotonic()
        if self._times and now - self._times[-1] > LONG_PAUSE:
            self._times.clear()
        self._times.append(now)

    def draw(self) -> None:
        """Draw the frame and the text."""
        picture = self._world.picture()
        large = enlarged(picture, max(1, self._side // picture.shape[0]))
        frame = self._pygame.image.frombuffer(large.tobytes(), large.shape[1::-1], "RGB")
        if frame.get_size() != (self._side, self._side):  # an upscaler's frames in a smaller window
            frame = self._pygame.transform.scale(frame, (self._side, self._side))
        self._surface.fill(GROUND)
        self._surface.blit(frame, (0, 0))
        for row, text in enumerate(self.lines()):
            ink = RED if row and self._world.recording else INK
            self._surface.blit(
                self._font.render(text, True, ink), (4, self._side + 2 + row * self._line)
            )
        self._pygame.display.flip()

    def lines(self) -> tuple[str, str]:
        """Return game, step and action; frames per second and mean token uncertainty."""
        world, times = self._world, self._times
        pace = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
        entropy_N = world.entropy_N if world.uncertainty else None
        uncertainty = "-" if entropy_N is None else f"{entropy_N.mean():.3f}"
        first = f"{world.game}   step {world.steps}   {world.action or 'press a key'}"
        recording = "   recording" if world.recording else ""
        return first, f"{pace:.1f} frames/s   uncertainty {uncertainty}{recording}"

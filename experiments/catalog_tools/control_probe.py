"""Measured effect of each control of a game.

A trial restores a save state, holds one control and records the screens. The difference to the
same trial without a control is the effect of the control. Several states, reached by random play,
give several trials; the share of them that agree is the confidence.

Shapes: T steps, H x W pixels.
"""

import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from envs.controls import control_buttons
from envs.games.retro import RetroEnv
from envs.utils.errors import InputError

OPPOSITE = {"right": "left", "left": "right", "up": "down", "down": "up"}
CONTROLS = ("right", "left", "up", "down", "jump", "secondary")
STARTERS = ("START", "RESET")
HOLD_STEPS = 10
EARLY = 5
"""Number of steps that show the direction: later there is an obstacle or another room."""
STATE_STEPS = 40
"""Number of steps of random play between two states."""
START_STEPS = 30
"""Number of steps between pressing START and the first trial: two seconds."""
CANDIDATES = 3
"""Ratio of tried states to requested states, since the game responds only in some of them."""
PATIENCE = 6
"""Number of consecutive states without response after which the game is restarted."""
CHANGED = 24
"""Difference in grey levels, of 255, of a changed pixel; less is flicker and dithering."""
LEAST_PIXELS = 6
LEAST_MOVE = 2.0
"""Distance in pixels of the console's resolution that counts as moving."""
LEAST_SCROLL = 0.3
"""Speed of a scrolling background in pixels per step."""
STAYS = 0.35
"""Share of the player's pixels that may change while it stays in place: its legs may move."""
AWAY = 24
"""Distance in pixels from the player beyond which a change is a projectile."""

Screens = Sequence[NDArray[np.uint8]]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Trial:
    """Effect of one control held from one state, compared with none."""

    changed: int
    """Largest number of pixels that differed at a time."""
    across: float
    """Mean distance in pixels to the right of the player's start in the first steps."""
    down: float
    """Mean distance in pixels downwards."""
    turns: bool
    """True if the player went up and came down again while the control was held."""
    reach: float
    """Distance in pixels from the player's start to the farthest change."""
    scroll: float
    """Speed of the background in pixels per step, relative to its speed without a control."""
    label: str


@dataclass(frozen=True)
class Control:
    """Effect of a control."""

    label: str
    """right, left, up, down, jump, shoot, strike, none, or unknown if trials disagree."""
    confidence: float
    """Share of the trials with an effect that agree, lowered if they are few; in [0, 1]."""
    dead: bool
    """True if it had no effect in any trial."""
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Probe:
    """Result of probing a game."""

    game: str
    controls: dict[str, Control]
    needs_start: bool
    """True if no control has an effect at the start until START (or RESET) is pressed."""
    starter: str
    """Button that starts the game, if it needs one."""
    waits: int
    """Number of steps before the game first responds, a multiple of 40."""
    states: int
    """Number of states in which the game responded."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON data."""
        return asdict(self)


def probe(game: str, *, states: int = 8, steps: int = HOLD_STEPS, seed: int = 0) -> Probe:
    """Probe a game from its start and `states` - 1 other states, each control for `steps` steps.

    There are fewer states if random play does not reach enough in which the game responds. The same
    seed gives the same result.
    """
    if states < 1 or steps < 3:
        raise InputError(f"probe: states {states} must be 1 or more, steps {steps} 3 or more")
    env = RetroEnv(game)
    try:
        buttons = control_buttons(env.buttons, env.console)
        env.reset()
        start = env.save_state()
        starter = _find_starter(env, start, buttons, steps)
        started = _press(env, start, starter) if starter else start
        responses: list[dict[str, Trial]] = []
        waits = 0
        candidates = _try_states(env, started, buttons, steps, seed, states * CANDIDATES)
        for number, effects in enumerate(candidates):
            # Without any response the game shows an intro, an end or a pause: skip the state.
            if _responded(effects):
                waits = waits if responses else number * STATE_STEPS
                responses.append(effects)
            if len(responses) == states:
                break
        counted = responses or [effects]
        trials = {name: [effects[name] for effects in counted] for name in buttons}
        return Probe(env.game, vote(trials), bool(starter), starter, waits, len(responses))
    finally:
        env.close()


def compare(idle: Screens, held: Mapping[str, Screens]) -> dict[str, Trial]:
    """Return the effect of each control from one state.

    idle, held: screens uint8 (H, W, 3) of every step, without a control and with each. The player
    is where opposite directions both change the screen. The median of all trials at a moment is the
    world without the player's motion, so a control's own pixels are where only its screens differ.
    """
    idle_THW = _grey(idle)
    grey = {name: _grey(screens) for name, screens in held.items()}
    usual_THW = np.median(np.stack([idle_THW, *grey.values()]), 0)
    changed = {name: np.abs(frames - idle_THW) > CHANGED for name, frames in grey.items()}
    player_HW = _player(changed)
    centre = np.argwhere(player_HW if player_HW.any() else np.ones_like(player_HW)).mean(0)
    paths = {name: _path(np.abs(grey[name] - usual_THW) > CHANGED, centre) for name in held}
    idle_speed = _speed(idle_THW)
    trials = {}
    for name in held:
        # Relative to the opposite direction, so that motion common to both cancels out.
        against_N2 = paths.get(OPPOSITE.get(name, ""), np.zeros((0, 2)))
        scroll = _speed(grey[name]) - idle_speed
        trials[name] = _classify(changed[name], paths[name], against_N2, player_HW, scroll)
    return trials


def _path(own_THW: Mask, centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the offsets (down, right) of the control's own pixels from the player, (N, 2)."""
    offsets = [np.argwhere(mask).mean(0) - centre for mask in own_THW if mask.sum() >= LEAST_PIXELS]
    return np.array(offsets) if offsets else np.zeros((0, 2))


def _classify(
    changed_THW: Mask,
    path_N2: NDArray[np.float64],
    against_N2: NDArray[np.float64],
    player_HW: Mask,
    scroll: NDArray[np.float64],
) -> Trial:
    """Label one control by its changed pixels, its path and that of its opposite."""
    most, speed = int(changed_THW.sum((1, 2)).max()), float(np.abs(scroll).max())
    if most < LEAST_PIXELS:
        return Trial(most, 0.0, 0.0, False, 0.0, 0.0, "none")
    # Share of the player's pixels that change: a player that moves leaves its place.
    area, left = int(player_HW.sum()), 1.0
    if area >= LEAST_PIXELS:
        left = (changed_THW & player_HW).sum((1, 2))[2:].max() / area
    centre = np.argwhere(player_HW if area >= LEAST_PIXELS else changed_THW.any(0)).mean(0)
    reach = float(np.linalg.norm(np.argwhere(changed_THW.any(0)) - centre, axis=1).max())
    # Mean motion of the first steps, and a rise that is followed by a fall.
    path_N2 = path_N2 if len(path_N2) else np.zeros((1, 2))
    motion = path_N2[:EARLY].mean(0)
    if len(against_N2):
        motion = (motion - against_N2[:EARLY].mean(0)) / 2
    down, across = float(motion[0]), float(motion[1])
    heights = path_N2[:, 0]
    top = int(heights.argmin())
    falls = top < len(heights) - 1 and heights[-1] > heights[top] / 2
    turns = bool(heights[top] < -LEAST_MOVE and falls)

    if left < STAYS and speed >= LEAST_SCROLL:
        # The background moves left when the player moves right.
        label = _direction(-float(scroll[0]), -float(scroll[1]))
    elif left < STAYS:
        label = "shoot" if reach > AWAY else "strike"
    elif turns and abs(down) > abs(across):
        label = "jump"
    elif max(abs(across), abs(down)) < LEAST_MOVE:
        label = "strike"
    else:
        label = _direction(across, down)
    return Trial(most, across, down, turns, reach, speed, label)


def _direction(across: float, down: float) -> str:
    if abs(across) >= abs(down):
        return "right" if across > 0 else "left"
    return "down" if down > 0 else "up"


def _player(changed: dict[str, Mask]) -> Mask:
    """Return the pixels (H, W) that both of two opposite directions change.

    Of the two pairs of directions, the one that changes less counts: if a direction scrolls the
    background, the whole screen differs, and the other pair shows the player alone.
    """
    early = {name: frames[EARLY // 2 : EARLY].any(0) for name, frames in changed.items()}
    pairs: list[Any] = [early["right"] & early["left"], early["up"] & early["down"]]
    visible = [pair for pair in pairs if pair.sum() >= LEAST_PIXELS]
    return min(visible, key=lambda pair: int(pair.sum()), default=np.zeros_like(pairs[0]))


def _speed(frames_THW: NDArray[np.int16]) -> NDArray[np.float64]:
    """Return the speed (right, down) of textured parts of the screen in pixels per step."""
    speeds = []
    for before, after in itertools.pairwise(frames_THW.astype(np.uint8)):
        no_guess: Any = None
        flow_HW2: Any = cv2.calcOpticalFlowFarneback(
            before, after, no_guess, 0.5, 3, 15, 3, 5, 1.1, 0
        )
        textured = flow_HW2.astype(np.float32)[np.abs(cv2.Laplacian(before, cv2.CV_32F)) > CHANGED]
        speeds.append(np.median(textured, 0) if len(textured) else np.zeros(2))
    speed: NDArray[np.float64] = np.asarray(np.median(speeds, 0), np.float64)
    return speed


def vote(trials: Mapping[str, Sequence[Trial]]) -> dict[str, Control]:
    """Return the effect of each control by majority vote over its trials."""
    controls = {}
    for name in CONTROLS:
        tried = tuple(trials.get(name, ()))
        effects = [trial.label for trial in tried if trial.label != "none"]
        if not effects:
            confidence = 1.0 - 0.5 ** len(tried) if tried else 1.0
            controls[name] = Control("none", confidence, bool(tried), tried)
            continue
        moved = [label for label in effects if label != "strike"]
        if name in OPPOSITE and len(moved) > 1:
            effects = moved  # at a wall a player only turns, which looks like a strike
        label, votes = Counter(effects).most_common(1)[0]
        confidence = votes / len(effects) * (1 - 0.5 ** len(effects))
        majority = label if votes * 2 > len(effects) else "unknown"
        controls[name] = Control(majority, confidence, False, tried)
    return controls


def _grey(screens: Screens) -> NDArray[np.int16]:
    """Return the grey levels (T, H, W) of screens."""
    grey = [cv2.cvtColor(screen, cv2.COLOR_RGB2GRAY) for screen in screens]
    return np.stack(grey).astype(np.int16)


def _hold(env: RetroEnv, state: bytes, buttons: Sequence[str], steps: int) -> Screens:
    """Return the screens of `steps` steps from a state."""
    env.load_state(state)
    return [env.hold(buttons).copy() for _ in range(steps)]


def _find_starter(env: RetroEnv, start: bytes, buttons: dict[str, str], steps: int) -> str:
    """Return the button that the game waits for at its start, or "" if none is needed."""
    if _responds(env, start, buttons, steps):
        return ""
    for name in STARTERS:
        if name in env.buttons and _responds(env, _press(env, start, name), buttons, steps):
            return name
    return ""


def _responds(env: RetroEnv, state: bytes, buttons: dict[str, str], steps: int) -> bool:
    """Return True if any control has an effect from this state."""
    idle_THW = _grey(_hold(env, state, (), steps))
    held = (_grey(_hold(env, state, (button,), steps)) for button in buttons.values())
    changed = (np.abs(grey_THW - idle_THW) > CHANGED for grey_THW in held)
    return any(mask_THW.sum((1, 2)).max() >= LEAST_PIXELS for mask_THW in changed)


def _press(env: RetroEnv, state: bytes, button: str) -> bytes:
    """Return the state two seconds after a button was pressed for two steps."""
    _hold(env, state, (button,), 2)
    for _ in range(START_STEPS):
        env.hold(())
    return env.save_state()


def _try_states(
    env: RetroEnv, started: bytes, buttons: dict[str, str], steps: int, seed: int, count: int
) -> Iterator[dict[str, Trial]]:
    """Yield the effects of all controls at the start and after each period of random play.

    A game that ends, or that does not respond for long, is restarted.
    """
    generator = np.random.default_rng(seed)
    names = list(buttons.values())
    state, silent = started, 0
    for _ in range(count):
        held = {name: _hold(env, state, (button,), steps) for name, button in buttons.items()}
        effects = compare(_hold(env, state, (), steps), held)
        yield effects
        silent = 0 if _responded(effects) else silent + 1
        if silent > PATIENCE:
            state, silent = started, 0
        env.load_state(state)
        for _ in range(STATE_STEPS):
            env.hold((names[generator.integers(len(names))],))
            if env.game_over:
                env.load_state(started)
        state = env.save_state()


def _responded(effects: Mapping[str, Trial]) -> bool:
    """Return True if any control had an effect."""
    return any(trial.label != "none" for trial in effects.values())


if __name__ == "__main__":  # one process per game, since an emulator may crash
    try:
        print(json.dumps(probe(**json.loads(sys.argv[1])).to_json()))
    except InputError as error:
        sys.exit(str(error))

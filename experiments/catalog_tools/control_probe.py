"""Measured effect of each control of a game.

A trial restores a save state, holds one control and records the screens. The same trial without a
control shows what happens anyway, so the difference between the two is the effect of the control.
Several states, reached by random play, give several trials; the share of them that agree is the
confidence.
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
CANDIDATES = 3
"""Ratio of tried states to requested states, since the game responds only in some of them."""
PATIENCE = 6
"""Number of states in a row without response after which the game is restarted."""
CHANGED = 24
"""Difference in grey levels, of 255, of a changed pixel: less is flicker and dithering."""
LEAST_PIXELS = 6
LEAST_MOVE = 2.0
"""Distance in pixels of the console's resolution that counts as moving."""
LEAST_SCROLL = 0.3
"""Speed of a scrolling background in pixels per step."""
STAYS = 0.35
"""Share of the player's pixels that may change while it stays in place: its legs may move."""
AWAY = 24
"""Distance in pixels from the player beyond which a change is a projectile."""


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
        starter = _starter(env, start, buttons, steps)
        started = start if not starter else _press(env, start, starter)
        trials: dict[str, list[Trial]] = {name: [] for name in buttons}
        found: list[dict[str, Trial]] = []
        waits = 0
        for number, tried in enumerate(
            _trials(env, started, buttons, steps, seed, states * CANDIDATES)
        ):
            # Without any response the game shows an intro, an end or a pause: skip the state.
            if _responded(tried):
                waits = waits if found else number * STATE_STEPS
                found.append(tried)
            if len(found) == states:
                break
        for counted in found or [tried]:
            for name, trial in counted.items():
                trials[name].append(trial)
        return Probe(env.game, summarise(trials), bool(starter), starter, waits, len(found))
    finally:
        env.close()


def compare(
    idle: Sequence[NDArray[np.uint8]], held: Mapping[str, Sequence[NDArray[np.uint8]]]
) -> dict[str, Trial]:
    """Return the effect of each control from one state.

    idle, held: screens uint8 (h, w, 3) of every step, without a control and with each. The player
    is where opposite directions both change the screen. The median of all trials at a moment is the
    world without the player's motion, so the player is where only one control's screens differ.
    """
    grey = {name: _grey(screens) for name, screens in {"": idle, **held}.items()}
    usual_THW = np.median(np.stack(list(grey.values())), 0)
    changed = {name: np.abs(frames - grey[""]) > CHANGED for name, frames in grey.items() if name}
    player_HW = _player(changed)
    own = {name: np.abs(grey[name] - usual_THW) > CHANGED for name in held}
    centre = (
        np.argwhere(player_HW).mean(0)
        if player_HW.any()
        else np.argwhere(usual_THW[0] >= 0).mean(0)
    )
    paths = {name: _path(masks, centre) for name, masks in own.items()}
    trials = {}
    still = _speed(grey[""])
    for name in held:
        # Relative to the opposite direction, so that motion common to both cancels out.
        against = paths.get(OPPOSITE.get(name, ""), np.zeros((0, 2)))
        trials[name] = _trial(
            changed[name], paths[name], against, player_HW, _speed(grey[name]) - still
        )
    return trials


def _path(own_THW: NDArray[np.bool_], centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the offsets (down, right) of the control's own pixels from the player, (N, 2)."""
    places = [np.argwhere(mask).mean(0) - centre for mask in own_THW if mask.sum() >= LEAST_PIXELS]
    return np.array(places) if places else np.zeros((0, 2))


def _trial(
    changed_THW: NDArray[np.bool_],
    path_N2: NDArray[np.float64],
    against_N2: NDArray[np.float64],
    player_HW: NDArray[np.bool_],
    scroll: NDArray[np.float64],
) -> Trial:
    """Classify one control from its changed pixels, its path and that of its opposite."""
    sizes = changed_THW.sum((1, 2))
    if sizes.max() < LEAST_PIXELS:
        return Trial(int(sizes.max()), 0.0, 0.0, False, 0.0, 0.0, "none")
    area = int(player_HW.sum())
    left_place = (
        (changed_THW & player_HW).sum((1, 2))[2:].max() / area if area >= LEAST_PIXELS else 1.0
    )
    centre = np.argwhere(player_HW if area >= LEAST_PIXELS else changed_THW.any(0)).mean(0)
    reach = float(
        max(
            np.linalg.norm(np.argwhere(mask) - centre, axis=1).max()
            for mask in changed_THW
            if mask.any()
        )
    )
    path_N2 = path_N2 if len(path_N2) else np.zeros((1, 2))
    mean = path_N2[:EARLY].mean(0)
    down, across = (mean - against_N2[:EARLY].mean(0)) / 2 if len(against_N2) else mean
    down, across = float(down), float(across)
    top = int(path_N2[:, 0].argmin())
    turns = bool(
        path_N2[top, 0] < -LEAST_MOVE
        and path_N2[-1, 0] > path_N2[top, 0] / 2
        and top < len(path_N2) - 1
    )
    if left_place < STAYS and float(np.abs(scroll).max()) >= LEAST_SCROLL:
        label = _direction(
            -float(scroll[0]), -float(scroll[1])
        )  # the background moves left when the player moves right
    elif left_place < STAYS:
        label = "shoot" if reach > AWAY else "strike"
    elif turns and abs(down) > abs(across):
        label = "jump"
    elif max(abs(across), abs(down)) < LEAST_MOVE:
        label = "strike"
    else:
        label = _direction(across, down)
    return Trial(int(sizes.max()), across, down, turns, reach, float(np.abs(scroll).max()), label)


def _direction(across: float, down: float) -> str:
    if abs(across) >= abs(down):
        return "right" if across > 0 else "left"
    return "down" if down > 0 else "up"


def _player(changed: dict[str, NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Return the pixels (h, w) that both of two opposite directions change.

    Of the two pairs, the one that changes less counts: if a direction scrolls the background, the
    whole screen differs, and the other pair shows the player alone.
    """
    early = {name: frames[EARLY // 2 : EARLY].any(0) for name, frames in changed.items()}
    pairs = [early[one] & early[other] for one, other in (("right", "left"), ("up", "down"))]
    shown: list[Any] = [pair for pair in pairs if pair.sum() >= LEAST_PIXELS]
    return min(shown, key=lambda pair: int(pair.sum())) if shown else np.zeros_like(pairs[0])


def _speed(frames_THW: NDArray[np.int16]) -> NDArray[np.float64]:
    """Return the speed (right, down) of textured parts of the screen in pixels per step."""
    steps = []
    for before, after in itertools.pairwise(frames_THW.astype(np.uint8)):
        flow = _flow(before, after)
        texture = cv2.Laplacian(before, cv2.CV_32F)
        textured = flow[np.abs(texture) > CHANGED]
        steps.append(np.median(textured, 0) if len(textured) else np.zeros(2))
    speed: NDArray[np.float64] = np.asarray(np.median(steps, 0), np.float64)
    return speed


def summarise(trials: dict[str, list[Trial]]) -> dict[str, Control]:
    """Return the effect of each control by majority vote over its trials."""
    found = {}
    for name in CONTROLS:
        seen = trials.get(name, [])
        effects = [trial.label for trial in seen if trial.label != "none"]
        if not effects:
            found[name] = Control(
                "none", 1.0 - 0.5 ** len(seen) if seen else 1.0, bool(seen), tuple(seen)
            )
            continue
        moved = [label for label in effects if label != "strike"]
        if name in OPPOSITE and len(moved) > 1:
            effects = moved  # at a wall a player only turns, which looks like a strike
        label, votes = Counter(effects).most_common(1)[0]
        confidence = votes / len(effects) * (1 - 0.5 ** len(effects))
        found[name] = Control(
            label if votes * 2 > len(effects) else "unknown", confidence, False, tuple(seen)
        )
    return found


def _flow(before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.float32]:
    """Return the dense optical flow (h, w, 2) in pixels to the right and down."""
    none: Any = None
    flow: Any = cv2.calcOpticalFlowFarneback(before, after, none, 0.5, 3, 15, 3, 5, 1.1, 0)
    return flow.astype(np.float32)


def _grey(screens: Sequence[NDArray[np.uint8]]) -> NDArray[np.int16]:
    """Return the grey levels (T, h, w) of screens."""
    return np.stack([cv2.cvtColor(screen, cv2.COLOR_RGB2GRAY) for screen in screens]).astype(
        np.int16
    )


def _screens(
    env: RetroEnv, state: bytes, buttons: Sequence[str], steps: int
) -> list[NDArray[np.uint8]]:
    env.load_state(state)
    return [env.hold(buttons).copy() for _ in range(steps)]


def _starter(env: RetroEnv, start: bytes, buttons: dict[str, str], steps: int) -> str:
    """Return the button that the game waits for at its start, or "" if none is needed."""
    if _responds(env, start, buttons, steps):
        return ""
    for name in STARTERS:
        if name in env.buttons and _responds(env, _press(env, start, name), buttons, steps):
            return name
    return ""


def _responds(env: RetroEnv, state: bytes, buttons: dict[str, str], steps: int) -> bool:
    """Return True if any control has an effect from this state."""
    idle_THW = _grey(_screens(env, state, (), steps))
    held = (_grey(_screens(env, state, (button,), steps)) for button in buttons.values())
    return any(
        (np.abs(grey_THW - idle_THW) > CHANGED).sum((1, 2)).max() >= LEAST_PIXELS
        for grey_THW in held
    )


def _press(env: RetroEnv, state: bytes, button: str) -> bytes:
    """Return the state two seconds after a button was pressed for two steps."""
    _screens(env, state, (button,), 2)
    for _ in range(30):
        env.hold(())
    return env.save_state()


def _trials(
    env: RetroEnv, started: bytes, buttons: dict[str, str], steps: int, seed: int, count: int
) -> Iterator[dict[str, Trial]]:
    """Yield the effects of all controls at the start and after each period of random play.

    A game that ends, or that does not respond for long, is restarted.
    """
    generator = np.random.default_rng(seed)
    names = list(buttons.values())
    state, silent = started, 0
    for _ in range(count):
        held = {name: _screens(env, state, (button,), steps) for name, button in buttons.items()}
        found = compare(_screens(env, state, (), steps), held)
        yield found
        silent = 0 if _responded(found) else silent + 1
        if silent > PATIENCE:
            state, silent = started, 0
        env.load_state(state)
        for _ in range(STATE_STEPS):
            env.hold((names[generator.integers(len(names))],))
            if env.game_over:
                env.load_state(started)
        state = env.save_state()


def _responded(found: Mapping[str, Trial]) -> bool:
    """Return True if any control had an effect."""
    return any(trial.label != "none" for trial in found.values())


if __name__ == "__main__":  # one process per game, since an emulator may crash
    asked = json.loads(sys.argv[1])
    try:
        print(json.dumps(probe(**asked).to_json()))
    except InputError as error:
        sys.exit(str(error))

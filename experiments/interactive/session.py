"""Learned world of `play`: it continues recorded frames and records its uncertainty and GIFs.

Frames are uint8 HWC, actions those of `envs.controls`.
"""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.controls import ACTIONS
from envs.utils.atomic_io import write_atomic
from envs.utils.errors import InputError
from envs.utils.images import Frames, gif
from envs.utils.progress import console
from experiments.reports.images import at_scale
from exploration.rollout.snapshots import Snapshot
from worldmodel import WorldModelEnv
from worldmodel.models.genie import WorldModel
from worldmodel.models.upscaler import Upscaler
from worldmodel.uncertainty import WINDOW, window_entropies

CONTEXT = 2
"""Frames given at the start, as in the paper."""
FOREVER = 2**62
"""Maximum steps of the env: the player decides when to stop."""
GIF_WIDTH = 256
LONGEST = 1000
"""Frames of a GIF; about a minute. A recording that reaches it is written then."""
_LETTERS = re.compile(r"([rludj])([1-9]\d{0,3})?")


class World:
    """Frames generated step by step by `model`, after given_PHWC uint8 and the actions (P-1,)
    between them.

    `name`: path of the GIFs, without a number. `temperature` and `steps` as `WorldModelEnv`. Raises
    InputError where frames or actions do not fit the model.
    """

    def __init__(
        self,
        model: WorldModel,
        given_PHWC: Frames,
        actions: NDArray[np.integer],
        *,
        game: str,
        name: Path,
        steps: int = 1,
        temperature: float = 1.0,
        upscaler: Upscaler | None = None,
        uncertainty: bool = False,
        seed: int = 0,
    ) -> None:
        if model.actions != len(ACTIONS):
            raise InputError(
                f"the model has {model.actions} actions: play knows {', '.join(ACTIONS)}"
            )
        self.game, self.uncertainty = game, uncertainty
        self._model, self._name, self._upscaler = model, name, upscaler
        self._given, self._given_actions = given_PHWC, actions.astype(np.int64)
        self._env = WorldModelEnv(
            model,
            given_PHWC[None],
            start_actions=self._given_actions[None],
            max_steps=FOREVER,
            steps=steps,
            temperature=temperature,
        )
        self._film: list[Frames] | None = None
        self._film_given = 0
        self.start_again(seed)

    def start_again(self, seed: int | None = None) -> None:
        """Return to the given frames. Without a seed the noise continues, so the same keys may lead
        elsewhere."""
        self.frame, _ = self._env.reset(seed=seed)
        self.steps, self.action = 0, ""
        self.entropy_N: NDArray[np.float32] | None = None
        self._frames, self._actions = list(self._given), self._given_actions.tolist()
        self._show()

    def step(self, action: int) -> None:
        """Generate one frame and its uncertainty: the paper's reward query on the newest window
        (Eq. 2)."""
        self.frame, *_ = self._env.step(np.int64(action))
        self.steps, self.action = self.steps + 1, ACTIONS[action]
        length = min(WINDOW, self._model.cfg.frames)
        self._frames = [*self._frames, self.frame][-length:]
        self._actions = [*self._actions, action][-length + 1 :]
        window, between = np.stack(self._frames)[None], np.array(self._actions)[None]
        self.entropy_N = window_entropies(self._model, window, between)[0]
        self._show()

    def picture(self) -> Frames:
        """Return the newest frame to show: upscaled, under the uncertainty map if that is on."""
        if not self.uncertainty or self.entropy_N is None:
            return self._shown
        uncertainty = Snapshot(self.game, self._shown, self.entropy_N, 0.0).map()
        return self._shown if uncertainty is None else uncertainty

    @property
    def recording(self) -> bool:
        """Return True while a GIF is being recorded."""
        return self._film is not None

    def start_recording(self) -> None:
        """Start a recording with the frame now shown."""
        self._film, self._film_given = [], int(self.steps == 0)
        self._record()

    def end_recording(self) -> Path | None:
        """Write the film and return its path; None where nothing was being recorded."""
        if self._film is None:
            return None
        film, self._film = np.stack(self._film), None
        number = 0
        while (path := self._name.with_name(f"{self._name.name}-{number}.gif")).exists():
            number += 1
        write_atomic(path, gif([film], max(1, GIF_WIDTH // film.shape[2]), self._film_given))
        return path

    def _show(self) -> None:
        self._shown = at_scale(self.frame[None], self._upscaler, 1)[0][0]
        self._record()

    def _record(self) -> None:
        if self._film is None:
            return
        self._film.append(self.picture())
        if len(self._film) == LONGEST:
            console.print(f"{self.end_recording()}: {LONGEST} frames, the most that a GIF takes")


def parse_actions(text: str) -> list[int]:
    """Return the actions of a text such as `r8jr4`.

    Raises InputError for anything else, and for more actions than a GIF has frames.
    """
    letters = "".join(text.split()).lower()
    if not re.fullmatch(f"(?:{_LETTERS.pattern})+", letters):
        known = ", ".join(f"{name[0]} ({name})" for name in ACTIONS)
        raise InputError(
            f"--actions {text!r}: expected letters, each with a number or none: {known}, e.g. r8jr4"
        )
    letters_of = [name[0] for name in ACTIONS]
    actions = [
        letters_of.index(key)
        for key, times in _LETTERS.findall(letters)
        for _ in range(int(times or 1))
    ]
    if len(actions) >= LONGEST:
        raise InputError(f"--actions: {len(actions)} actions, a GIF takes at most {LONGEST - 1}")
    return actions


def parse_default_action(name: str) -> int | None:
    """Return the action of `--default-action`, None for `wait`."""
    return None if name == "wait" else ACTIONS.index(name)

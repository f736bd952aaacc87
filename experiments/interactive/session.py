"""Learned world of `play`: generated frames, their uncertainty, and recorded GIFs.

Frames are uint8 HWC, actions those of `envs.controls`. P is the number of given frames.
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
from worldmodel.config import WINDOW
from worldmodel.models.genie import WorldModel
from worldmodel.models.upscaler import Upscaler
from worldmodel.uncertainty import window_entropies

CONTEXT = 2
"""Number of given frames, as in the paper."""
UNLIMITED = 2**62
"""Maximum steps of the env; the player decides when to stop."""
GIF_WIDTH = 256
GIF_FRAMES = 1000
"""Maximum frames of a GIF, about a minute; a longer recording ends there."""
_LETTERS = re.compile(r"([rludj])([1-9]\d{0,3})?")


class World:
    """Frames generated step by step after `given_PHWC`, with the actions (P-1,) between them.

    name: path of the GIFs, without a number. temperature, steps: as in `WorldModelEnv`. Raises
    InputError if frames or actions do not fit the model.
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
        model.check_action_names(ACTIONS, "play knows")
        self.game, self.uncertainty = game, uncertainty
        self._model, self._name, self._upscaler = model, name, upscaler
        self._given, self._given_actions = given_PHWC, actions.astype(np.int64)
        self._env = WorldModelEnv(
            model,
            given_PHWC[None],
            start_actions=self._given_actions[None],
            max_steps=UNLIMITED,
            steps=steps,
            temperature=temperature,
        )
        self._recorded: list[Frames] | None = None
        self._recorded_given = 0
        self.restart(seed)

    def restart(self, seed: int | None = None) -> None:
        """Return to the given frames. Without a seed the random state continues, so that the same
        keys may lead elsewhere."""
        self.frame, _ = self._env.reset(seed=seed)
        self.steps, self.action = 0, ""
        self._entropy_N: NDArray[np.float32] | None = None
        self._frames, self._actions = list(self._given), self._given_actions.tolist()
        self._show()

    def step(self, action: int) -> None:
        """Generate one frame."""
        self.frame, *_ = self._env.step(np.int64(action))
        self.steps, self.action = self.steps + 1, ACTIONS[action]
        length = min(WINDOW, self._model.cfg.frames)
        self._frames = [*self._frames, self.frame][-length:]
        self._actions = [*self._actions, action][-length + 1 :]
        self._entropy_N = None
        self._show()

    @property
    def entropy_N(self) -> NDArray[np.float32] | None:
        """Token entropies of the newest generated frame (Eq. 2), None before the first.

        They are computed when they are asked for: it takes longer than generating the frame.
        """
        if self._entropy_N is None and self.steps:
            frames_15HWC, actions_14 = np.stack(self._frames)[None], np.array(self._actions)[None]
            self._entropy_N = window_entropies(self._model, frames_15HWC, actions_14)[0]
        return self._entropy_N

    def picture(self) -> Frames:
        """Return the newest frame, upscaled, under the uncertainty map if that is on."""
        if not self.uncertainty or self.entropy_N is None:
            return self._shown
        uncertainty = Snapshot(self.game, self._shown, self.entropy_N, 0.0).map()
        return self._shown if uncertainty is None else uncertainty

    @property
    def recording(self) -> bool:
        """True while a GIF is being recorded."""
        return self._recorded is not None

    def start_recording(self) -> None:
        """Start a recording with the current frame."""
        self._recorded, self._recorded_given = [], int(self.steps == 0)
        self._record()

    def end_recording(self) -> Path | None:
        """Write the recording and return its path; None if there is no recording."""
        if self._recorded is None:
            return None
        frames, self._recorded = np.stack(self._recorded), None
        number = 0
        while (path := self._name.with_name(f"{self._name.name}-{number}.gif")).exists():
            number += 1
        write_atomic(
            path, gif([frames], max(1, GIF_WIDTH // frames.shape[2]), self._recorded_given)
        )
        return path

    def _show(self) -> None:
        self._shown = at_scale(self.frame[None], self._upscaler, 1)[0][0]
        self._record()

    def _record(self) -> None:
        if self._recorded is None:
            return
        self._recorded.append(self.picture())
        if len(self._recorded) == GIF_FRAMES:
            console.print(f"{self.end_recording()}: {GIF_FRAMES} frames, the maximum of a GIF")


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
    keys = [name[0] for name in ACTIONS]
    actions = [
        keys.index(key) for key, times in _LETTERS.findall(letters) for _ in range(int(times or 1))
    ]
    if len(actions) >= GIF_FRAMES:
        raise InputError(f"--actions: {len(actions)} actions, a GIF takes at most {GIF_FRAMES - 1}")
    return actions


def parse_default_action(name: str) -> int | None:
    """Return the action of `--default-action`, None for `wait`."""
    return None if name == "wait" else ACTIONS.index(name)

"""Playing inside a world model: a film that grows by a frame for each action, with everything finished kept.

Shapes: B films, P given frames, C=3, H=W pixels.
"""

import torch
from torch import Tensor

from envs.errors import InputError
from worldmodel.genie import WorldModel


class Rollout:
    """Goes on from given frames, one frame at a time; the numbers are those of `WorldModel.generate` frame by frame.

    frames (B, P, 3, H, W) in [0, 1] and the actions (B, P-1) between them. `steps`, `temperature` and `generator` are
    those of `generate`. Past cfg.frames the window slides. Raises InputError for bad input.
    """

    def __init__(
        self,
        model: WorldModel,
        frames_BPCHW: Tensor,
        actions_BA: Tensor | None = None,
        *,
        steps: int = 1,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        batch, given = frames_BPCHW.shape[:2]
        if actions_BA is None:
            actions_BA = torch.zeros(batch, given - 1, dtype=torch.int64, device=frames_BPCHW.device)
        model.check_actions(actions_BA, batch, given - 1)
        self._model = model
        self._sampling = (steps, temperature, generator)
        with torch.no_grad():
            tokens = model.tokenizer.encode(frames_BPCHW)
            self._past = model.read(tokens, model.conditions(actions_BA), None)
            self._shown = model.tokenizer.show(tokens)[1]
        self._batch = batch

    @torch.no_grad()
    def step(self, actions_B: Tensor) -> Tensor:
        """The frame that follows if each film takes its action, int64 (B,). -> (B, 3, H, W) in [0, 1]."""
        model, window = self._model, self._model.cfg.frames
        model.check_actions(actions_B[:, None] if actions_B.ndim == 1 else actions_B, self._batch, 1)
        ahead = model.conditions(actions_B[:, None], first=False)
        steps, temperature, generator = self._sampling
        made = model.fill(self._past.last(window - 1), ahead, steps, temperature, generator)
        self._past = model.read(made, ahead, self._past)
        frames, self._shown = model.tokenizer.show(made, self._shown)
        return frames[:, 0]


def check_start(frames_NPHWC: object, size: int) -> None:
    """Raises InputError unless these are start clips, uint8 (N, P, size, size, 3) with N, P >= 1."""
    shape, kind = getattr(frames_NPHWC, "shape", ()), getattr(frames_NPHWC, "dtype", type(frames_NPHWC))
    if len(shape) != 5 or shape[2:] != (size, size, 3) or 0 in shape or str(kind) != "uint8":
        raise InputError(f"start frames: expected uint8 (N, P, {size}, {size}, 3), got {kind} {tuple(shape)}")

"""The learned world as a Gymnasium env: an agent acts, the world model dreams what it sees.

Shapes: N start clips, P given frames, B films at a time, H=W pixels.
"""

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from envs.utils.errors import InputError
from worldmodel.data.batch import to_float_frames
from worldmodel.models.genie import WorldModel

Info = dict[str, Any]


class WorldModelVectorEnv(gymnasium.vector.VectorEnv[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_]]):
    """`num_envs` films at a time through one model, each from a start clip drawn at the reset.

    Observations are uint8 (B, H, W, 3), the newest frame of each film; rewards are 0, nothing terminates, and all films
    are truncated together after `max_steps`, when `reset` has to be called. `start_frames` uint8 (N, P, H, W, 3) and
    `start_actions` int (N, P-1), by default all 0, come from recorded episodes. `steps` and `temperature` are those of
    `WorldModel.generate`; the seed of `reset` decides start clips and noise.
    """

    def __init__(
        self,
        model: WorldModel,
        start_frames: NDArray[np.uint8],
        *,
        num_envs: int,
        start_actions: NDArray[np.integer] | None = None,
        max_steps: int = 200,
        steps: int = 1,
        temperature: float = 0.0,
    ) -> None:
        check_start(start_frames, model.cfg.size)
        clips, given = start_frames.shape[:2]
        if start_actions is None:
            start_actions = np.zeros((clips, given - 1), np.int64)
        if start_actions.shape != (clips, given - 1):
            raise InputError(f"start actions: expected shape {(clips, given - 1)}, got {start_actions.shape}")
        if num_envs < 1 or max_steps < 1:
            raise InputError(f"num_envs {num_envs} and max_steps {max_steps} must be 1 or more")
        self.num_envs, self.max_steps = num_envs, max_steps
        self.metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED, "render_modes": ["rgb_array"]}
        self.render_mode = "rgb_array"
        self.single_observation_space = gymnasium.spaces.Box(0, 255, (model.cfg.size, model.cfg.size, 3), np.uint8)
        self.single_action_space = gymnasium.spaces.Discrete(model.actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._model, self._steps, self._temperature = model, steps, temperature
        self._start = (start_frames, start_actions.astype(np.int64))
        self._device = next(model.parameters()).device
        self._rollout: Rollout | None = None

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: Info | None = None
    ) -> tuple[NDArray[np.uint8], Info]:
        """Begin all films anew. `seed`: one for all of them."""
        if isinstance(seed, list):
            raise InputError("a world model env draws all films from one seed: give an int")
        super().reset(seed=seed)
        frames, actions = self._start
        chosen = self.np_random.integers(len(frames), size=self.num_envs)
        noise = torch.Generator(self._device).manual_seed(int(self.np_random.integers(2**62)))
        self._rollout = Rollout(
            self._model,
            to_float_frames(torch.from_numpy(frames[chosen]).to(self._device)),
            torch.from_numpy(actions[chosen]).to(self._device),
            steps=self._steps,
            temperature=self._temperature,
            generator=noise,
        )
        self._done, self._screens = 0, frames[chosen, -1]
        return self._screens.copy(), {"start_clip": chosen}

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], Info]:
        """One frame of each film. Raises InputError before a reset, after the last step, and for unknown actions."""
        if self._rollout is None or self._done >= self.max_steps:
            raise InputError("call reset() first: the films have not begun, or are at their end")
        made = self._rollout.step(torch.as_tensor(actions, dtype=torch.int64, device=self._device))
        self._screens = (made * 255).round().byte().movedim(1, -1).cpu().numpy()
        self._done += 1
        no, over = np.zeros(self.num_envs, np.bool_), np.full(self.num_envs, self._done >= self.max_steps)
        return self._screens.copy(), np.zeros(self.num_envs), no, over, {}

    def render(self) -> tuple[Any, ...] | None:
        """The newest frame of each film, uint8 (H, W, 3); None before the first reset."""
        return None if self._rollout is None else tuple(self._screens)


class WorldModelEnv(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """One film: `WorldModelVectorEnv` with `num_envs` = 1 and the interface of the real games."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012  # Gymnasium declares it so

    def __init__(self, model: WorldModel, start_frames: NDArray[np.uint8], **options: Any) -> None:
        self._films = WorldModelVectorEnv(model, start_frames, num_envs=1, **options)
        self.observation_space = self._films.single_observation_space
        self.action_space = self._films.single_action_space
        self.render_mode = "rgb_array"

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[NDArray[np.uint8], Info]:
        """Begin a film from a start clip, which the seed draws."""
        super().reset(seed=seed)
        frames, info = self._films.reset(seed=int(self.np_random.integers(2**31)))
        return frames[0], {"start_clip": int(info["start_clip"][0])}

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, Info]:
        """The frame that follows; the reward is 0, nothing terminates, the last step truncates."""
        frames, rewards, _, over, info = self._films.step(np.array([action]))
        return frames[0], float(rewards[0]), False, bool(over[0]), info

    def render(self) -> Any:
        """The newest frame, uint8 (H, W, 3); None before the first reset."""
        screens = self._films.render()
        return None if screens is None else screens[0]


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
            self._past = model.prefill(tokens, model.encode_actions(actions_BA), None)
            self._shown = model.tokenizer.show(tokens)[1]
        self._batch = batch

    @torch.no_grad()
    def step(self, actions_B: Tensor) -> Tensor:
        """The frame that follows if each film takes its action, int64 (B,). -> (B, 3, H, W) in [0, 1]."""
        model, window = self._model, self._model.cfg.frames
        model.check_actions(actions_B[:, None] if actions_B.ndim == 1 else actions_B, self._batch, 1)
        ahead = model.encode_actions(actions_B[:, None], first=False)
        steps, temperature, generator = self._sampling
        made = model.sample_frames(self._past.last_frames(window - 1), ahead, steps, temperature, generator)
        self._past = model.prefill(made, ahead, self._past)
        frames, self._shown = model.tokenizer.show(made, self._shown)
        return frames[:, 0]


def check_start(frames_NPHWC: object, size: int) -> None:
    """Raises InputError unless these are start clips, uint8 (N, P, size, size, 3) with N, P >= 1."""
    shape, kind = getattr(frames_NPHWC, "shape", ()), getattr(frames_NPHWC, "dtype", type(frames_NPHWC))
    if len(shape) != 5 or shape[2:] != (size, size, 3) or 0 in shape or str(kind) != "uint8":
        raise InputError(f"start frames: expected uint8 (N, P, {size}, {size}, 3), got {kind} {tuple(shape)}")

"""The world model as a Gymnasium env: an agent acts, the model generates the next frame.

Shapes: N start clips, P given frames, B clips at a time, A actions, H=W pixels.
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


class WorldModelVectorEnv(
    gymnasium.vector.VectorEnv[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_]]
):
    """`num_envs` environments in one model, each of which begins with a start clip drawn at the
    reset.

    Observations are uint8 (B, H, W, 3), the newest frame of each; rewards are 0, nothing
    terminates, and all are truncated together after `max_steps`, when `reset` has to be called.
    `start_frames` uint8 (N, P, H, W, 3) and `start_actions` int (N, P-1), by default all 0, come
    from recorded episodes. `steps` and `temperature` are those of `WorldModel.generate`; the seed
    of `reset` decides start clips and noise.
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
            raise InputError(
                f"start actions: expected shape {(clips, given - 1)}, got {start_actions.shape}"
            )
        if num_envs < 1 or max_steps < 1:
            raise InputError(f"num_envs {num_envs} and max_steps {max_steps} must be 1 or more")
        self.num_envs, self.max_steps = num_envs, max_steps
        self.metadata = {
            "autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED,
            "render_modes": ["rgb_array"],
        }
        self.render_mode = "rgb_array"
        self.single_observation_space = gymnasium.spaces.Box(
            0, 255, (model.cfg.size, model.cfg.size, 3), np.uint8
        )
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
        """Draw a start clip for each environment. `seed` is one for all of them."""
        if isinstance(seed, list):
            raise InputError("a world model env draws all start clips from one seed: give an int")
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
        """Generate one frame of each. Raises InputError before a reset, after the last step, and
        for unknown actions.
        """
        if self._rollout is None or self._done >= self.max_steps:
            raise InputError("call reset() first: no episode has begun, or all are at their end")
        frames = self._rollout.step(
            torch.as_tensor(actions, dtype=torch.int64, device=self._device)
        )
        self._screens = (frames * 255).round().byte().movedim(1, -1).cpu().numpy()
        self._done += 1
        terminated = np.zeros(self.num_envs, np.bool_)
        truncated = np.full(self.num_envs, self._done >= self.max_steps)
        return self._screens.copy(), np.zeros(self.num_envs), terminated, truncated, {}

    def render(self) -> tuple[Any, ...] | None:
        """Return the newest frame of each, uint8 (H, W, 3); None before the first reset."""
        return None if self._rollout is None else tuple(self._screens)


class WorldModelEnv(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """One environment: `WorldModelVectorEnv` with `num_envs` = 1 and the interface of the real
    games.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012  # Gymnasium declares it so

    def __init__(self, model: WorldModel, start_frames: NDArray[np.uint8], **options: Any) -> None:
        self._envs = WorldModelVectorEnv(model, start_frames, num_envs=1, **options)
        self.observation_space = self._envs.single_observation_space
        self.action_space = self._envs.single_action_space
        self.render_mode = "rgb_array"

    def reset(
        self, *, seed: int | None = None, options: Info | None = None
    ) -> tuple[NDArray[np.uint8], Info]:
        """Begin with a start clip, which the seed draws."""
        super().reset(seed=seed)
        frames, info = self._envs.reset(seed=int(self.np_random.integers(2**31)))
        return frames[0], {"start_clip": int(info["start_clip"][0])}

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, Info]:
        """Generate the next frame; the reward is 0, nothing terminates, the last step truncates."""
        frames, rewards, _, truncated, info = self._envs.step(np.array([action]))
        return frames[0], float(rewards[0]), False, bool(truncated[0]), info

    def render(self) -> Any:
        """Return the newest frame, uint8 (H, W, 3); None before the first reset."""
        screens = self._envs.render()
        return None if screens is None else screens[0]


class Rollout:
    """Generation one frame at a time, as `WorldModel.generate` with chunks of one frame computes
    it.

    frames (B, P, 3, H, W) in [0, 1] and the actions (B, P-1) between them. `steps`, `temperature`
    and `generator` are those of `generate`. Beyond cfg.frames the attention window slides. Raises
    InputError for bad input.
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
            actions_BA = torch.zeros(
                batch, given - 1, dtype=torch.int64, device=frames_BPCHW.device
            )
        model.check_actions(actions_BA, batch, given - 1)
        self._model = model
        self._sampling: dict[str, Any] = {
            "steps": steps,
            "temperature": temperature,
            "generator": generator,
        }
        with torch.no_grad():
            tokens = model.tokenizer.encode(frames_BPCHW)
            self._cache = model.prefill(tokens, model.encode_actions(actions_BA))
            _, self._decoder_cache = model.tokenizer.decode_after(tokens)
        self._batch = batch

    @torch.no_grad()
    def step(self, actions_B: Tensor) -> Tensor:
        """Generate the frames (B, 3, H, W) in [0, 1] that follow the actions, int64 (B,)."""
        model, window = self._model, self._model.cfg.frames
        model.check_actions(
            actions_B[:, None] if actions_B.ndim == 1 else actions_B, self._batch, 1
        )
        future_actions = model.encode_actions(actions_B[:, None], first=False)
        cache = self._cache.last_frames(window - 1)
        new_tokens = model.sample_frames(cache, future_actions, **self._sampling)
        self._cache = model.prefill(new_tokens, future_actions, self._cache)
        frames, self._decoder_cache = model.tokenizer.decode_after(new_tokens, self._decoder_cache)
        return frames[:, 0]


def check_start(frames_NPHWC: object, size: int) -> None:
    """Raise InputError unless these are start clips, uint8 (N, P, size, size, 3) with N, P >= 1."""
    shape, kind = (
        getattr(frames_NPHWC, "shape", ()),
        getattr(frames_NPHWC, "dtype", type(frames_NPHWC)),
    )
    if len(shape) != 5 or shape[2:] != (size, size, 3) or 0 in shape or str(kind) != "uint8":
        raise InputError(
            f"start frames: expected uint8 (N, P, {size}, {size}, 3), got {kind} {tuple(shape)}"
        )

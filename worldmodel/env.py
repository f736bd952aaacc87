"""Gymnasium envs of a world model: an agent acts, the model generates the next frame.

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
    """`num_envs` envs in one model, each of which starts with a random start clip.

    Observations are uint8 (B, H, W, 3), the newest frame of each. Rewards are 0 and nothing
    terminates; all envs are truncated together after `max_steps`. `start_frames` uint8
    (N, P, H, W, 3) and `start_actions` int (N, P-1), by default all 0, come from recorded episodes.
    `steps` and `temperature` are those of `WorldModel.generate`.
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
        size, shape = model.cfg.size, start_frames.shape
        fits = len(shape) == 5 and shape[2:] == (size, size, 3) and 0 not in shape
        if not fits or start_frames.dtype != np.uint8:
            raise InputError(
                f"start frames: expected uint8 (N, P, {size}, {size}, 3), "
                f"got {start_frames.dtype} {shape}"
            )
        clips, given = shape[:2]
        if start_actions is None:
            start_actions = np.zeros((clips, given - 1), np.int64)
        if start_actions.shape != (clips, given - 1):
            raise InputError(
                f"start actions: expected shape {(clips, given - 1)}, got {start_actions.shape}"
            )
        if num_envs < 1 or max_steps < 1:
            raise InputError(f"num_envs {num_envs} and max_steps {max_steps} must be 1 or more")
        self.num_envs, self.max_steps = num_envs, max_steps
        self.render_mode = "rgb_array"
        self.metadata = {
            "autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED,
            "render_modes": [self.render_mode],
        }
        self.single_observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.single_action_space = gymnasium.spaces.Discrete(model.actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._model, self._device = model, model.device
        self._sampling: dict[str, Any] = {"steps": steps, "temperature": temperature}
        self._start_frames, self._start_actions = start_frames, start_actions.astype(np.int64)
        self._rollout: Rollout | None = None

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: Info | None = None
    ) -> tuple[NDArray[np.uint8], Info]:
        """Draw a start clip for each env. `seed` determines all clips and the sampling noise."""
        if isinstance(seed, list):
            raise InputError("a world model env draws all start clips from one seed: give an int")
        super().reset(seed=seed)
        chosen = self.np_random.integers(len(self._start_frames), size=self.num_envs)
        noise = torch.Generator(self._device).manual_seed(int(self.np_random.integers(2**62)))
        self._rollout = Rollout(
            self._model,
            to_float_frames(torch.from_numpy(self._start_frames[chosen]).to(self._device)),
            torch.from_numpy(self._start_actions[chosen]).to(self._device),
            generator=noise,
            **self._sampling,
        )
        self._elapsed_steps, self._screens = 0, self._start_frames[chosen, -1]
        return self._screens.copy(), {"start_clip": chosen}

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], Info]:
        """Generate the next frame of each env."""
        if self._rollout is None or self._elapsed_steps >= self.max_steps:
            raise InputError("call reset() first: no episode has begun, or all are at their end")
        actions_B = torch.as_tensor(actions, dtype=torch.int64, device=self._device)
        frames = self._rollout.step(actions_B)
        self._screens = (frames * 255).round().byte().movedim(1, -1).cpu().numpy()
        self._elapsed_steps += 1
        terminated = np.zeros(self.num_envs, np.bool_)
        truncated = np.full(self.num_envs, self._elapsed_steps >= self.max_steps)
        return self._screens.copy(), np.zeros(self.num_envs), terminated, truncated, {}

    def render(self) -> tuple[Any, ...] | None:
        """Return the newest frame of each env, uint8 (H, W, 3); None before the first reset."""
        return None if self._rollout is None else tuple(self._screens)


class WorldModelEnv(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """One env with the interface of the real games: `WorldModelVectorEnv` with `num_envs` = 1."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012  # Gymnasium declares it so

    def __init__(self, model: WorldModel, start_frames: NDArray[np.uint8], **options: Any) -> None:
        self._envs = WorldModelVectorEnv(model, start_frames, num_envs=1, **options)
        self.observation_space = self._envs.single_observation_space
        self.action_space = self._envs.single_action_space
        self.render_mode = "rgb_array"

    def reset(
        self, *, seed: int | None = None, options: Info | None = None
    ) -> tuple[NDArray[np.uint8], Info]:
        """Draw a start clip and return its newest frame."""
        super().reset(seed=seed)
        frames, info = self._envs.reset(seed=int(self.np_random.integers(2**31)))
        return frames[0], {"start_clip": int(info["start_clip"][0])}

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, Info]:
        """Generate the next frame; the reward is 0, and only the last step ends the episode."""
        frames, rewards, _, truncated, info = self._envs.step(np.array([action]))
        return frames[0], float(rewards[0]), False, bool(truncated[0]), info

    def render(self) -> Any:
        """Return the newest frame, uint8 (H, W, 3); None before the first reset."""
        screens = self._envs.render()
        return None if screens is None else screens[0]


class Rollout:
    """Generation frame by frame: `WorldModel.generate` with chunks of one frame.

    frames (B, P, 3, H, W) in [0, 1] and the actions (B, P-1) between them. `steps`, `temperature`
    and `generator` are those of `generate`. Beyond cfg.frames the attention window slides.
    """

    def __init__(
        self,
        model: WorldModel,
        frames_BPCHW: Tensor,
        actions_BA: Tensor,
        *,
        steps: int = 1,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        self._batch, given = frames_BPCHW.shape[:2]
        model.check_actions(actions_BA, self._batch, given - 1)
        self._model = model
        self._sampling: dict[str, Any] = {
            "steps": steps,
            "temperature": temperature,
            "generator": generator,
        }
        with torch.no_grad(), model.autocast():
            model.cfg.check_frames(frames_BPCHW)
            tokens = model.passes.bind(model.tokenizer.encode_checked)(frames_BPCHW)
            self._cache = model.prefill(tokens, model.encode_actions(actions_BA))
            self._decode = model.passes.bind(model.tokenizer.decode_after)
            _, self._decoder_cache = self._decode(tokens)

    @torch.no_grad()
    def step(self, actions_B: Tensor) -> Tensor:
        """Generate the frames (B, 3, H, W) in [0, 1] that follow the actions, int64 (B,)."""
        model = self._model
        model.check_actions(actions_B[:, None], self._batch, 1)
        future_actions = model.encode_actions(actions_B[:, None], first=False)
        cache = self._cache.last_frames(model.cfg.frames - 1)
        with model.autocast():
            new_tokens = model.sample_frames(cache, future_actions, **self._sampling)
            self._cache = model.prefill(new_tokens, future_actions, self._cache)
            frames, self._decoder_cache = self._decode(new_tokens, self._decoder_cache)
        newest: Tensor = frames[:, 0]
        return newest

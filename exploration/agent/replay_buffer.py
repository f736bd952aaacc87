"""Replay buffer of the agent's observations, actions and rewards, from which segments are sampled
uniformly.

A reward is written once, when its step was collected; the buffer never changes what it holds.
Pixels are compressed without loss, so that the pixels in a batch are those of the env.

Shapes: T steps of a stretch or segment, B segments, D units of the LSTM.
"""

from collections import deque
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from envs.utils.errors import InputError
from exploration.agent.compressed_frames import Block, BlockCache, CompressedFrames

SCORED = "scored"
"""Extra column of an episode: whether a step has a reward."""
GAME = "game"
"""Key of an episode's custom data."""


@dataclass(frozen=True)
class Fragment:
    """Consecutive steps of one episode. Step i is what stands between frame i and frame i + 1."""

    episode_id: str
    game: str
    first_step: int
    """Place of step 0 within its episode."""
    terminated: bool
    """True if the game ended with the last step; otherwise the value of the last frame is
    bootstrapped."""
    film: CompressedFrames
    """T + 1 frames."""
    actions_T: NDArray[np.int64]
    rewards_T: NDArray[np.float32]
    log_probabilities_T: NDArray[np.float32]
    """Log-probability of each action under the policy that chose it."""
    scored_T: NDArray[np.bool_]
    """False where the step has no reward: the loss leaves it out."""
    h_TD: NDArray[np.float16]
    """LSTM state before each step, as it was then (half precision: an error of 1e-3 at most)."""
    c_TD: NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.actions_T)

    @property
    def frames_THWC(self) -> NDArray[np.uint8]:
        """All frames, decompressed."""
        return self.film.read(0, len(self.film))

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return self.film.bytes + sum(getattr(self, name).nbytes for name in COLUMNS)

    def followed_by(self, later: "Fragment") -> bool:
        """Return True if `later` goes on where this one stops."""
        same = self.episode_id == later.episode_id and not self.terminated
        return same and self.first_step + len(self) == later.first_step

    def joined(self, later: "Fragment") -> "Fragment":
        """Join both fragments; their common frame is kept once."""
        parts: dict[str, Any] = {
            name: np.concatenate([getattr(self, name), getattr(later, name)]) for name in COLUMNS
        }
        film = self.film.without_last().joined(later.film)
        return replace(self, terminated=later.terminated, film=film, **parts)


COLUMNS = tuple(field.name for field in fields(Fragment) if field.name.endswith(("_T", "_TD")))
Scale = dict[str, tuple[float, float]]
"""Offset and divisor of the rewards of each game."""
Batch = dict[str, NDArray[Any]]


class ReplayBuffer:
    """Keeps the newest `capacity` steps, in stretches of consecutive ones; evicts the oldest
    stretch first."""

    def __init__(self, capacity: int, seed: int = 0) -> None:
        if capacity < 1:
            raise InputError(f"replay capacity {capacity}: must hold 1 step or more")
        self.capacity = capacity
        self._stretches: deque[Fragment] = deque()
        self._cache = BlockCache()
        self._generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        """Count the steps that are kept."""
        return sum(map(len, self._stretches))

    @property
    def bytes(self) -> int:
        """Size of all steps in memory, without the few blocks that are decompressed."""
        return sum(stretch.bytes for stretch in self._stretches)

    def add(self, fragment: Fragment) -> None:
        """Keep a fragment; it prolongs a stretch if it follows one.

        A dropped fragment in between leaves a gap.
        """
        if not len(fragment):
            return
        for place in range(len(self._stretches) - 1, -1, -1):
            if self._stretches[place].followed_by(fragment):
                self._stretches[place] = self._stretches[place].joined(fragment)
                break
        else:
            self._stretches.append(fragment)
        steps = len(self)
        while steps > self.capacity and len(self._stretches) > 1:
            steps -= len(self._stretches.popleft())

    def reward_scale(self) -> Scale:
        """Compute mean and standard deviation, at least 1e-3, of each game's rewards."""
        by_game: dict[str, list[NDArray[np.float32]]] = {}
        for stretch in self._stretches:
            by_game.setdefault(stretch.game, []).append(stretch.rewards_T[stretch.scored_T])
        together = {game: np.concatenate(parts) for game, parts in by_game.items()}
        return {
            game: (float(rewards.mean()), max(float(rewards.std()), 1e-3))
            for game, rewards in together.items()
            if len(rewards)
        }

    def sample(
        self, batch_size: int, length: int, burn_in: int = 0, scale: Scale | None = None
    ) -> Batch:
        """Segments of `length` steps whose first step is drawn uniformly from all steps that are
        kept.

        obs uint8 (B, T + 1, H, W, 3); actions int64, rewards and logp float32, terminated, valid
        and learn bool, all (B, T); h and c float32 (B, D), the state before the first step. Where a
        stretch ends before the segment does, `valid` is false and everything is zero. `learn` marks
        the steps of the loss: valid, scored, and past the first `burn_in` ones, which only warm the
        LSTM up, unless the segment starts its episode and needs no warming. With `scale` the
        rewards of scored steps are scaled by their game's. Raises InputError while the buffer is
        empty.
        """
        if not self._stretches:
            raise InputError("the replay is empty: collect steps before drawing from it")
        ends = np.cumsum([len(stretch) for stretch in self._stretches])
        draws = self._generator.integers(ends[-1], size=batch_size)
        places = np.searchsorted(ends, draws, side="right")
        first = self._stretches[0]
        batch: Batch = {
            "obs": np.zeros((batch_size, length + 1, *first.film.shape), np.uint8),
            "actions": np.zeros((batch_size, length), np.int64),
            "rewards": np.zeros((batch_size, length), np.float32),
            "logp": np.zeros((batch_size, length), np.float32),
            "terminated": np.zeros((batch_size, length), np.bool_),
            "valid": np.zeros((batch_size, length), np.bool_),
            "learn": np.zeros((batch_size, length), np.bool_),
            "h": np.zeros((batch_size, first.h_TD.shape[1]), np.float32),
            "c": np.zeros((batch_size, first.c_TD.shape[1]), np.float32),
        }
        for row, (place, draw) in enumerate(zip(places, draws, strict=True)):
            stretch = self._stretches[place]
            start = int(draw - ends[place]) + len(stretch)
            steps = _fill(batch, row, stretch, start, length, burn_in)
            stop = start + steps + 1
            batch["obs"][row, : steps + 1] = stretch.film.read(start, stop, self._cache)
            if scale and stretch.game in scale:
                middle, width = scale[stretch.game]
                scored = stretch.scored_T[start : stop - 1]
                batch["rewards"][row, :steps] = np.where(
                    scored, (batch["rewards"][row, :steps] - middle) / width, 0
                )
        return batch

    def get_state(self) -> dict[str, Any]:
        """Return all state: concatenated arrays of all stretches, and plain JSON values."""
        stretches = list(self._stretches)
        arrays: dict[str, NDArray[Any]] = {}
        if stretches:
            arrays = {
                name: np.concatenate([getattr(item, name) for item in stretches])
                for name in COLUMNS
            }
            data = b"".join(block.data for item in stretches for block in item.film.blocks)
            arrays["blocks"] = np.frombuffer(data, np.uint8)
        return {
            "arrays": arrays,
            "stretches": [
                {
                    "episode_id": s.episode_id,
                    "game": s.game,
                    "first_step": s.first_step,
                    "terminated": s.terminated,
                }
                | {"steps": len(s), "shape": list(s.film.shape)}
                | {"blocks": [[block.frames, len(block.data)] for block in s.film.blocks]}
                for s in stretches
            ],
            "generator": self._generator.bit_generator.state,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Replace everything by the state of a `get_state`."""
        self._stretches.clear()
        step = at = 0
        for about in state["stretches"]:
            stop, blocks = step + about["steps"], []
            for frames, size in about["blocks"]:
                blocks.append(Block(state["arrays"]["blocks"][at : at + size].tobytes(), frames))
                at += size
            own = {name: about[name] for name in ("episode_id", "game", "first_step", "terminated")}
            # Copies, so that a stretch that is evicted frees its memory.
            own |= {name: np.array(state["arrays"][name][step:stop]) for name in COLUMNS}
            self._stretches.append(
                Fragment(film=CompressedFrames(tuple(blocks), tuple(about["shape"])), **own)
            )
            step = stop
        self._generator.bit_generator.state = state["generator"]


def _fill(batch: Batch, row: int, stretch: Fragment, start: int, length: int, burn_in: int) -> int:
    """Write the segment of `stretch` that begins at its step `start`, less its frames, into one row
    of a batch of zeros -> its steps."""
    steps = min(length, len(stretch) - start)
    span = slice(start, start + steps)
    batch["actions"][row, :steps] = stretch.actions_T[span]
    batch["rewards"][row, :steps] = stretch.rewards_T[span]
    batch["logp"][row, :steps] = stretch.log_probabilities_T[span]
    batch["valid"][row, :steps] = True
    batch["learn"][row, :steps] = stretch.scored_T[span]
    if start + stretch.first_step > 0:
        batch["learn"][row, :burn_in] = False
    if stretch.terminated and start + steps == len(stretch):
        batch["terminated"][row, steps - 1] = True
    batch["h"][row] = stretch.h_TD[start]
    batch["c"][row] = stretch.c_TD[start]
    return steps


def to_fragment(episode: SingleAgentEpisode) -> Fragment:
    """Convert a scored fragment (numpy) for the replay buffer.

    Raises ValueError for one without lookback.
    """
    steps, past = len(episode), episode.rewards.lookback
    if episode.t_started > 0 and past == 0:
        raise ValueError(
            "a fragment in mid-episode needs the step before it for the LSTM state: "
            "lookback of 1 or more"
        )
    outputs: dict[str, Any] = {
        name: buffer.data for name, buffer in episode.extra_model_outputs.items()
    }
    scored_T = outputs[SCORED][past:] if SCORED in outputs else np.ones(steps, np.bool_)
    return Fragment(
        episode_id=episode.id_,
        game=episode.custom_data.get(GAME, ""),
        first_step=episode.t_started,
        terminated=bool(episode.is_terminated),
        film=CompressedFrames.of(np.asarray(episode.observations.data)[past:]),
        actions_T=np.asarray(episode.actions.data[past:], np.int64),
        rewards_T=np.asarray(episode.rewards.data[past:], np.float32),
        log_probabilities_T=np.asarray(outputs[Columns.ACTION_LOGP][past:], np.float32),
        scored_T=np.asarray(scored_T, np.bool_),
        h_TD=_state_before(outputs[Columns.STATE_OUT]["h"], past),
        c_TD=_state_before(outputs[Columns.STATE_OUT]["c"], past),
    )


def _state_before(state_after_LD: NDArray[np.floating], past: int) -> NDArray[np.float16]:
    """Shift LSTM states after each step to those before it; an episode starts from zeros."""
    first = state_after_LD[past - 1 : past] if past else np.zeros_like(state_after_LD[:1])
    return np.concatenate([first, state_after_LD[past:-1]]).astype(np.float16)

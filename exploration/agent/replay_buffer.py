"""Replay buffer of observations, actions and rewards, from which segments are sampled.

Segments are drawn uniformly, or in proportion to their errors, see `Priority`. A reward is written
once, when its step is collected; the buffer never changes it. Frames are compressed without loss.

Shapes: T steps of a fragment or segment, B segments, D units of the LSTM.
"""

from collections import OrderedDict
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from envs.utils.errors import InputError
from exploration.agent.compressed_frames import CompressedFrames
from exploration.agent.packed_batch import Batch, PackedBatch
from exploration.agent.priorities import UNIFORM, Priority, SegmentOdds

SCORED = "scored"
"""Extra column of an episode: True for steps that have a reward."""
GAME = "game"
"""Key of an episode's custom data."""
Scale = dict[str, tuple[float, float]]
"""Offset and divisor of the rewards of each game."""


@dataclass(frozen=True)
class Fragment:
    """Consecutive steps of one episode. Step i lies between frame i and frame i + 1."""

    episode_id: str
    game: str
    first_step: int
    """Index of step 0 in its episode."""
    terminated: bool
    """True if the game ended with the last step; otherwise the value of the last frame is
    bootstrapped."""
    frames: CompressedFrames
    """T + 1 frames."""
    actions_T: NDArray[np.int64]
    rewards_T: NDArray[np.float32]
    log_probabilities_T: NDArray[np.float32]
    """Log-probability of each action under the policy that chose it."""
    scored_T: NDArray[np.bool_]
    """False for a step without a reward, which the loss leaves out."""
    h_TD: NDArray[np.float16]
    """LSTM state before each step, when it was played (in half precision: errors up to 1e-3)."""
    c_TD: NDArray[np.float16]
    errors_T: NDArray[np.float32]
    """Error of the value of each step in the last update that drew it, for priorities."""

    def __len__(self) -> int:
        return len(self.actions_T)

    @property
    def frames_THWC(self) -> NDArray[np.uint8]:
        """All frames, decompressed."""
        return self.frames.read(0, len(self.frames))

    @property
    def end(self) -> tuple[str, int]:
        """Episode and index of the step that follows this fragment."""
        return self.episode_id, self.first_step + len(self)

    def copied(self) -> "Fragment":
        """Copy the arrays, which otherwise keep what a runner sent in Ray's object store."""
        columns: dict[str, Any] = {name: np.array(getattr(self, name)) for name in COLUMNS}
        return replace(self, **columns)

    def joined(self, later: "Fragment") -> "Fragment":
        """Join both fragments; the frame they share is kept once."""
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(self, name), getattr(later, name)]) for name in COLUMNS
        }
        frames = self.frames.extended(later.frames)
        return replace(self, terminated=later.terminated, frames=frames, **columns)


COLUMNS = tuple(field.name for field in fields(Fragment) if field.name.endswith(("_T", "_TD")))
"""Fields that are arrays with one entry a step."""
PLAIN = ("episode_id", "game", "first_step", "terminated")
"""Fields that are plain values."""


@dataclass(frozen=True)
class _JoinedSteps:
    """Steps of all fragments in one row, from which a batch takes its columns with one index."""

    fragments: list[Fragment]
    ends_F: NDArray[np.int64]
    """Index that follows the last step of each fragment."""
    columns: Batch
    """Columns of a batch with one entry a step."""

    @classmethod
    def of(cls, fragments: list[Fragment]) -> "_JoinedSteps":
        """Join fragments. The LSTM states, of which a batch takes few, stay where they are."""
        ends_F = np.cumsum([len(fragment) for fragment in fragments])
        terminated_N = np.zeros(ends_F[-1], np.bool_)
        terminated_N[ends_F - 1] = [fragment.terminated for fragment in fragments]
        columns = {
            "actions": np.concatenate([fragment.actions_T for fragment in fragments]),
            "rewards": np.concatenate([fragment.rewards_T for fragment in fragments]),
            "logp": np.concatenate([fragment.log_probabilities_T for fragment in fragments]),
            "terminated": terminated_N,
            "learn": np.concatenate([fragment.scored_T for fragment in fragments]),
        }
        return cls(fragments, ends_F, columns)

    def segments(
        self, steps_B: NDArray[np.int64], length: int, burn_in: int, scale: Scale | None
    ) -> PackedBatch:
        """Return the segments that begin with these steps, see `ReplayBuffer.sample`."""
        numbers_B = np.searchsorted(self.ends_F, steps_B, side="right")
        drawn = [self.fragments[number] for number in numbers_B]
        left_B = self.ends_F[numbers_B] - steps_B
        starts = [len(each) - left for each, left in zip(drawn, left_B.tolist(), strict=True)]
        stops = [min(start + length, len(each)) for each, start in zip(drawn, starts, strict=True)]

        # A segment ends with its fragment: what follows is zero.
        valid_BT = np.arange(length) < left_B[:, None]
        index_BT = steps_B[:, None] + np.arange(length)
        columns = {name: rows.take(index_BT, mode="clip") for name, rows in self.columns.items()}
        for rows_BT in columns.values():
            rows_BT[~valid_BT] = 0

        if scale:
            scales_B2 = np.array([scale.get(each.game, (0, 1)) for each in drawn], np.float32)
            scaled_BT = (columns["rewards"] - scales_B2[:, :1]) / scales_B2[:, 1:]
            columns["rewards"] = np.where(columns["learn"], scaled_BT, np.float32(0))
        first_B = np.array([each.first_step for each in drawn]) + starts
        columns["learn"][first_B > 0, :burn_in] = False

        spans = list(zip(drawn, starts, stops, strict=True))
        h_BD = np.concatenate([each.h_TD[start : start + 1] for each, start, _ in spans])
        c_BD = np.concatenate([each.c_TD[start : start + 1] for each, start, _ in spans])
        clips = [each.frames.clip(start, stop + 1) for each, start, stop in spans]
        columns |= {"valid": valid_BT, "h": h_BD, "c": c_BD}
        return PackedBatch(columns, clips, drawn[0].frames.shape)


class ReplayBuffer:
    """Buffer of the newest `capacity` steps.

    Fragments of an episode that follow each other are joined, so that segments cross their borders.
    Full, it evicts those whose newest step is oldest: an episode that is still growing stays.
    """

    def __init__(self, capacity: int, seed: int = 0, priority: Priority = UNIFORM) -> None:
        if capacity < 1:
            raise InputError(f"replay capacity {capacity}: must be 1 step or more")
        self.capacity, self.priority = capacity, priority
        # By `end`, so that the one that a new fragment follows is found at once.
        self._fragments: OrderedDict[tuple[str, int], Fragment] = OrderedDict()
        self._steps = 0
        self._joined: _JoinedSteps | None = None
        """The fragments' steps, kept until one is added."""
        self._odds: SegmentOdds | None = None
        """Probabilities of the segments, kept until an error changes."""
        self._generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        """Return the number of steps in the buffer."""
        return self._steps

    @property
    def fragments(self) -> list[Fragment]:
        """Fragments, that with the oldest newest step first."""
        return list(self._fragments.values())

    def add(self, fragment: Fragment) -> None:
        """Append a fragment to the one it follows, if the buffer has it, or add it as a new one."""
        if not len(fragment):
            return
        self._steps += len(fragment)
        if self.priority.exponent:  # a new step is drawn like that of the largest error
            largest = max((float(each.errors_T.max()) for each in self.fragments), default=0.0)
            errors_T = np.where(fragment.scored_T, np.float32(largest or 1.0), np.float32(0))
            fragment = replace(fragment, errors_T=errors_T)
        self._joined = self._odds = None
        before = self._fragments.get((fragment.episode_id, fragment.first_step))
        if before is not None and not before.terminated:
            del self._fragments[before.end]
            fragment = before.joined(fragment)
        else:
            fragment = fragment.copied()
        self._fragments[fragment.end] = fragment
        while self._steps > self.capacity and len(self._fragments) > 1:
            _, oldest = self._fragments.popitem(last=False)
            self._steps -= len(oldest)

    def reward_scale(self) -> Scale:
        """Compute mean and standard deviation, at least 1e-3, of each game's rewards."""
        steps = self._joined_steps()
        games, game_F = np.unique([each.game for each in steps.fragments], return_inverse=True)
        game_N = np.repeat(game_F, [len(each) for each in steps.fragments])
        rewards_N, scored_N = steps.columns["rewards"], steps.columns["learn"]
        rewards = {str(game): rewards_N[scored_N & (game_N == i)] for i, game in enumerate(games)}
        return {
            game: (float(values.mean()), max(float(values.std()), 1e-3))
            for game, values in rewards.items()
            if len(values)
        }

    def sample(
        self, batch_size: int, length: int, burn_in: int = 0, scale: Scale | None = None
    ) -> Batch:
        """Sample segments of `length` steps: the first is uniform over all steps, or by priority.

        Returns obs uint8 (B, T + 1, H, W, 3); actions int64, rewards and logp float32, terminated,
        valid and learn bool, each (B, T); h and c float32 (B, D), the LSTM state before the first
        step; by priority also weight float32 and first int64 (B,), importance and first step. Steps
        after the end of a fragment are zero and not `valid`. The loss learns from the steps marked
        `learn`: valid, scored, and not among the first `burn_in` steps, which only warm up the LSTM
        unless the segment begins with its episode. `scale` normalises the rewards of scored steps
        game by game.

        Raises InputError if the buffer is empty.
        """
        return self.sample_packed(batch_size, length, burn_in, scale).unpack()

    def sample_packed(
        self, batch_size: int, length: int, burn_in: int = 0, scale: Scale | None = None
    ) -> PackedBatch:
        """Sample the same segments as `sample`, and leave their frames compressed."""
        steps = self._joined_steps()
        if not self.priority.exponent:
            steps_B = self._generator.integers(len(self), size=batch_size)
            return steps.segments(steps_B, length, burn_in, scale)
        if self._odds is None:
            errors = [fragment.errors_T for fragment in steps.fragments]
            self._odds = SegmentOdds.of(errors, length, self.priority.exponent)
        steps_B = self._odds.draw(batch_size, self._generator)
        packed = steps.segments(steps_B, length, burn_in, scale)
        weights_B = self._odds.importance(steps_B, self.priority.correction)
        packed.columns.update(weight=weights_B, first=steps_B)
        return packed

    def set_errors(self, batch: PackedBatch, errors_BT: NDArray[np.float32]) -> None:
        """Store the errors of a batch that was drawn by priority, and nothing added since."""
        steps, self._odds = self._joined_steps(), None
        learn_BT, first_B = batch.columns["learn"], batch.columns["first"]
        numbers_B = np.searchsorted(steps.ends_F, first_B, side="right")
        for row, number in enumerate(numbers_B):
            fragment = steps.fragments[number]
            start = len(fragment) - (steps.ends_F[number] - first_B[row])
            learnt = np.flatnonzero(learn_BT[row])
            fragment.errors_T[start + learnt] = errors_BT[row, learnt]

    def _joined_steps(self) -> _JoinedSteps:
        if not self._fragments:
            raise InputError("the replay buffer is empty: collect steps before sampling")
        if self._joined is None:
            self._joined = _JoinedSteps.of(self.fragments)
        return self._joined

    def get_state(self) -> dict[str, Any]:
        """Return the whole state: the concatenated arrays of all fragments, and plain values."""
        arrays: dict[str, NDArray[Any]] = {}
        fragments = self.fragments
        if fragments:
            arrays = {
                name: np.concatenate([getattr(fragment, name) for fragment in fragments])
                for name in COLUMNS
            }
            blocks = b"".join(block for each in fragments for block in each.frames.blocks)
            arrays["blocks"] = np.frombuffer(blocks, np.uint8)
        stretches = [
            {name: getattr(fragment, name) for name in PLAIN}
            | {"steps": len(fragment), "shape": list(fragment.frames.shape)}
            | {"blocks": fragment.frames.block_sizes()}
            for fragment in fragments
        ]
        generator = self._generator.bit_generator.state
        return {"arrays": arrays, "stretches": stretches, "generator": generator}

    def set_state(self, state: dict[str, Any]) -> None:
        """Replace the contents by a state of `get_state`."""
        self._fragments.clear()
        arrays = state["arrays"]
        step = at = 0
        for record in state["stretches"]:
            stop, blocks = step + record["steps"], []
            for _, size in record["blocks"]:
                blocks.append(arrays["blocks"][at : at + size].tobytes())
                at += size
            # Copies, so that an evicted fragment frees its memory.
            columns: dict[str, Any] = {name: np.array(arrays[name][step:stop]) for name in COLUMNS}
            plain = {name: record[name] for name in PLAIN}
            counts = tuple(frames for frames, _ in record["blocks"])
            compressed = CompressedFrames(tuple(blocks), counts, tuple(record["shape"]))
            fragment = Fragment(frames=compressed, **plain, **columns)
            self._fragments[fragment.end] = fragment
            step = stop
        self._steps, self._joined, self._odds = step, None, None
        self._generator.bit_generator.state = state["generator"]


def to_fragment(episode: SingleAgentEpisode, *, episodic: bool = True) -> Fragment:
    """Convert a scored fragment of RLlib (in numpy) for the replay buffer.

    Without `episodic` returns the end of the game does not terminate it: the value of its last
    frame is bootstrapped, as at any other end.

    Raises ValueError for a fragment without lookback in the middle of an episode.
    """
    steps, lookback = len(episode), episode.rewards.lookback
    if episode.t_started > 0 and lookback == 0:
        raise ValueError(
            "the LSTM state needs the step before a fragment: set a lookback of 1 or more"
        )
    outputs: dict[str, Any] = {
        name: buffer.data for name, buffer in episode.extra_model_outputs.items()
    }
    scored_T = outputs[SCORED][lookback:] if SCORED in outputs else np.ones(steps)
    return Fragment(
        episode_id=episode.id_,
        game=episode.custom_data.get(GAME, ""),
        first_step=episode.t_started,
        terminated=episodic and bool(episode.is_terminated),
        frames=CompressedFrames.of(np.asarray(episode.observations.data)[lookback:]),
        actions_T=np.asarray(episode.actions.data[lookback:], np.int64),
        rewards_T=np.asarray(episode.rewards.data[lookback:], np.float32),
        log_probabilities_T=np.asarray(outputs[Columns.ACTION_LOGP][lookback:], np.float32),
        scored_T=np.asarray(scored_T, np.bool_),
        h_TD=_state_before(outputs[Columns.STATE_OUT]["h"], lookback),
        c_TD=_state_before(outputs[Columns.STATE_OUT]["c"], lookback),
        errors_T=np.zeros(steps, np.float32),
    )


def _state_before(state_after_LD: NDArray[np.floating], lookback: int) -> NDArray[np.float16]:
    """Shift the LSTM states after each step to those before it; an episode starts from zeros."""
    if lookback:
        return state_after_LD[lookback - 1 : -1].astype(np.float16)
    return np.concatenate([np.zeros_like(state_after_LD[:1]), state_after_LD[:-1]]).astype(
        np.float16
    )

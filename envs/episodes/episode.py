"""A recorded episode, decoded or compressed."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs import action_names
from envs.controls import ACTIONS, numbered_actions
from envs.episodes.frame_codec import CHUNK, ZSTD_LEVEL, decode_frames, encode_frames
from envs.utils.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeMetadata:
    """Everything but the frames of an episode of T steps, validated on creation.

    Raises: InputError for values out of range.
    """

    session_id: str
    """Identity of the episode: equal game, policy, seed and episode number give an equal id."""
    game: str
    actions: NDArray[np.uint8]
    """(T,): actions[t] led from frame t to frame t + 1."""
    rewards: NDArray[np.float32]
    """(T,): rewards[t] came with frame t + 1."""
    policy_id: str
    seed: int
    terminated: bool
    """True if the game itself ended."""
    truncated: bool
    """True if the episode was cut off after its maximum number of steps."""
    console: str = ""
    rom_sha1: str = ""
    retro_version: str = ""
    init_state: str = ""
    """Name of the savestate at the start; it, `buttons` and `frame_skip` reproduce the episode."""
    frame_skip: int = 4
    buttons: tuple[int, ...] = ()
    """Button mask of each action (bit i: button i of the emulator core); empty without buttons."""
    resize: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    """Further metadata, JSON values only."""

    def __post_init__(self) -> None:
        steps, actions, rewards = len(self.actions), self.actions, self.rewards
        if steps == 0:
            raise InputError(f"{self._name} has no steps: an episode needs at least one")
        if actions.dtype != np.uint8 or actions.ndim != 1:
            raise InputError(
                f"{self._name}: actions must be a uint8 vector, not {actions.dtype} {actions.shape}"
            )
        if rewards.dtype != np.float32 or rewards.shape != (steps,):
            raise InputError(
                f"{self._name}: rewards must be float32 ({steps},), not {rewards.dtype} "
                f"{rewards.shape}"
            )
        count, highest = len(self.buttons) or len(ACTIONS), int(actions.max())
        if highest >= count:
            raise InputError(f"{self._name}: action {highest} is out of range 0 to {count - 1}")

    @property
    def _name(self) -> str:
        return f"episode {self.session_id} of {self.game}"

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the actions; "action 0" and so on where they are not known."""
        names = tuple(self.info.get("actions", ())) or action_names([self.game])
        count = len(self.buttons) or len(ACTIONS)
        return names if len(names) == count else numbered_actions(count)

    @property
    def num_frames(self) -> int:
        """Number of frames, T + 1."""
        return len(self.actions) + 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Episode(EpisodeMetadata):
    """An episode with decoded frames."""

    frames_THWC: NDArray[np.uint8]
    """(T + 1, H, W, 3): one frame more than actions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        frames = self.frames_THWC
        fits = frames.ndim == 4 and frames.shape[3] == 3 and len(frames) == self.num_frames
        if frames.dtype != np.uint8 or not fits:
            raise InputError(
                f"{self._name}: frames must be uint8 ({self.num_frames}, H, W, 3), "
                f"not {frames.dtype} {frames.shape}"
            )

    def encode(self, level: int = ZSTD_LEVEL) -> "EncodedEpisode":
        """Return the episode with its frames compressed at a zstd level."""
        _, height, width, _ = self.frames_THWC.shape
        chunks = encode_frames(self.frames_THWC, level)
        return EncodedEpisode(**_metadata(self), chunks=chunks, height=height, width=width)


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedEpisode(EpisodeMetadata):
    """An episode with compressed frames, as stored on disk."""

    chunks: tuple[bytes, ...]
    """Blobs of `chunk` consecutive frames each; the last one may hold fewer."""
    height: int
    width: int
    chunk: int = CHUNK

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk < 1 or len(self.chunks) != -(-self.num_frames // self.chunk):
            raise InputError(
                f"{self._name}: {self.num_frames} frames do not fill {len(self.chunks)} chunks of "
                f"{self.chunk}"
            )

    def decode(self) -> Episode:
        """Return the episode with decoded frames. Raises: InputError for a damaged chunk."""
        frames_THWC = decode_frames(
            self.chunks, 0, self.num_frames, height=self.height, width=self.width, chunk=self.chunk
        )
        return Episode(**_metadata(self), frames_THWC=frames_THWC)


def _metadata(episode: EpisodeMetadata) -> dict[str, Any]:
    """Return the fields that decoded and compressed episodes share."""
    return {item.name: getattr(episode, item.name) for item in dataclasses.fields(EpisodeMetadata)}

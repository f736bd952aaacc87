"""One played episode, decoded or compressed, and the frame codec between the two.

Frames are cut into blobs of 32 consecutive frames, each an independent zstd frame with a checksum: a window
of 16 frames needs one or two of them, and a flipped bit is always noticed.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.controls import ACTIONS
from envs.episodes.frame_codec import (
    CHUNK,
    ZSTD_LEVEL,
    decode_frames,
    encode_frames,
)
from envs.utils.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeMetadata:
    """What an episode of T steps holds beside its frames, checked where it enters.

    Raises InputError for values out of range.
    """

    session_id: str
    """Names the episode: the same game, policy, seed and episode number give the same name."""
    game: str
    actions: NDArray[np.uint8]
    """(T,): actions[t] turned frame t into frame t+1."""
    rewards: NDArray[np.float32]
    """(T,): rewards[t] came with frame t+1."""
    policy_id: str
    seed: int
    terminated: bool
    """The game itself ended."""
    truncated: bool
    """The episode was cut off after its maximal number of steps."""
    console: str = ""
    rom_sha1: str = ""
    retro_version: str = ""
    init_state: str = ""
    """Name of the savestate that the episode starts from; with `buttons` and `frame_skip` it replays the episode."""
    frame_skip: int = 4
    buttons: tuple[int, ...] = ()
    """Button mask of each action (bit i = button i of the emulator core); empty where a game has no buttons."""
    resize: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    """Further facts about the session, JSON values only."""

    def __post_init__(self) -> None:
        steps = len(self.actions)
        where = f"episode {self.session_id} of {self.game}"
        if steps == 0:
            raise InputError(f"{where} has no steps: an episode needs at least one")
        if self.actions.dtype != np.uint8 or self.actions.ndim != 1:
            raise InputError(
                f"{where}: actions must be a uint8 vector, not {self.actions.dtype} {self.actions.shape}"
            )
        if self.rewards.dtype != np.float32 or self.rewards.shape != (steps,):
            raise InputError(
                f"{where}: rewards must be float32 ({steps},), not {self.rewards.dtype} {self.rewards.shape}"
            )
        count = len(self.buttons) or len(ACTIONS)
        if int(self.actions.max()) >= count:
            raise InputError(
                f"{where}: action {int(self.actions.max())} is out of range 0 to {count - 1}"
            )

    @property
    def num_frames(self) -> int:
        """T + 1."""
        return len(self.actions) + 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Episode(EpisodeMetadata):
    """A recording with its frames decoded."""

    frames_THWC: NDArray[np.uint8]
    """(T + 1, H, W, 3): one frame more than there are actions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        frames = self.frames_THWC
        if (
            frames.dtype != np.uint8
            or frames.ndim != 4
            or frames.shape[3] != 3
            or len(frames) != self.num_frames
        ):
            raise InputError(
                f"episode {self.session_id} of {self.game}: frames must be uint8 ({self.num_frames}, H, W, 3), "
                f"not {frames.dtype} {frames.shape}"
            )

    def encode(self, level: int = ZSTD_LEVEL) -> "EncodedEpisode":
        """The same episode with its frames compressed at a zstd level."""
        _, height, width, _ = self.frames_THWC.shape
        chunks = encode_frames(self.frames_THWC, level)
        return EncodedEpisode(**_recording_fields(self), chunks=chunks, height=height, width=width)


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedEpisode(EpisodeMetadata):
    """A recording whose frames are still compressed, as they lie on disk."""

    chunks: tuple[bytes, ...]
    """Each holds `chunk` consecutive frames, the last one the rest."""
    height: int
    width: int
    chunk: int = CHUNK

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk < 1 or len(self.chunks) != -(-self.num_frames // self.chunk):
            raise InputError(
                f"episode {self.session_id} of {self.game}: {self.num_frames} frames do not fill "
                f"{len(self.chunks)} chunks of {self.chunk}"
            )

    def decode(self) -> Episode:
        """The same episode with its frames decoded. Raises InputError for a damaged chunk."""
        frames_THWC = decode_frames(
            self.chunks, 0, self.num_frames, height=self.height, width=self.width, chunk=self.chunk
        )
        return Episode(**_recording_fields(self), frames_THWC=frames_THWC)


def _recording_fields(recording: EpisodeMetadata) -> dict[str, Any]:
    """The fields that decoded and compressed episodes share."""
    return {
        item.name: getattr(recording, item.name) for item in dataclasses.fields(EpisodeMetadata)
    }

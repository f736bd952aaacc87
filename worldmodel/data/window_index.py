"""Numbering of windows: one at every `stride`-th frame of an episode, none across its end."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.utils.errors import InputError
from worldmodel.config import MASKED_ACTION
from worldmodel.data.dataset import Dataset
from worldmodel.data.sampler import LabelledSampler, Sampler


@dataclass(frozen=True)
class EpisodeInfo:
    """Description of an episode."""

    session_id: str
    game: str
    num_frames: int


@dataclass(frozen=True)
class EpisodeTable:
    """Sequence of E episodes, stored as columns because there may be very many."""

    frames_E: np.ndarray
    """Number of frames of each episode."""
    game_E: np.ndarray
    """Index into `games` of each episode."""
    games: list[str]
    session_ids: Any
    """Sequence of E values that `str` converts to session ids."""

    def __len__(self) -> int:
        return len(self.frames_E)

    def __getitem__(self, index: int) -> EpisodeInfo:
        game = self.games[int(self.game_E[index])]
        return EpisodeInfo(str(self.session_ids[index]), game, int(self.frames_E[index]))

    def __iter__(self) -> Iterator[EpisodeInfo]:
        return (self[index] for index in range(len(self)))


class WindowIndex(Dataset):
    """All windows of `length` frames of some episodes. Takes memory per episode, not per window."""

    provides = frozenset({"frames", "actions"})

    def __init__(self, episodes: EpisodeTable, *, length: int, stride: int) -> None:
        self.episodes, self.games = episodes, episodes.games
        self.length, self.stride = length, stride
        frames_E = episodes.frames_E.astype(np.int64)
        self.windows_E = np.maximum(0, (frames_E - length) // stride + 1)
        """Number of windows of each episode, int64 (E,)."""
        self.ends_E = self.windows_E.cumsum()
        """Number of the first window after each episode, int64 (E,)."""
        self._labelled_E = np.ones(len(episodes), bool)
        self._labelled = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return int(self.windows_E.sum())

    def locate_all(self, window_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (indices in `episodes`, first frames) of windows, int64 (B,) each."""
        episodes_B = np.searchsorted(self.ends_E, window_ids, side="right")
        return episodes_B, (window_ids - self.first_windows(episodes_B)) * self.stride

    def first_windows(self, episodes: np.ndarray) -> np.ndarray:
        """Return the number of the first window of each given episode, int64."""
        return self.ends_E[episodes] - self.windows_E[episodes]

    def locate(self, window_id: int) -> tuple[int, int]:
        """Return (index in `episodes`, first frame) of a window."""
        episodes, starts = self.locate_all(np.array([window_id]))
        return int(episodes[0]), int(starts[0])

    def window_game(self, window_id: int) -> str:
        """Return the game of a window."""
        return self.episodes[self.locate(window_id)[0]].game

    def describe(self, window_id: int) -> str:
        """Describe a window in words, for messages."""
        index, start = self.locate(window_id)
        episode = self.episodes[index]
        return f"window {window_id} (session {episode.session_id} of {episode.game}, frame {start})"

    def reveal_actions(self, share: float) -> None:
        """Reveal the recorded actions of a share of each game's episodes and mask all others.

        `share` is in [0, 1]; the number of episodes is rounded up. A hash of the session id chooses
        them, so that they do not depend on the order of the data. Samplers then draw half of their
        windows from these episodes.
        """
        ranked: dict[str, list[tuple[str, int]]] = {}
        for index in np.flatnonzero(self.windows_E).tolist():
            episode = self.episodes[index]
            rank = hashlib.sha256(f"labelled {episode.session_id}".encode()).hexdigest()
            ranked.setdefault(episode.game, []).append((rank, index))
        self._labelled_E[:] = False
        for episodes in ranked.values():
            for _, index in sorted(episodes)[: math.ceil(share * len(episodes))]:
                self._labelled_E[index] = True
        self._labelled = np.flatnonzero(np.repeat(self._labelled_E, self.windows_E))

    def with_labelled(self, order: Sampler) -> Sampler:
        """Return a sampler that draws half of its windows from labelled episodes, if there are any,
        and the others in the given order.
        """
        return LabelledSampler(order, self._labelled) if len(self._labelled) else order

    def mask_actions(self, episodes_B: np.ndarray, actions_BT: np.ndarray) -> np.ndarray:
        """Replace the actions of windows of unlabelled episodes by `MASKED_ACTION`."""
        return np.where(self._labelled_E[episodes_B, None], actions_BT, MASKED_ACTION)


def single_size(sizes: set[tuple[int, int]]) -> tuple[int, int]:
    """Return the only (height, width) of some frames, (0, 0) of none.

    Raises: InputError if there are several.
    """
    if len(sizes) > 1:
        raise InputError(
            f"the data holds frames of several sizes, {sorted(sizes)}: train on one size at a time"
        )
    return next(iter(sizes), (0, 0))

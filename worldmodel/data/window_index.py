"""Numbering of windows: one at every `stride`-th frame of an episode, none across its end."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from worldmodel.config import MASKED_ACTION
from worldmodel.data.dataset import Dataset
from worldmodel.data.sampler import LabelledSampler, Sampler


@dataclass(frozen=True)
class EpisodeInfo:
    """Description of an episode; reading it touches no frames."""

    session_id: str
    game: str
    num_frames: int


class WindowIndex(Dataset):
    """All windows of `length` frames of some episodes. Takes memory per episode, not per window.

    `frames_E`: frames of each episode. `game_E`: each episode's place in `games`. `session_ids`:
    their names, E of anything that `str` turns into a name.
    """

    provides = frozenset({"frames", "actions"})

    def __init__(
        self,
        frames_E: np.ndarray,
        game_E: np.ndarray,
        games: list[str],
        session_ids: Any,
        *,
        length: int,
        stride: int,
    ) -> None:
        self.length, self.stride, self.games = length, stride, games
        self.episodes = EpisodeTable(frames_E, game_E, games, session_ids)
        self.windows_E = np.maximum(0, (frames_E.astype(np.int64) - length) // stride + 1)
        """Windows of each episode, int64 (E,)."""
        # _ends[e] is the number of the first window after episode e.
        self._ends = self.windows_E.cumsum()
        self._labelled_E = np.ones(len(frames_E), bool)
        self._labelled = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def places(self, window_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (indices in `episodes`, first frames) of windows, int64 (B,) each."""
        episodes_B = np.searchsorted(self._ends, window_ids, side="right")
        return episodes_B, (window_ids - self.first_windows(episodes_B)) * self.stride

    def first_windows(self, episodes: np.ndarray) -> np.ndarray:
        """Return the number of the first window of each given episode, int64."""
        return self._ends[episodes] - self.windows_E[episodes]

    def locate(self, window_id: int) -> tuple[int, int]:
        """Return (index in `episodes`, first frame) of a window."""
        episodes, starts = self.places(np.array([window_id]))
        return int(episodes[0]), int(starts[0])

    def window_game(self, window_id: int) -> str:
        """Return the game that a window shows."""
        return self.episodes[self.locate(window_id)[0]].game

    def describe(self, window_id: int) -> str:
        """Describe a window in words, for messages."""
        place, start = self.locate(window_id)
        episode = self.episodes[place]
        return f"window {window_id} (session {episode.session_id} of {episode.game}, frame {start})"

    def reveal_actions(self, share: float) -> None:
        """Reveal the recorded actions of a share of each game's episodes, rounded up, and mask all
        others. Samplers then draw half of their windows from these episodes.

        `share`: in [0, 1]. Which episodes is decided by a hash of their session ids: the same ones
        wherever, whenever and in whatever order the data is read.
        """
        games: dict[str, list[tuple[str, int]]] = {}
        for place in np.flatnonzero(self.windows_E).tolist():
            episode = self.episodes[place]
            rank = hashlib.sha256(f"labelled {episode.session_id}".encode()).hexdigest()
            games.setdefault(episode.game, []).append((rank, place))
        self._labelled_E[:] = False
        for ranked in games.values():
            shown = sorted(ranked)[: math.ceil(share * len(ranked))]
            self._labelled_E[[place for _, place in shown]] = True
        self._labelled = np.flatnonzero(np.repeat(self._labelled_E, self.windows_E))

    def with_labelled(self, order: Sampler) -> Sampler:
        """Return the order; where actions are revealed, one that draws half of its windows from
        those.
        """
        return LabelledSampler(order, self._labelled) if len(self._labelled) else order

    def shown(self, episodes_B: np.ndarray, actions_BT: np.ndarray) -> np.ndarray:
        """Return recorded actions of windows of some episodes, masked where hidden."""
        return np.where(self._labelled_E[episodes_B, None], actions_BT, MASKED_ACTION)


class EpisodeTable(Sequence[EpisodeInfo]):
    """Episodes as columns. Records are built on demand, since there may be very many."""

    def __init__(
        self, frames_E: np.ndarray, game_E: np.ndarray, games: list[str], session_ids: Any
    ) -> None:
        self._frames_E, self._game_E, self._games, self._session_ids = (
            frames_E,
            game_E,
            games,
            session_ids,
        )

    def __len__(self) -> int:
        return len(self._frames_E)

    @overload
    def __getitem__(self, place: int) -> EpisodeInfo: ...
    @overload
    def __getitem__(self, place: slice) -> list[EpisodeInfo]: ...
    def __getitem__(self, place: int | slice) -> EpisodeInfo | list[EpisodeInfo]:
        if isinstance(place, slice):
            return [self[number] for number in range(len(self))[place]]
        game = self._games[int(self._game_E[place])]
        return EpisodeInfo(str(self._session_ids[place]), game, int(self._frames_E[place]))

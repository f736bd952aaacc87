"""Dataset of clips, decoded from the local copy of the episodes.

An episode of T + 1 frames has a window at every `stride`-th frame. Windows are numbered through all
data sets and never cross an episode's end. B clips, T frames, H, W pixels, C = 3.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from envs.episodes.frame_codec import decode_frames
from envs.utils.errors import InputError
from worldmodel.data.arrow_cache import (
    BinaryColumn,
    FrameBlobs,
    build_arrow_cache,
    open_arrow_cache,
    read_skipped,
)
from worldmodel.data.batch import Batch
from worldmodel.data.sampler import ClipSampler, Sampler, WeightedSampler
from worldmodel.data.window_index import EpisodeTable, WindowIndex, single_size


class ClipDataset(WindowIndex):
    """All windows of `length` frames, one at every `stride`-th frame, of the union of data sets.

    `split`: "train", "val" or None for both. Damaged shards are left out, as
    `worldmodel.data.arrow_cache.build_arrow_cache` describes.
    """

    def __init__(
        self,
        uris: Sequence[str | Path],
        cache_dir: Path | str,
        *,
        length: int,
        stride: int = 1,
        split: str | None = "train",
    ) -> None:
        if not uris:
            raise InputError("no data given: name one or more folders of episodes")
        self.uris, self._cache_dir, self._split = uris, cache_dir, split
        paths = [build_arrow_cache(uri, cache_dir) for uri in uris]
        # Whatever decides which windows there are, and in which order.
        identity = [*(path.stem for path in paths), split, length, stride]
        self.manifest_hash = hashlib.sha256(repr(identity).encode()).hexdigest()
        self.skipped = {
            f"{uri}/{shard}": error
            for uri, path in zip(uris, paths, strict=True)
            for shard, error in read_skipped(path).items()
        }
        """Shard that was left out -> what is wrong with it."""

        # Zero-copy views of the memory-mapped files; `rows_E` are the episodes of the split.
        tables = [open_arrow_cache(path) for path in paths]
        table = pa.concat_tables(tables)
        validation = table["validation"].to_numpy()
        self._rows_E = np.flatnonzero((validation == (split == "val")) | (split is None))
        self._frames = FrameBlobs(table)
        self._actions = BinaryColumn(table["actions"].chunks)
        columns = table.select(["session_id", "game", "height", "width", "chunk"])
        columns = columns.take(pa.array(self._rows_E))
        ends = np.cumsum([len(part) for part in tables])
        self.source_E = np.searchsorted(ends, self._rows_E, side="right")
        """Index in `uris` of the data set of each episode, int64 (E,)."""
        self._chunk_E = columns["chunk"].to_numpy()
        heights, widths = columns["height"].to_pylist(), columns["width"].to_pylist()
        self.size = single_size(set(zip(heights, widths, strict=True)))
        """Pixels of every frame: (height, width)."""
        self._weights_N: np.ndarray | None = None
        games = sorted(columns["game"].unique().to_pylist())
        game_E = pc.index_in(columns["game"], value_set=pa.array(games, pa.string())).to_numpy()
        frames_E = pc.binary_length(table["actions"]).to_numpy()[self._rows_E] + 1
        episodes = EpisodeTable(frames_E, game_E, games, columns["session_id"])
        super().__init__(episodes, length=length, stride=stride)

    def weigh(self, weights_N: np.ndarray, origin: str) -> None:
        """Let samplers draw windows by weights (N,), instead of each once per epoch.

        `origin` identifies what the weights were made of: a run resumes only on the same.
        """
        self._weights_N = weights_N
        self.manifest_hash = hashlib.sha256(f"{self.manifest_hash} {origin}".encode()).hexdigest()

    def with_windows(self, length: int, stride: int) -> "ClipDataset":
        """Return other windows of the same episodes, which keep their numbers."""
        return ClipDataset(
            self.uris, self._cache_dir, length=length, stride=stride, split=self._split
        )

    def sampler(self, seed: int) -> Sampler:
        """Return the order in which a `ClipLoader` draws windows."""
        if self._weights_N is not None:
            return WeightedSampler(self._weights_N, seed)
        return self.with_labelled(ClipSampler(len(self), seed))

    def batch(self, window_ids: np.ndarray) -> Batch:
        """Decode windows. Raises: InputError naming the session of a damaged one."""
        episodes_B, starts_B = self.locate_all(window_ids)
        # Filled in place: stacking a list of clips would touch twice the memory.
        shape_HWC = (*self.size, 3)
        frames_BTHWC = np.empty((len(window_ids), self.length, *shape_HWC), np.uint8)
        for number, (episode, start) in enumerate(
            zip(episodes_B.tolist(), starts_B.tolist(), strict=True)
        ):
            row, chunk = int(self._rows_E[episode]), int(self._chunk_E[episode])
            first, last = start // chunk, (start + self.length - 1) // chunk
            start -= first * chunk
            try:
                decode_frames(
                    self._frames.read(row, first, last),
                    start,
                    start + self.length,
                    height=self.size[0],
                    width=self.size[1],
                    chunk=chunk,
                    out=frames_BTHWC[number],
                )
            except InputError as error:
                window = self.describe(int(window_ids[number]))
                raise InputError(f"{window}, copy in {self._cache_dir}: {error}") from error
        actions_BT, games_B = self.labels(window_ids)
        return Batch(
            window_ids_B=torch.from_numpy(window_ids),
            games_B=games_B,
            frames_BTHWC=torch.from_numpy(frames_BTHWC),
            actions_BT=actions_BT,
        )

    def labels(self, window_ids: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return (actions_BT int64 (B, length - 1), games_B) of windows without decoding frames."""
        episodes_B, starts_B = self.locate_all(window_ids)
        actions_BT = np.empty((len(window_ids), self.length - 1), np.int64)
        rows = zip(self._rows_E[episodes_B].tolist(), starts_B.tolist(), strict=True)
        for number, (row, start) in enumerate(rows):
            stored = self._actions[row]
            actions_BT[number] = np.frombuffer(stored, np.uint8, self.length - 1, start)
        actions_BT = self.mask_actions(episodes_B, actions_BT)
        games_B = self.episodes.game_E[episodes_B].astype(np.int64)
        return torch.from_numpy(actions_BT), torch.from_numpy(games_B)

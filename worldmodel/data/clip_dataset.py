"""Dataset of clips, decoded from the local copy of the episodes.

An episode of T + 1 frames has a window at every `stride`-th frame; windows are numbered through all
episodes, sessions and data sets, and never cross an episode's end. B clips, T frames, H, W pixels,
C = 3.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from envs.episodes.frame_codec import decode_frames
from envs.utils.errors import InputError
from worldmodel.data.arrow_cache import build_arrow_cache, one_size, open_staged
from worldmodel.data.batch import Batch
from worldmodel.data.sampler import ClipSampler, Sampler
from worldmodel.data.window_index import WindowIndex


class ClipDataset(WindowIndex):
    """All windows of `length` frames, one at every `stride`-th frame, of the union of data sets.

    Opening costs memory for each episode, none for a window. `split`: "train", "val" or None for
    both. Damaged shards are left out as `worldmodel.data.arrow_cache.build_arrow_cache` says.
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
        paths = [build_arrow_cache(uri, cache_dir) for uri in uris]
        # The hash names what window numbers mean: which data sets in which order, which split,
        # which windows.
        identity = [*(path.stem for path in paths), split, length, stride]
        self.manifest_hash = hashlib.sha256(repr(identity).encode()).hexdigest()
        numbers: dict[str, int] = {}
        self._files = [
            open_staged(path, number, split, numbers) for number, path in enumerate(paths)
        ]
        self.skipped = {
            f"{uri}/{shard}": why
            for uri, file in zip(uris, self._files, strict=True)
            for shard, why in file.skipped.items()
        }
        """Shard that was left out -> what is wrong with it."""
        self._places = np.concatenate([file.places for file in self._files])
        self.size = one_size(self._places)
        """Pixels of every frame: (height, width)."""
        names = list(numbers)
        games = sorted(names[number] for number in np.unique(self._places["game"]).tolist())
        order = np.array([games.index(name) if name in games else -1 for name in names], np.int32)
        self._places["game"] = order[self._places["game"]]
        session_ids = pa.chunked_array(
            [part for file in self._files for part in file.session_ids], pa.string()
        )
        columns = (self._places["num_frames"], self._places["game"], games, session_ids)
        super().__init__(*columns, length=length, stride=stride)

    def sampler(self, seed: int) -> Sampler:
        """Return the order in which a `ClipLoader` draws windows."""
        return self.with_labelled(ClipSampler(len(self), seed))

    def batch(self, window_ids: np.ndarray) -> Batch:
        """Decode windows. Raise InputError that names the session of a damaged one."""
        places_B, starts_B = self.places(window_ids)
        rows_B = self._places[places_B]
        chunks_B = rows_B["chunk"]
        first_B, last_B = starts_B // chunks_B, (starts_B + self.length - 1) // chunks_B
        where = (
            rows_B["file"],
            rows_B["first_blob"] + first_B,
            last_B - first_B + 1,
            starts_B % chunks_B,
            chunks_B,
        )
        height, width = self.size
        # Filled in place: a list that is stacked afterwards touches twice the memory, which is what
        # costs time here.
        frames_BTHWC = np.empty((len(window_ids), self.length, height, width, 3), np.uint8)
        for number, (file, blob, blobs, start, chunk) in enumerate(
            zip(*(c.tolist() for c in where), strict=True)
        ):
            try:
                found = self._files[file].blobs(blob, blobs)
                shape = {
                    "height": height,
                    "width": width,
                    "chunk": chunk,
                    "out": frames_BTHWC[number],
                }
                decode_frames(found, start, start + self.length, **shape)
            except InputError as error:
                raise InputError(
                    f"{self.describe(int(window_ids[number]))}, staged copy: {error}"
                ) from error
        actions_BT, games_B = self.labels(window_ids)
        return Batch(
            window_ids_B=torch.from_numpy(window_ids),
            games_B=games_B,
            frames_BTHWC=torch.from_numpy(frames_BTHWC),
            actions_BT=actions_BT,
        )

    def labels(self, window_ids: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return (actions_BT int64 (B, length - 1), games_B) of windows without decoding frames."""
        places_B, starts_B = self.places(window_ids)
        rows_B = self._places[places_B]
        actions = np.empty((len(window_ids), self.length - 1), np.int64)
        where = zip(
            rows_B["file"].tolist(), (rows_B["actions_start"] + starts_B).tolist(), strict=True
        )
        for number, (file, first) in enumerate(where):
            actions[number] = np.frombuffer(
                self._files[file].bytes, np.uint8, self.length - 1, first
            )
        return torch.from_numpy(self.shown(places_B, actions)), torch.from_numpy(
            rows_B["game"].astype(np.int64)
        )

"""The tokens of a frozen tokenizer, computed once for a data set and read from the disk ever after.

A frame's tokens depend on the frames before it in its window, so whole windows are stored: one .npy file of shape
(windows, T, h, w), uint16, mapped into memory, named after the tokenizer's encoding weights and the windows.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from envs.errors import InputError
from envs.files import sync_folder
from envs.runs import progress
from worldmodel.checkpoint import encoder_sha256
from worldmodel.clips import Clips, ClipSampler, model_frames
from worldmodel.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenBatch:
    """B windows of T frames of hxw token ids. actions_BT[b, t] turned frame t into frame t + 1."""

    tokens_BThw: Tensor
    """int64"""
    actions_BT: Tensor
    """int64 (B, T - 1)"""
    games_B: Tensor
    """int64, places in `Clips.games`"""
    window_ids_B: Tensor
    """int64, numbers of the windows in the data"""

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        return type(self)(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


class TokenClips:
    """Windows of tokens, by the same numbers as the `Clips` that they come from. Draw from it with a `ClipLoader`."""

    def __init__(self, path: Path, clips: Clips) -> None:
        self._tokens: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        self._clips = clips
        self.manifest_hash = clips.manifest_hash

    def __len__(self) -> int:
        return len(self._clips)

    def sampler(self, seed: int) -> ClipSampler:
        """The order in which a `ClipLoader` draws: that of the clips."""
        return self._clips.sampler(seed)

    def close(self) -> None:
        """There is nothing to close."""

    def describe(self, window_id: int) -> str:
        """A window in words, for messages."""
        return self._clips.describe(window_id)

    def batch(self, window_ids: np.ndarray) -> TokenBatch:
        """Read windows."""
        actions_BT, games_B = self._clips.labels(window_ids)
        tokens = torch.from_numpy(self._tokens[window_ids].astype(np.int64))
        return TokenBatch(tokens, actions_BT, games_B, torch.from_numpy(window_ids))


def cache_tokens(
    tokenizer: Tokenizer,
    clips: Clips,
    cache_dir: Path | str,
    *,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    part: int = 0,
    parts: int = 1,
    barrier: Callable[[], None] = lambda: None,
) -> TokenClips:
    """Encode all windows of `clips` with a frozen tokenizer, unless that was done before, and open the result.

    Frames are encoded in float32 without autocast, as when the model generates. Several processes of one machine share
    the work: each calls with its `part` of `parts` and a `barrier` among them. The file appears when it is complete.
    Raises InputError where there are no windows or the disk is full.
    """
    if not len(clips):
        raise InputError("no window to encode: the episodes are shorter than a clip; give longer ones")
    identity = f"{encoder_sha256(tokenizer)} {clips.manifest_hash}"
    path = Path(cache_dir) / f"tokens-{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npy"
    temporary = path.with_name(f".{path.name}.{os.getpid() if parts == 1 else 'shared'}.tmp")
    try:
        if part == 0 and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            grid = tokenizer.cfg.grid
            np.lib.format.open_memmap(temporary, "w+", np.uint16, (len(clips), clips.length, grid, grid)).flush()
        barrier()
        if not path.exists():
            _encode(tokenizer, clips, temporary, batch_size, device, part, parts)
            barrier()
            if part == 0:
                os.replace(temporary, path)
                sync_folder(path.parent)
            barrier()
    except OSError as error:
        raise InputError(f"cannot store tokens in {path.parent}: {error.strerror or error}") from error
    finally:
        if part == 0:
            temporary.unlink(missing_ok=True)
    return TokenClips(path, clips)


@torch.no_grad()
def _encode(
    tokenizer: Tokenizer,
    clips: Clips,
    path: Path,
    batch_size: int,
    device: torch.device | str,
    part: int,
    parts: int,
) -> None:
    """Write the tokens of this part's windows, a contiguous range, into the file."""
    stored = np.lib.format.open_memmap(path, "r+")
    first, last = (len(clips) * end // parts for end in (part, part + 1))
    training = tokenizer.training
    tokenizer.eval()
    with progress("encoding clips", last - first) as bar:
        for start in range(first, last, batch_size):
            ids = np.arange(start, min(start + batch_size, last))
            frames = model_frames(clips.batch(ids).frames_BTHWC.to(device))
            stored[ids] = tokenizer.encode(frames).cpu().numpy()
            bar.advance(len(ids))
    stored.flush()
    tokenizer.train(training)

"""Dataset of tokens and latent actions that frozen models computed once, stored on disk.

A frame's tokens depend on the frames before it in its window, so whole windows are stored: a .npy
file of shape (windows, T, h, w), uint16, mapped into memory and named after the tokenizer's encoder
weights and the windows. The latent actions of a frozen latent action model are stored in another
file, (windows, T - 1), named after that model's weights.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from envs.utils.atomic_io import sync_folder
from envs.utils.errors import InputError
from envs.utils.progress import progress
from worldmodel.data.batch import Batch, to_float_frames
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.data.dataset import Dataset
from worldmodel.data.sampler import Sampler
from worldmodel.models.latent_action import LatentActionModel
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.models.weights import encoder_sha256

MAX_CODES = 2**16
"""Codes that the stored uint16 can tell apart."""


class TokenDataset(Dataset):
    """Tokens and actions of the windows of a `ClipDataset`, with the same numbers.

    `latents`: file of latent actions, which batches then hold too. `frames`: let batches hold the
    frames of the tokens.
    """

    def __init__(
        self, path: Path, clips: ClipDataset, *, latents: Path | None = None, frames: bool = False
    ) -> None:
        self._tokens = np.load(path, mmap_mode="r", allow_pickle=False)
        self._latents = (
            None if latents is None else np.load(latents, mmap_mode="r", allow_pickle=False)
        )
        self._clips, self._frames = clips, frames
        self.manifest_hash = clips.manifest_hash
        provides = {"tokens", "actions"}
        if latents is not None:
            provides.add("latent_actions")
        if frames:
            provides.add("frames")
        self.provides = frozenset(provides)

    def __len__(self) -> int:
        return len(self._clips)

    def sampler(self, seed: int) -> Sampler:
        """Return the order in which a `ClipLoader` draws windows: that of the clips."""
        return self._clips.sampler(seed)

    def describe(self, window_id: int) -> str:
        """Describe a window in words, for messages."""
        return self._clips.describe(window_id)

    def batch(self, window_ids: np.ndarray) -> Batch:
        """Read windows."""
        if self._frames:
            batch = self._clips.batch(window_ids)
        else:
            actions_BT, games_B = self._clips.labels(window_ids)
            ids_B = torch.from_numpy(window_ids)
            batch = Batch(window_ids_B=ids_B, games_B=games_B, actions_BT=actions_BT)
        batch = replace(batch, tokens_BThw=_read_rows(self._tokens, window_ids))
        if self._latents is not None:
            batch = replace(batch, latent_actions_BT=_read_rows(self._latents, window_ids))
        return batch


def _read_rows(stored: np.ndarray, window_ids: np.ndarray) -> Tensor:
    """Return rows of a stored array as int64."""
    return torch.from_numpy(stored[window_ids].astype(np.int64))


@dataclass(frozen=True)
class CacheBarrier:
    """Share of the encoding that a process does: `part` of the `parts` of a machine."""

    part: int = 0
    parts: int = 1
    barrier: Callable[[], None] = lambda: None
    """Function that waits for all parts."""


def cache_tokens(
    tokenizer: Tokenizer,
    clips: ClipDataset,
    cache_dir: Path | str,
    *,
    lam: LatentActionModel | None = None,
    frames: bool = False,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    sharing: CacheBarrier | None = None,
) -> TokenDataset:
    """Encode all windows with frozen models unless they are stored, and open the dataset.

    `lam`: store its latent actions too. `frames`: let batches hold the frames. Frames are encoded
    in float32 without autocast, as in generation. With `sharing`, all parts must call this.

    Raises: InputError if there are no windows or the disk is full.
    """
    if tokenizer.cfg.tokenizer.codes > MAX_CODES:
        raise InputError(
            f"{tokenizer.cfg.tokenizer.codes} codes: the cache of tokens holds at most {MAX_CODES}"
        )
    if not len(clips):
        raise InputError(
            "no window to encode: the episodes are shorter than a clip; give longer ones"
        )
    encoder = _Encoder(clips, Path(cache_dir), batch_size, device, sharing or CacheBarrier())
    grid = tokenizer.cfg.grid
    tokens = encoder.store("tokens", tokenizer, (clips.length, grid, grid))
    latents = None if lam is None else encoder.store("latents", lam, (clips.length - 1,))
    return TokenDataset(tokens, clips, latents=latents, frames=frames)


@dataclass(frozen=True)
class _Encoder:
    """Settings of the encoding that all models share."""

    clips: ClipDataset
    folder: Path
    batch_size: int
    device: torch.device | str
    sharing: CacheBarrier

    def store(
        self, name: str, model: Tokenizer | LatentActionModel, shape: tuple[int, ...]
    ) -> Path:
        """Return the file of a model's output for all windows; write it if it is missing.

        `shape` is the shape of the output for one window. The file appears when it is complete.
        """
        identity = f"{encoder_sha256(model)} {self.clips.manifest_hash}"
        digest = hashlib.sha256(identity.encode()).hexdigest()[:32]
        path = self.folder / f"{name}-{digest}.npy"
        first, wait = self.sharing.part == 0, self.sharing.barrier
        owner = os.getpid() if self.sharing.parts == 1 else "shared"
        temporary = path.with_name(f".{path.name}.{owner}.tmp")
        try:
            if first and not path.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                full_shape = (len(self.clips), *shape)
                np.lib.format.open_memmap(temporary, "w+", np.uint16, full_shape).flush()
            wait()
            if not path.exists():
                self._encode(name, model, temporary)
                wait()
                if first:
                    temporary.replace(path)
                    sync_folder(self.folder)
                wait()
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"cannot store {name} in {self.folder}: {reason}") from error
        finally:
            if first:
                temporary.unlink(missing_ok=True)
        return path

    @torch.no_grad()
    def _encode(self, name: str, model: Tokenizer | LatentActionModel, path: Path) -> None:
        """Encode this process's contiguous range of windows into the file."""
        stored = np.lib.format.open_memmap(path, "r+")
        part, parts = self.sharing.part, self.sharing.parts
        first, last = (len(self.clips) * end // parts for end in (part, part + 1))
        training = model.training
        model.eval()
        with progress(f"encoding clips as {name}", last - first) as bar:
            for start in range(first, last, self.batch_size):
                ids = np.arange(start, min(start + self.batch_size, last))
                frames = to_float_frames(self.clips.batch(ids).frames_BTHWC.to(self.device))
                stored[ids] = model.encode(frames).cpu().numpy()
                bar.advance(len(ids))
        stored.flush()
        model.train(training)

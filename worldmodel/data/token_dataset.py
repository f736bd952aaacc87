"""Dataset of tokens and latent actions that frozen models computed once, stored on disk.

A frame's tokens depend on the frames before it in its window, so whole windows are stored: one .npy
file of shape (windows, T, h, w), uint16, mapped into memory, named after the tokenizer's encoding
weights and the windows. The latent actions of a frozen latent action model have a file of their
own, (windows, T - 1), named after that model's.
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


class TokenDataset(Dataset):
    """Windows of tokens, by the same numbers as the `ClipDataset` that they come from.

    Its batches hold actions too, latent actions where `latents` names a file, and with `frames`
    the frames that the tokens were made of.
    """

    def __init__(
        self, path: Path, clips: ClipDataset, *, latents: Path | None = None, frames: bool = False
    ) -> None:
        self._tokens: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        self._latents = (
            None if latents is None else np.load(latents, mmap_mode="r", allow_pickle=False)
        )
        self._clips, self._frames = clips, frames
        self.manifest_hash = clips.manifest_hash
        optional = {"latent_actions": latents is not None, "frames": frames}
        self.provides = frozenset(
            {"tokens", "actions", *(name for name, there in optional.items() if there)}
        )

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
    """Waits for all of them."""


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
    """Encode all windows of `clips` with frozen models unless they are stored, and open the
    dataset.

    `lam`: store its latent actions too. `frames`: let batches hold the frames. Frames are encoded
    in float32 without autocast, as when the model generates. With `sharing` all processes call. A
    file appears when it is complete. Raise InputError where there are no windows or the disk is
    full.
    """
    if not len(clips):
        raise InputError(
            "no window to encode: the episodes are shorter than a clip; give longer ones"
        )
    tokens: _Frozen = ("tokens", tokenizer, (clips.length, tokenizer.cfg.grid, tokenizer.cfg.grid))
    latents: _Frozen | None = None if lam is None else ("latents", lam, (clips.length - 1,))
    tokens_file, latents_file = (
        None
        if frozen is None
        else _stored(frozen, clips, Path(cache_dir), batch_size, device, sharing or CacheBarrier())
        for frozen in (tokens, latents)
    )
    assert tokens_file is not None
    return TokenDataset(tokens_file, clips, latents=latents_file, frames=frames)


_Frozen = tuple[str, Tokenizer | LatentActionModel, tuple[int, ...]]
"""Name of the stored field, the frozen model, and the shape of its output for a window."""


def _stored(
    frozen: _Frozen,
    clips: ClipDataset,
    folder: Path,
    batch_size: int,
    device: torch.device | str,
    sharing: CacheBarrier,
) -> Path:
    """Return the file of a model's output for all windows; compute it if it is missing."""
    name, model, shape = frozen
    identity = f"{encoder_sha256(model)} {clips.manifest_hash}"
    path = folder / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npy"
    temporary = path.with_name(
        f".{path.name}.{os.getpid() if sharing.parts == 1 else 'shared'}.tmp"
    )
    try:
        if sharing.part == 0 and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.lib.format.open_memmap(temporary, "w+", np.uint16, (len(clips), *shape)).flush()
        sharing.barrier()
        if not path.exists():
            _encode(frozen, clips, temporary, batch_size, device, sharing)
            sharing.barrier()
            if sharing.part == 0:
                os.replace(temporary, path)
                sync_folder(path.parent)
            sharing.barrier()
    except OSError as error:
        raise InputError(
            f"cannot store {name} in {path.parent}: {error.strerror or error}"
        ) from error
    finally:
        if sharing.part == 0:
            temporary.unlink(missing_ok=True)
    return path


@torch.no_grad()
def _encode(
    frozen: _Frozen,
    clips: ClipDataset,
    path: Path,
    batch_size: int,
    device: torch.device | str,
    sharing: CacheBarrier,
) -> None:
    """Encode this process's contiguous range of windows into the file."""
    name, model, _ = frozen
    stored = np.lib.format.open_memmap(path, "r+")
    first, last = (len(clips) * end // sharing.parts for end in (sharing.part, sharing.part + 1))
    training = model.training
    model.eval()
    with progress(f"encoding clips as {name}", last - first) as bar:
        for start in range(first, last, batch_size):
            ids = np.arange(start, min(start + batch_size, last))
            frames = to_float_frames(clips.batch(ids).frames_BTHWC.to(device))
            stored[ids] = model.encode(frames).cpu().numpy()
            bar.advance(len(ids))
    stored.flush()
    model.train(training)

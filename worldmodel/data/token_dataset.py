"""Dataset of tokens and latent actions that frozen models computed once, stored on disk.

A frame's tokens depend on the frames before it in its window, so whole windows are stored: a .npy
file of shape (windows, T, h, w), uint16, mapped into memory and named after the tokenizer's encoder
weights and the windows, and after the format of the products unless it is fp32. The latent actions
of a frozen latent action model are stored in another file, (windows, T - 1), named after that
model's weights.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from envs.utils.atomic_io import sync_folder, temporary_path
from envs.utils.errors import InputError
from envs.utils.progress import progress
from worldmodel.data.batch import Batch, to_float_frames
from worldmodel.data.cache_sharing import CacheSharing
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.data.dataset import Dataset
from worldmodel.data.sampler import Sampler
from worldmodel.devices import copy_to, full_precision, product_format
from worldmodel.models.latent_action import LatentActionModel
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.models.weights import encoder_sha256

MAX_CODES = 2**16
"""Codes that the stored uint16 can tell apart."""
_DTYPE = np.dtype(np.uint16)


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


def cache_tokens(
    tokenizer: Tokenizer,
    clips: ClipDataset,
    cache_dir: Path | str,
    *,
    lam: LatentActionModel | None = None,
    frames: bool = False,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    sharing: CacheSharing | None = None,
) -> TokenDataset:
    """Encode all windows with frozen models unless they are stored, and open the dataset.

    `lam`: store its latent actions too. `frames`: let batches hold the frames. Frames are encoded
    in fp32 without autocast, with TF32 where `resolve_device` turned it on: files of one format are
    not read for another. With `sharing`, the ranks that see the folder share the encoding, and all
    ranks of the run must call this.

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
    encoder = _Encoder(clips, Path(cache_dir), batch_size, device, sharing or CacheSharing())
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
    sharing: CacheSharing

    def store(
        self, name: str, model: Tokenizer | LatentActionModel, shape: tuple[int, ...]
    ) -> Path:
        """Return the file of a model's output for all windows; write it if it is missing.

        `shape` is the shape of the output for one window. The file appears when it is complete.
        """
        identity = f"{encoder_sha256(model)} {self.clips.manifest_hash}"
        digest = hashlib.sha256(identity.encode()).hexdigest()[:32]
        path = self.folder / f"{name}-{digest}{self._format_suffix()}.npy"
        # Each rank writes a file of its own: two machines must not write to the same pages of one
        # on a network file system. That of part 0 begins with the header of the whole file.
        temporary = temporary_path(path)
        sharing, first = self.sharing, self.sharing.part == 0
        try:
            missing = sharing.meet(first and not path.exists())[0]
            if missing:
                self.folder.mkdir(parents=True, exist_ok=True)
                with temporary.open("wb") as file:
                    if first:
                        _write_header(file, (len(self.clips), *shape))
                    self._encode(name, model, file)
                    _sync(file)
            parts = sharing.meet(temporary.name)
            if missing and first:
                _append(temporary, [self.folder / part for part in parts[1:]])
                if not path.exists():  # another run may have been faster, and has mapped its file
                    temporary.replace(path)
                    sync_folder(self.folder)
            sharing.meet()
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"cannot store {name} in {self.folder}: {reason}") from error
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def _format_suffix(self) -> str:
        """Return the formats of the products on the ranks that share the folder, with hyphens.

        fp32 alone, as on CPUs, is not named.
        """
        here = product_format(torch.device(self.device), "fp32")
        formats = sorted(set(self.sharing.meet(here)))
        return "" if formats == ["fp32"] else "".join(f"-{name}" for name in formats)

    @torch.no_grad()
    def _encode(self, name: str, model: Tokenizer | LatentActionModel, file: BinaryIO) -> None:
        """Write the codes of this rank's contiguous range of windows."""
        part, parts = self.sharing.part, self.sharing.parts
        first, last = (len(self.clips) * end // parts for end in (part, part + 1))
        training = model.training
        model.eval()
        with progress(f"encoding clips as {name}", last - first) as bar:
            for start in range(first, last, self.batch_size):
                ids = np.arange(start, min(start + self.batch_size, last))
                frames = to_float_frames(
                    copy_to(torch.device(self.device), self.clips.batch(ids).frames_BTHWC)
                )
                with full_precision(frames):
                    codes = model.encode(frames).cpu().numpy()
                file.write(codes.astype(_DTYPE).tobytes())
                bar.advance(len(ids))
        model.train(training)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write the header of a .npy file."""
    descr = np.lib.format.dtype_to_descr(_DTYPE)
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _append(path: Path, others: Sequence[Path]) -> None:
    """Append other files to one, and delete them."""
    with path.open("ab") as file:
        for other in others:
            with other.open("rb") as part:
                shutil.copyfileobj(part, file)
            other.unlink()
        _sync(file)


def _sync(file: BinaryIO) -> None:
    """Write what is buffered to the disk."""
    file.flush()
    os.fsync(file.fileno())

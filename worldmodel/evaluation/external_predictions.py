"""Exchange of test windows with other models: windows and predictions as folders of PNG files.

    DIR/<session>/<first frame>/
        window.json       {"game", "context", "horizon", "delta_t", "actions", "random_actions"}:
                          action k turned frame k into frame k + 1; those of the given frames
                          come first
        given-000.png     the given frames, 64x64 RGB; the last one is the newest
        truth-000.png     the frames to predict

A peer reads `window.json` and the given frames, and writes, into the same folders or into a tree of
the same shape,

        frame-000.png     its prediction of truth-000.png, and so on: one for each truth
        random-003.png    optional, for delta-PSNR: its prediction of frame `delta_t` (here 4)
                          with `random_actions`
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError
from worldmodel.data.batch import to_float_frames
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.metrics import frame_psnr, random_actions


def window_folder(root: Path, clips: ClipDataset, window_id: int) -> Path:
    """Return the folder of a window."""
    place, start = clips.locate(window_id)
    return root / clips.episodes[place].session_id.replace("/", "_") / str(start)


@dataclass(frozen=True)
class ExternalPredictions:
    """Predictions of another model, as PNG files. Raise InputError for a missing folder."""

    root: Path

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise InputError(f"{self.root}: no folder of a peer's predictions")

    def predict(
        self, clips: ClipDataset, window_ids: np.ndarray, truth_BFCHW: Tensor, delta_t: int
    ) -> tuple[Tensor, Tensor]:
        """Read predicted frames (B, F, 3, H, W) and compute delta-PSNR (B,), NaN without a random
        branch.

        Raise InputError that names the file where a frame is missing, no picture or of another
        size.
        """
        shape, films, deltas = truth_BFCHW.shape, [], []
        for window_id, truth_FCHW in zip(window_ids.tolist(), truth_BFCHW, strict=True):
            folder = window_folder(self.root, clips, window_id)
            film = torch.stack(
                [read_frame(folder / f"frame-{k:03d}.png", shape[-2:]) for k in range(shape[1])]
            )
            films.append(film)
            random, t = folder / f"random-{delta_t - 1:03d}.png", delta_t - 1
            delta = torch.tensor(torch.nan)
            if random.exists():
                delta = frame_psnr(truth_FCHW[t], film[t]) - frame_psnr(
                    truth_FCHW[t], read_frame(random, shape[-2:])
                )
            deltas.append(delta)
        return torch.stack(films), torch.stack(deltas)


def read_frame(file: Path, size: tuple[int, ...]) -> Tensor:
    """Read an image as (3, H, W) in [0, 1]."""
    try:
        pixels = np.asarray(Image.open(file).convert("RGB"))
    except FileNotFoundError as error:
        raise InputError(
            f"{file} is missing: a peer's folder holds every predicted frame of every window"
        ) from error
    except OSError as error:
        raise InputError(f"{file}: no picture ({error})") from error
    if pixels.shape[:2] != tuple(size):
        raise InputError(
            f"{file}: expected {size[1]}x{size[0]} pixels, got {pixels.shape[1]}x{pixels.shape[0]}"
        )
    return to_float_frames(torch.from_numpy(pixels.copy()))


def export_windows(
    root: Path,
    clips: ClipDataset,
    window_ids: np.ndarray,
    *,
    context: int,
    delta_t: int,
    seed: int,
    action_count: int,
) -> None:
    """Write windows in the layout above."""
    batch = clips.batch(window_ids)
    drawn = random_actions(batch.actions_BT, context, seed, action_count)
    horizon = clips.length - context
    for number, window_id in enumerate(window_ids.tolist()):
        folder = window_folder(root, clips, window_id)
        folder.mkdir(parents=True, exist_ok=True)
        for place, pixels in enumerate(batch.frames_BTHWC[number].numpy()):
            name = (
                f"given-{place:03d}.png" if place < context else f"truth-{place - context:03d}.png"
            )
            Image.fromarray(pixels).save(folder / name)
        told: dict[str, Any] = {
            "game": clips.window_game(window_id),
            "context": context,
            "horizon": horizon,
            "delta_t": min(delta_t, horizon),
            "actions": batch.actions_BT[number].tolist(),
            "random_actions": drawn[number].tolist(),
        }
        write_json_atomic(folder / "window.json", json.loads(json.dumps(told)))

"""Exchange of test windows with other models: windows and predictions as folders of PNG files.

    DIR/<session>/<first frame>/
        window.json       {"game", "context", "horizon", "delta_t", "replaced", "actions",
                          "random_actions"}; action k turned frame k (from the first given one)
                          into frame k + 1
        given-000.png     the given frames, 64x64 RGB, in order
        truth-000.png     the frames to predict

The other model reads `window.json` and the given frames, and writes, into the same folders or into
a tree of the same shape,

        frame-000.png     its prediction of truth-000.png, and so on for each true frame
        random-003.png    optional, for delta-PSNR: its prediction of frame `delta_t` (here 4)
                          with `random_actions`
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError
from worldmodel.config import ReplacedActions
from worldmodel.data.batch import to_float_frames
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.metrics import frame_psnr, random_actions, replace_last_action


def window_folder(root: Path, clips: ClipDataset, window_id: int) -> Path:
    """Return the folder of a window."""
    episode, start = clips.locate(window_id)
    return root / clips.episodes[episode].session_id.replace("/", "_") / str(start)


@dataclass(frozen=True)
class ExternalPredictions:
    """Predictions of another model, as PNG files."""

    root: Path

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise InputError(f"{self.root}: no folder of a peer's predictions")

    def for_game(self, game: str) -> Self:
        """Return itself: predictions exist for all games."""
        return self

    def to(self, device: str) -> Self:
        """Return itself: predictions are read into memory."""
        return self

    def predict(
        self,
        clips: ClipDataset,
        window_ids: np.ndarray,
        truth_BFCHW: Tensor,
        delta_t: int,
        replaced: ReplacedActions = "all",
    ) -> tuple[Tensor, Tensor]:
        """Read predicted frames (B, F, 3, H, W) and compute delta-PSNR (B,).

        Delta-PSNR is NaN without a prediction from random actions. Raises InputError as
        `read_window`, and for windows with other actions `replaced`.
        """
        horizon, size, t = truth_BFCHW.shape[1], truth_BFCHW.shape[-2:], delta_t - 1
        predictions, deltas = [], []
        for window_id, truth_FCHW in zip(window_ids.tolist(), truth_BFCHW, strict=True):
            folder = window_folder(self.root, clips, window_id)
            predicted_FCHW = self.read_window(clips, window_id, horizon)
            predictions.append(predicted_FCHW)
            random_file, delta = folder / f"random-{t:03d}.png", torch.tensor(torch.nan)
            if random_file.exists():
                _check_replaced(folder / "window.json", replaced)
                random_CHW = read_png_frame(random_file, size)
                delta = frame_psnr(truth_FCHW[t], predicted_FCHW[t]) - frame_psnr(
                    truth_FCHW[t], random_CHW
                )
            deltas.append(delta)
        return torch.stack(predictions), torch.stack(deltas)

    def read_window(self, clips: ClipDataset, window_id: int, horizon: int) -> Tensor:
        """Read the predicted frames (F, 3, H, W) of a window.

        Raises InputError for a file that is missing, not an image or of another size, and if the
        folder keeps the description of a window with other actions.
        """
        folder = window_folder(self.root, clips, window_id)
        _check_actions(folder / "window.json", clips, window_id, horizon)
        files = [folder / f"frame-{k:03d}.png" for k in range(horizon)]
        return torch.stack([read_png_frame(file, clips.size) for file in files])


def _check_actions(window: Path, clips: ClipDataset, window_id: int, horizon: int) -> None:
    """Raise InputError if a peer's window, where it was kept, is another one than this."""
    written, context = _read_description(window), clips.length - horizon
    if not written:
        return
    actions = clips.labels(np.array([window_id]))[0][0].tolist()
    compared = min(len(actions), len(written["actions"]))
    if written.get("context") != context or written["actions"][:compared] != actions[:compared]:
        raise InputError(
            f"{window}: was written for other given frames or other actions: export the windows of "
            "these data, and predict them"
        )


def _check_replaced(window: Path, replaced: ReplacedActions) -> None:
    """Raise InputError if a peer's window, where it was kept, was written for other actions."""
    description = _read_description(window)
    written = description.get("replaced", "all") if description else replaced
    if written != replaced:
        raise InputError(f"{window}: was written with --delta-actions {written}, not {replaced}")


def _read_description(window: Path) -> dict[str, Any]:
    """Return the content of a window.json, {} without one. Raises InputError for any other file."""
    if not window.exists():
        return {}
    try:
        written = json.loads(window.read_text())
    except ValueError:
        written = None
    if not isinstance(written, dict) or not isinstance(written.get("actions"), list):
        raise InputError(f"{window}: describes no window: export it again")
    return written


def read_png_frame(file: Path, size: tuple[int, ...]) -> Tensor:
    """Read an image as (3, H, W) in [0, 1]."""
    try:
        pixels = np.array(Image.open(file).convert("RGB"))
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
    return to_float_frames(torch.from_numpy(pixels))


def export_windows(
    root: Path,
    clips: ClipDataset,
    window_ids: np.ndarray,
    *,
    context: int,
    delta_t: int,
    replaced: ReplacedActions = "all",
    seed: int,
    action_count: int,
) -> None:
    """Write windows in the layout above."""
    batch = clips.batch(window_ids)
    random_BT = (
        replace_last_action(batch.actions_BT, context, delta_t, seed, action_count)
        if replaced == "last"
        else random_actions(batch.actions_BT, context, seed, action_count)
    )
    horizon = clips.length - context
    names = [f"given-{k:03d}.png" for k in range(context)]
    names += [f"truth-{k:03d}.png" for k in range(horizon)]
    for row, window_id in enumerate(window_ids.tolist()):
        folder = window_folder(root, clips, window_id)
        folder.mkdir(parents=True, exist_ok=True)
        for name, pixels in zip(names, batch.frames_BTHWC[row].numpy(), strict=True):
            Image.fromarray(pixels).save(folder / name)
        window = {
            "game": clips.window_game(window_id),
            "context": context,
            "horizon": horizon,
            "delta_t": delta_t,
            "replaced": replaced,
            "actions": batch.actions_BT[row].tolist(),
            "random_actions": random_BT[row].tolist(),
        }
        write_json_atomic(folder / "window.json", window)

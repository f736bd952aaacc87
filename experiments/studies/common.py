"""Flags of the studies of one model, opening the model, and writing results and pictures."""

import io
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from envs.utils.atomic_io import write_atomic, write_json_atomic
from envs.utils.progress import console, progress
from experiments.arguments import check_folder, default_threads
from worldmodel import WorldModel, load_world_model
from worldmodel.data.batch import to_float_frames
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.evaluation.evaluate import plan_windows

Mode = Literal["one_pass", "autoregressive"]
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's palette, safe for the colour-blind."""


@dataclass(frozen=True, kw_only=True)
class ModelArgs:
    """The flags of every study of one model."""

    model: tyro.conf.Positional[Path]
    """World model: the `model` folder of `train dynamics`, `export` or `pipeline`."""
    data: tuple[Path, ...]
    """Episode folders that the model was not trained on."""
    out: Path
    """Folder of the results and pictures."""
    limit: int = 16
    """Maximum number of windows of each game, evenly spread."""
    seed: int = 0
    """Random seed of the sampling."""
    threads: int | None = None
    """Torch threads. Default: one on each core."""


def open_model(args: ModelArgs) -> WorldModel:
    """Return the model of the flags. Raises InputError where it or the data is missing."""
    check_folder(args.model, "world model", "pipeline")
    for folder in args.data:
        check_folder(folder, "data folder", "collect")

    torch.set_num_threads(args.threads or default_threads())
    return load_world_model(args.model)


@dataclass(frozen=True)
class StudyWindows:
    """Windows of one game: the model driven by its buttons, frames, actions, session ids."""

    game: str
    model: WorldModel
    frames_BTHWC: Tensor
    actions_BT: Tensor
    sessions: list[str]

    @property
    def frames_BTCHW(self) -> Tensor:
        """Return the frames in [0, 1], as the model takes them."""
        return to_float_frames(self.frames_BTHWC)


def windows_of(
    args: ModelArgs, model: WorldModel, length: int, stride: int, size: int = 4
) -> Iterator[StudyWindows]:
    """Yield at most `args.limit` windows of each game, evenly spread, `size` at a time."""
    with tempfile.TemporaryDirectory() as cache:
        clips = ClipDataset(args.data, cache, length=length, stride=stride, split=None)
        plan = plan_windows(clips, args.limit)
        with progress("windows", sum(map(len, plan.values()))) as bar:
            for game, window_ids in plan.items():
                driven = model.for_game(game)
                for at in range(0, len(window_ids), size):
                    batch = clips.batch(window_ids[at : at + size])
                    places = [
                        clips.locate(window_id)[0] for window_id in batch.window_ids_B.tolist()
                    ]
                    sessions = [clips.episodes[place].session_id for place in places]
                    yield StudyWindows(game, driven, batch.frames_BTHWC, batch.actions_BT, sessions)
                    bar.advance(len(sessions), game)


def gain(figures: Mapping[str, Any], part: str, name: str = "psnr") -> float | None:
    """Return the gain of the prediction over copying the last frame, from a SET of `evaluate`."""
    made, copied = figures["prediction"][part][name], figures["copy"][part][name]
    return None if made is None or copied is None else made - copied


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, drawn without a screen."""
    return Figure(figsize=(width, height), layout="constrained")


def figure_png(figure: Figure) -> bytes:
    """Return the figure as a PNG file, without the frame on two sides of each plot."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, dpi=110)
    return file.getvalue()


def write_result(
    args: ModelArgs, name: str, results: Mapping[str, Any], pictures: Mapping[str, bytes]
) -> None:
    """Write `<name>.json`, with the flags as settings, and `<name>.png` or `<name>-<part>.png`."""
    for part, data in pictures.items():
        write_atomic(args.out / (f"{name}-{part}.png" if part else f"{name}.png"), data)
    settings = json.loads(json.dumps(asdict(args), default=str))
    write_json_atomic(args.out / f"{name}.json", {"settings": settings, **results})
    plural = "s" if len(pictures) != 1 else ""
    console.print(f"written to {args.out}: {name}.json and {len(pictures)} picture{plural}")

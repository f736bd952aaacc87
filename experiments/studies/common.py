"""What the studies of one model share: their flags, opening the model, and writing figures and pictures."""

import io
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from experiments.arguments import check_folder, default_threads

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from worldmodel import WorldModel


Mode = Literal["one_pass", "autoregressive"]
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's palette, safe for the colour-blind."""


@dataclass(frozen=True, kw_only=True)
class ModelArgs:
    """The flags of every study of one model."""

    model: tyro.conf.Positional[Path]
    """The world model: the `model` folder of `train dynamics`, or one that `export` or the pipeline made."""
    data: tuple[Path, ...]
    """Folders of episodes that the model was not trained on."""
    out: Path
    """Folder of the figures and pictures."""
    limit: int = 16
    """At most this many windows of each game, evenly spread."""
    seed: int = 0
    """Seed of the sampling."""
    threads: int | None = None
    """Torch threads. Default: the cores that this process may use."""


def open_model(args: ModelArgs) -> "WorldModel":
    """The model of the flags, ready to predict. Raises InputError where it or the data is not there."""
    check_folder(args.model, "world model", "pipeline")
    for folder in args.data:
        check_folder(folder, "data folder", "collect")

    import torch

    from worldmodel import load_world_model

    torch.set_num_threads(args.threads or default_threads())
    return load_world_model(args.model)


@dataclass(frozen=True)
class StudyWindows:
    """Windows of one game: the model driven by its buttons, frames uint8 and float, actions, and their episodes."""

    game: str
    model: "WorldModel"
    frames_BTHWC: "Tensor"
    actions_BT: "Tensor"
    sessions: list[str]

    @property
    def frames_BTCHW(self) -> "Tensor":
        """Frames in [0, 1], as the model takes them."""
        from worldmodel.data.batch import to_float_frames

        return to_float_frames(self.frames_BTHWC)


def windows_of(args: ModelArgs, model: "WorldModel", length: int, stride: int, size: int = 4) -> Iterator[StudyWindows]:
    """At most `args.limit` windows of each game, evenly spread, `size` at a time."""
    from envs.utils.progress import progress
    from worldmodel.data.clip_dataset import ClipDataset
    from worldmodel.evaluation.evaluate import plan_windows

    with tempfile.TemporaryDirectory() as cache:
        clips = ClipDataset(args.data, cache, length=length, stride=stride, split=None)
        plan = plan_windows(clips, args.limit)
        with progress("windows", sum(map(len, plan.values()))) as bar:
            for game, window_ids in plan.items():
                driven = model.for_game(game)
                for at in range(0, len(window_ids), size):
                    batch = clips.batch(window_ids[at : at + size])
                    places = [clips.locate(window_id)[0] for window_id in batch.window_ids_B.tolist()]
                    sessions = [clips.episodes[place].session_id for place in places]
                    yield StudyWindows(game, driven, batch.frames_BTHWC, batch.actions_BT, sessions)
                    bar.advance(len(sessions), game)


def settings_of(args: ModelArgs) -> dict[str, Any]:
    """The flags, as JSON data."""
    return dict(json.loads(json.dumps(asdict(args), default=str)))


def gain(figures: Mapping[str, Any], part: str, name: str = "psnr") -> float | None:
    """What a model's prediction is better than copying the last frame, of a SET that `evaluate` gave."""
    made, copied = figures["prediction"][part][name], figures["copy"][part][name]
    return None if made is None or copied is None else made - copied


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, drawn without a screen."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain_axes(figure: "Figure") -> None:
    """No frame on two sides of each plot."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)


def figure_png(figure: "Figure") -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, dpi=110)
    return file.getvalue()


def write_result(out: Path, name: str, figures: Any, pictures: Mapping[str, bytes]) -> None:
    """Write `<name>.json` and the pictures, `<name>.png` or `<name>-<part>.png`, and say where they lie."""
    from envs.utils.atomic_io import write_atomic, write_json_atomic
    from envs.utils.progress import console

    for part, data in pictures.items():
        write_atomic(out / (f"{name}-{part}.png" if part else f"{name}.png"), data)
    write_json_atomic(out / f"{name}.json", figures)
    console.print(f"written to {out}: {name}.json and {len(pictures)} picture{'s' if len(pictures) != 1 else ''}")

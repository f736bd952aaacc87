"""What the studies of one model share: their flags, opening the model, and writing figures and pictures."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from experiments.common import check_folder, default_threads

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from worldmodel import WorldModel

Mode = Literal["one_pass", "autoregressive"]
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's palette, safe for the colour-blind."""


@dataclass(frozen=True, kw_only=True)
class ModelArgs:
    """The flags of every study of one model."""

    model: tyro.conf.Positional[Path]
    """The world model: a folder that `map`, the pipeline or `save` wrote."""
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
    return load_world_model(args.model).for_game(None)


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
    from envs.files import write_atomic, write_json_atomic
    from envs.runs import console

    for part, data in pictures.items():
        write_atomic(out / (f"{name}-{part}.png" if part else f"{name}.png"), data)
    write_json_atomic(out / f"{name}.json", figures)
    console.print(f"written to {out}: {name}.json and {len(pictures)} picture{'s' if len(pictures) != 1 else ''}")

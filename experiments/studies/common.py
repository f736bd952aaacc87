"""Shared parts of the studies: flags, test windows, estimates, and writing of results."""

import io
import json
import math
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib.figure import Figure
from torch import Tensor

from envs.utils.atomic_io import read_json, write_atomic, write_json_atomic
from envs.utils.errors import InputError
from envs.utils.progress import console, progress
from experiments.arguments import default_threads
from experiments.studies.arguments import ModelArgs
from worldmodel import WorldModel
from worldmodel.data.batch import to_float_frames
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.evaluation.evaluate import spread_windows, windows_by_game
from worldmodel.statistics import Estimate, estimate

T = TypeVar("T")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's palette for colour-blind readers."""


def open_study_model(args: ModelArgs) -> WorldModel:
    """Return the model of the flags."""
    torch.set_num_threads(args.threads or default_threads())
    return args.load_model(args.model)


@dataclass(frozen=True)
class StudyWindows:
    """Batch of windows of one game, with the model for its buttons. number: index of the batch."""

    number: int
    game: str
    model: WorldModel
    frames_BTHWC: Tensor
    actions_BT: Tensor
    sessions: list[str]
    starts: list[int]
    """First frame of each window in its episode."""

    @property
    def frames_BTCHW(self) -> Tensor:
        """Frames in [0, 1], as the model takes them."""
        return to_float_frames(self.frames_BTHWC)


def iter_windows(
    args: ModelArgs, model: WorldModel, length: int, stride: int, size: int = 4
) -> Iterator[StudyWindows]:
    """Yield at most `args.limit` windows of each game, evenly spread, `size` at a time."""
    number = 0
    with tempfile.TemporaryDirectory() as cache:
        clips = ClipDataset(args.data, cache, length=length, stride=stride, split=None)
        plan = spread_windows(windows_by_game(clips), args.limit)
        with progress("windows", sum(map(len, plan.values()))) as bar:
            for game, window_ids in plan.items():
                game_model = model.for_game(game)
                for start in range(0, len(window_ids), size):
                    batch = clips.batch(window_ids[start : start + size])
                    places = [clips.locate(window) for window in batch.window_ids_B.tolist()]
                    sessions = [clips.episodes[index].session_id for index, _ in places]
                    starts = [start for _, start in places]
                    pixels = batch.frames_BTHWC.to(model.device)
                    actions = batch.actions_BT.to(model.device)
                    yield StudyWindows(number, game, game_model, pixels, actions, sessions, starts)
                    number += 1
                    bar.advance(len(sessions), game)


def map_windows(
    function: Callable[[StudyWindows], T],
    args: ModelArgs,
    model: WorldModel,
    length: int,
    stride: int,
) -> dict[str, list[T]]:
    """Return the results of `function` on the batches of `iter_windows`, by game."""
    results: dict[str, list[T]] = {}
    for windows in iter_windows(args, model, length, stride):
        results.setdefault(windows.game, []).append(function(windows))
    return results


def gain(results: Mapping[str, Any], part: str, name: str = "psnr") -> float | None:
    """Return the gain of the prediction over copying the last frame, from a SET of `evaluate`."""
    predicted, copied = results["prediction"][part][name], results["copy"][part][name]
    return None if predicted is None or copied is None else predicted - copied


def estimate_json(values_B: Tensor, groups_B: Tensor | None = None) -> dict[str, float | None]:
    """Return mean and 95 % interval as JSON data; the interval is null for a single group."""
    return interval_json(estimate(values_B, groups_B))


def interval_json(found: Estimate) -> dict[str, float | None]:
    """Return an estimate as JSON data; its interval is null where there is none."""
    low, high = (bound if math.isfinite(bound) else None for bound in (found.low, found.high))
    return {"mean": found.mean, "low": low, "high": high}


def interval_text(value: Mapping[str, Any] | None, form: str = ".2f") -> str:
    """Return `3.21 (2.80 to 3.62)`; without an interval the mean alone, else a dash."""
    if value is None or value["mean"] is None:
        return "-"
    if value["low"] is None:
        return f"{value['mean']:{form}}"
    return f"{value['mean']:{form}} ({value['low']:{form}} to {value['high']:{form}})"


def check_continues(
    out: Path, settings: Mapping[str, Any], what: str, ignored: Collection[str] = ()
) -> None:
    """Write the settings of a study to `out`/config.json, or check that it has the same ones.

    `what` the study is, in messages. Raises InputError if the folder holds the study with other
    settings, of which the `ignored` ones may differ, or something else.
    """
    file, plain = out / "config.json", json.loads(json.dumps(settings, default=str))
    if not file.exists():
        if out.exists() and any(out.iterdir()):
            raise InputError(f"{out} holds something else than {what}: give another --out")
        write_json_atomic(file, plain)
        return
    recorded = read_json(file)
    for name, value in plain.items():
        if name not in ignored and recorded.get(name) != value:
            raise InputError(
                f"{out} holds {what} whose {name} is {recorded.get(name)}, not {value}: "
                "give another --out"
            )


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, without a display."""
    return Figure(figsize=(width, height), layout="constrained")


def figure_png(figure: Figure) -> bytes:
    """Return the figure as a PNG file, with legends and without the upper and right spines."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, frameon=False)
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

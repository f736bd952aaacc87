"""How good predictions are against the number of sampling steps, and against the time that these take."""

import itertools
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments.studies.common import (
    COLOURS,
    Mode,
    ModelArgs,
    figure_png,
    gain,
    new_figure,
    open_model,
    plain_axes,
    settings_of,
    windows_of,
    write_result,
)

if TYPE_CHECKING:
    from torch import Tensor

    from worldmodel import WorldModel


@dataclass(frozen=True, kw_only=True)
class Args(ModelArgs):
    """Writes steps.json and steps.png to --out."""

    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 25, 50)
    """Numbers of MaskGIT passes to compare."""
    modes: tuple[Mode, ...] = ("one_pass", "autoregressive")
    """How predictions are sampled."""
    horizon: int = 10
    """Frames predicted, after 2 given ones."""
    stride: int = 20
    """Frames between the starts of two windows."""
    temperature: float = 1.0
    """Of the sampling; 0 without noise."""
    repeats: int = 3
    """How often the time is taken; the shortest counts."""


def run(args: Args) -> None:
    """Measure every number of steps in every mode."""
    from envs.utils.progress import console

    rows = measure(args)
    write_result(args.out, "steps", {"settings": settings_of(args), "rows": rows}, {"": plot(rows)})
    for row in rows:
        gains = ", ".join(
            f"{words} {row[name]:+.2f} dB"
            for name, words in (("one_step", "first frame"), ("all_steps", "all frames"))
            if row[name] is not None
        )
        console.print(
            f"{row['mode']}, {row['steps']} steps: {gains} over copying, {row['seconds_a_frame']:.3f} s a frame"
        )


def measure(args: Args) -> list[dict[str, Any]]:
    """A row for each mode and number of steps: figures of `evaluate`, and seconds for a frame that is generated."""
    from envs.utils.progress import progress
    from worldmodel.evaluation.evaluate import evaluate

    model, rows = open_model(args), []
    first = next(windows_of(args, model, 2 + args.horizon, args.stride, size=2))
    frames = first.frames_BTCHW[:, :2]
    with progress("sampling steps", len(args.steps) * len(args.modes)) as bar, tempfile.TemporaryDirectory() as cache:
        for mode, steps in itertools.product(args.modes, args.steps):
            sampling: dict[str, Any] = {"steps": steps, "mode": mode, "temperature": args.temperature}
            options: dict[str, Any] = {
                "horizon": args.horizon,
                "stride": args.stride,
                "limit": args.limit,
                "seed": args.seed,
            }
            found = evaluate(model, args.data, distance=False, cache_dir=cache, **options, **sampling)
            took = seconds(first.model, frames, first.actions_BT, args.repeats, sampling)
            rows.append(_row(found["overall"], mode, steps, took))
            bar.advance(note=f"{mode}, {steps}")
    return rows


def _row(figures: Mapping[str, Any], mode: str, steps: int, seconds_a_frame: float) -> dict[str, Any]:
    return {
        "mode": mode,
        "steps": steps,
        "seconds_a_frame": seconds_a_frame,
        "one_step": gain(figures, "one_step"),
        "all_steps": gain(figures, "mean"),
        "moving": gain(figures, "mean", "moving_psnr"),
        "delta_psnr": figures["delta_psnr"],
        "prediction": figures["prediction"],
        "copy": figures["copy"],
    }


def seconds(
    model: "WorldModel", frames_BPCHW: "Tensor", actions_BA: "Tensor", repeats: int, sampling: Mapping[str, Any]
) -> float:
    """Shortest wall time for a frame of a window, of several times that all are generated."""
    import torch

    best = float("inf")
    for _ in range(repeats):
        generator = torch.Generator().manual_seed(0)
        started = time.perf_counter()
        made = model.generate(frames_BPCHW, actions_BA, generator=generator, **sampling)
        best = min(best, (time.perf_counter() - started) / (made.shape[0] * made.shape[1]))
    return best


def plot(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Quality against steps on the left, against time on the right. PNG."""
    figure = new_figure(11, 4)
    shown = (("one_step", "first frame", "-"), ("all_steps", "mean of all frames", "--"))
    for axes, of, label in zip(
        figure.subplots(1, 2), ("steps", "seconds_a_frame"), ("sampling steps", "seconds a frame"), strict=True
    ):
        for number, mode in enumerate(dict.fromkeys(row["mode"] for row in rows)):
            mine = [row for row in rows if row["mode"] == mode]
            for name, words, dashes in shown:
                x, y = [row[of] for row in mine], [row[name] for row in mine]
                axes.plot(x, y, dashes, marker="o", color=COLOURS[number], label=f"{mode.replace('_', ' ')}, {words}")
        axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.set_ylabel("PSNR over copying, dB")
    figure.axes[0].legend(fontsize=8, frameon=False)
    plain_axes(figure)
    return figure_png(figure)

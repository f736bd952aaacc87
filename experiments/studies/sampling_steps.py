"""Prediction quality over the number of sampling steps, and over the time they take."""

import itertools
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from envs.utils.progress import console, progress
from experiments.studies.common import (
    COLOURS,
    Mode,
    ModelArgs,
    figure_png,
    gain,
    new_figure,
    open_model,
    windows_of,
    write_result,
)
from worldmodel import WorldModel
from worldmodel.evaluation.evaluate import evaluate


@dataclass(frozen=True, kw_only=True)
class Args(ModelArgs):
    """Write steps.json and steps.png to --out."""

    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 25, 50)
    """Numbers of MaskGIT steps to compare."""
    modes: tuple[Mode, ...] = ("one_pass", "autoregressive")
    """Sampling modes."""
    horizon: int = 10
    """Number of predicted frames, after 2 given ones."""
    stride: int = 20
    """Frames between the starts of two windows."""
    temperature: float = 1.0
    """Sampling temperature; 0 for no noise."""
    repeats: int = 3
    """Number of timings; the shortest counts."""


def run(args: Args) -> None:
    """Measure every number of steps in every mode."""
    rows = measure(args)
    write_result(args, "steps", {"rows": rows}, {"": plot(rows)})
    for row in rows:
        gains = ", ".join(
            f"{words} {row[name]:+.2f} dB"
            for name, words in (("one_step", "first frame"), ("all_steps", "all frames"))
            if row[name] is not None
        )
        console.print(
            f"{row['mode']}, {row['steps']} steps: {gains} over copying, "
            f"{row['seconds_a_frame']:.3f} s a frame"
        )


def measure(args: Args) -> list[dict[str, Any]]:
    """Return a row for each mode and number of steps: results of `evaluate`, seconds per frame."""
    model, rows = open_model(args), []
    first = next(windows_of(args, model, 2 + args.horizon, args.stride, size=2))
    frames = first.frames_BTCHW[:, :2]
    with (
        progress("sampling steps", len(args.steps) * len(args.modes)) as bar,
        tempfile.TemporaryDirectory() as cache,
    ):
        for mode, steps in itertools.product(args.modes, args.steps):
            sampling: dict[str, Any] = {
                "steps": steps,
                "mode": mode,
                "temperature": args.temperature,
            }
            options: dict[str, Any] = {
                "horizon": args.horizon,
                "stride": args.stride,
                "limit": args.limit,
                "seed": args.seed,
            }
            found = evaluate(
                model, args.data, distance=False, cache_dir=cache, **options, **sampling
            )
            took = seconds(first.model, frames, first.actions_BT, args.repeats, sampling)
            rows.append(_row(found["overall"], mode, steps, took))
            bar.advance(note=f"{mode}, {steps}")
    return rows


def _row(
    figures: Mapping[str, Any], mode: str, steps: int, seconds_a_frame: float
) -> dict[str, Any]:
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
    model: WorldModel,
    frames_BPCHW: Tensor,
    actions_BA: Tensor,
    repeats: int,
    sampling: Mapping[str, Any],
) -> float:
    """Return the shortest wall time per generated frame, of several repetitions."""
    best = float("inf")
    for _ in range(repeats):
        generator = torch.Generator().manual_seed(0)
        started = time.perf_counter()
        made = model.generate(frames_BPCHW, actions_BA, generator=generator, **sampling)
        best = min(best, (time.perf_counter() - started) / (made.shape[0] * made.shape[1]))
    return best


def plot(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a PNG of quality over steps on the left, over time on the right."""
    figure = new_figure(11, 4)
    shown = (("one_step", "first frame", "-"), ("all_steps", "mean of all frames", "--"))
    for axes, of, label in zip(
        figure.subplots(1, 2),
        ("steps", "seconds_a_frame"),
        ("sampling steps", "seconds a frame"),
        strict=True,
    ):
        for number, mode in enumerate(dict.fromkeys(row["mode"] for row in rows)):
            mine = [row for row in rows if row["mode"] == mode]
            for name, words, dashes in shown:
                x, y = [row[of] for row in mine], [row[name] for row in mine]
                axes.plot(
                    x,
                    y,
                    dashes,
                    marker="o",
                    color=COLOURS[number],
                    label=f"{mode.replace('_', ' ')}, {words}",
                )
        axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.set_ylabel("PSNR over copying, dB")
    figure.axes[0].legend(fontsize=8, frameon=False)
    return figure_png(figure)

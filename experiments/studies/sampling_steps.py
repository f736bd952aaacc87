"""Prediction quality over the number of sampling steps, and over the time they take."""

import itertools
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from envs.utils.progress import console, progress
from experiments.studies.arguments import StepsArgs
from experiments.studies.common import (
    COLOURS,
    StudyWindows,
    figure_png,
    gain,
    iter_windows,
    new_figure,
    open_study_model,
    write_result,
)
from worldmodel.evaluation.evaluate import evaluate


def run(args: StepsArgs) -> None:
    """Measure every number of steps in every mode."""
    rows = measure_steps(args)
    write_result(args, "steps", {"rows": rows}, {"": plot_steps(rows)})
    for row in rows:
        gains = ", ".join(
            f"{label} {row[name]:+.2f} dB"
            for name, label in (("one_step", "first frame"), ("all_steps", "all frames"))
            if row[name] is not None
        )
        console.print(
            f"{row['mode']}, {row['steps']} steps: {gains} over copying, "
            f"{row['seconds_a_frame']:.3f} s per frame"
        )


def measure_steps(args: StepsArgs) -> list[dict[str, Any]]:
    """Return a row for each mode and number of steps: results of `evaluate`, seconds per frame."""
    model, rows = open_study_model(args), []
    timed = next(iter_windows(args, model, 2 + args.horizon, args.stride, size=2))
    options = {name: getattr(args, name) for name in ("horizon", "stride", "limit", "seed")}
    with (
        progress("sampling steps", len(args.steps) * len(args.modes)) as bar,
        tempfile.TemporaryDirectory() as cache,
    ):
        for mode, steps in itertools.product(args.modes, args.steps):
            sampling = {"steps": steps, "mode": mode, "temperature": args.temperature}
            settings: dict[str, Any] = {**options, **sampling}
            results = evaluate(model, args.data, distance=False, cache_dir=cache, **settings)
            overall = results["overall"]
            rows.append(
                {
                    "mode": mode,
                    "steps": steps,
                    "seconds_a_frame": _seconds_per_frame(timed, args.repeats, sampling),
                    "one_step": gain(overall, "one_step"),
                    "all_steps": gain(overall, "mean"),
                    "moving": gain(overall, "mean", "moving_psnr"),
                    **{name: overall[name] for name in ("delta_psnr", "prediction", "copy")},
                }
            )
            bar.advance(note=f"{mode}, {steps}")
    return rows


def _seconds_per_frame(windows: StudyWindows, repeats: int, sampling: Mapping[str, Any]) -> float:
    """Return the shortest wall time per generated frame of several repetitions."""
    given = windows.frames_BTCHW[:, :2]
    seconds = []
    for _ in range(repeats):
        generator = torch.Generator(given.device).manual_seed(0)
        started = time.perf_counter()
        # The frames on the CPU: a GPU is done when they are there.
        predicted = windows.model.generate(
            given, windows.actions_BT, generator=generator, **sampling
        ).cpu()
        elapsed = time.perf_counter() - started
        seconds.append(elapsed / (predicted.shape[0] * predicted.shape[1]))
    return min(seconds)


def plot_steps(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a PNG of quality over steps on the left, over time on the right."""
    figure = new_figure(11, 4)
    lines = (("one_step", "first frame", "-"), ("all_steps", "mean of all frames", "--"))
    columns = (("steps", "sampling steps"), ("seconds_a_frame", "seconds per frame"))
    for axes, (column, x_label) in zip(figure.subplots(1, 2), columns, strict=True):
        for number, mode in enumerate(dict.fromkeys(row["mode"] for row in rows)):
            of_mode = [row for row in rows if row["mode"] == mode]
            x = [row[column] for row in of_mode]
            for name, label, style in lines:
                y, label = [row[name] for row in of_mode], f"{mode.replace('_', ' ')}, {label}"
                axes.plot(x, y, style, marker="o", color=COLOURS[number], label=label)
        axes.set_xscale("log")
        axes.set(xlabel=x_label, ylabel="PSNR over copying, dB")
    return figure_png(figure)

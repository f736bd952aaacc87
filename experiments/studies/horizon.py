"""Quality and controllability over time: PSNR, SSIM and delta-PSNR of each frame (App. F.2)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from envs.utils.progress import console
from experiments.studies.common import (
    COLOURS,
    Mode,
    ModelArgs,
    StudyWindows,
    figure_png,
    new_figure,
    open_model,
    windows_of,
    write_result,
)
from worldmodel.config import GenerationMode
from worldmodel.metrics import frame_psnr, frame_ssim, random_actions
from worldmodel.statistics import estimate

MEASURES = ("psnr", "ssim", "copy_psnr", "copy_ssim", "delta_psnr")


@dataclass(frozen=True, kw_only=True)
class Args(ModelArgs):
    """Write horizon.json and horizon.png to --out."""

    horizon: int = 30
    """Number of predicted frames; beyond the model's window, it slides."""
    context: int = 2
    """Number of given frames."""
    stride: int = 40
    """Frames between the starts of two windows."""
    modes: tuple[Mode, ...] = ("one_pass", "autoregressive")
    """Sampling modes."""
    sampling_steps: int = 25
    """MaskGIT steps."""


def run(args: Args) -> None:
    """Predict with true and with random actions in each mode, and compare frame by frame."""
    model = open_model(args)
    modes = {mode: measure(args, model, mode) for mode in args.modes}
    results = {"window": model.cfg.frames, "modes": modes}
    write_result(args, "horizon", results, {"": plot(results, args.context)})
    for mode, of in modes.items():
        for t in sorted({1, min(10, args.horizon), args.horizon}):
            value = {name: of["overall"][name][t - 1]["mean"] for name in MEASURES}
            console.print(
                f"{mode}, frame {t}: {value['psnr']:.2f} dB (copying {value['copy_psnr']:.2f}), "
                f"SSIM {value['ssim']:.3f}, delta-PSNR {value['delta_psnr']:.2f} dB"
            )


def measure(args: Args, model: Any, mode: GenerationMode) -> dict[str, Any]:
    """Return {"overall": SET, "games": {game: SET}}; a SET holds, for each measure and frame, the
    mean and its 95 % interval."""
    found: dict[str, list[dict[str, Tensor]]] = {}
    sessions: dict[str, list[str]] = {}
    for number, windows in enumerate(
        windows_of(args, model, args.context + args.horizon, args.stride)
    ):
        found.setdefault(windows.game, []).append(score(args, windows, mode, args.seed + number))
        sessions.setdefault(windows.game, []).extend(windows.sessions)
    games = {
        game: {name: torch.cat([part[name] for part in parts]) for name in MEASURES}
        for game, parts in found.items()
    }
    together = {name: torch.cat([values[name] for values in games.values()]) for name in MEASURES}
    return {
        "overall": _summary(together, [session for of in sessions.values() for session in of]),
        "games": {game: _summary(values, sessions[game]) for game, values in games.items()},
    }


def score(args: Args, windows: StudyWindows, mode: GenerationMode, seed: int) -> dict[str, Tensor]:
    """Return each measure of each window and predicted frame, (B, F). Both branches start from the
    same noise."""
    frames, context, model = windows.frames_BTCHW, args.context, windows.model
    given, truth = frames[:, :context], frames[:, context:]
    drawn = random_actions(windows.actions_BT, context, seed, model.actions)
    made, random = (
        model.generate(
            given,
            actions,
            steps=args.sampling_steps,
            mode=mode,
            generator=torch.Generator().manual_seed(seed),
        )
        for actions in (windows.actions_BT, drawn)
    )
    copied = given[:, -1:].expand_as(truth)
    quality = frame_psnr(truth, made)
    return {
        "psnr": quality,
        "ssim": frame_ssim(truth, made),
        "copy_psnr": frame_psnr(truth, copied),
        "copy_ssim": frame_ssim(truth, copied),
        "delta_psnr": quality - frame_psnr(truth, random),
    }


def _summary(
    values: Mapping[str, Tensor], sessions: list[str]
) -> dict[str, list[dict[str, float | None]]]:
    numbers = {session: number for number, session in enumerate(dict.fromkeys(sessions))}
    groups_B = torch.tensor([numbers[session] for session in sessions])
    made: dict[str, list[dict[str, float | None]]] = {}
    for name, values_BF in values.items():
        made[name] = []
        for values_B in values_BF.T:
            of = estimate(values_B, groups_B)
            bounds = {
                end: value if math.isfinite(value) else None
                for end, value in (("low", of.low), ("high", of.high))
            }
            made[name].append({"mean": of.mean, **bounds})
    return made


def plot(results: Mapping[str, Any], context: int) -> bytes:
    """Return a PNG of PSNR, SSIM and delta-PSNR over predicted frames, grey past the window."""
    figure = new_figure(13, 4)
    titles = {"psnr": "PSNR, dB", "ssim": "SSIM", "delta_psnr": "delta-PSNR, dB"}
    inside = results["window"] - context
    for axes, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for number, (mode, of) in enumerate(results["modes"].items()):
            values = of["overall"][name]
            x = range(1, len(values) + 1)
            axes.plot(
                x,
                [value["mean"] for value in values],
                color=COLOURS[number],
                label=mode.replace("_", " "),
            )
            if values[0]["low"] is not None:
                low, high = ([value[end] for value in values] for end in ("low", "high"))
                axes.fill_between(x, low, high, color=COLOURS[number], alpha=0.15, linewidth=0)
        of = next(iter(results["modes"].values()))["overall"]
        if f"copy_{name}" in of:
            axes.plot(
                x,
                [value["mean"] for value in of[f"copy_{name}"]],
                "--",
                color="0.4",
                label="copying",
            )
        if len(x) > inside:
            axes.axvspan(
                inside + 0.5, len(x) + 0.5, color="0.93", zorder=0, label="past the window"
            )
        axes.set(xlabel="predicted frame", title=title)
        axes.legend(fontsize=7, frameon=False)
    return figure_png(figure)

"""Quality and controllability over time: PSNR, SSIM and delta-PSNR of each frame (App. F.2)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from envs.utils.progress import console
from experiments.studies.arguments import HorizonArgs
from experiments.studies.common import (
    COLOURS,
    StudyWindows,
    estimate_json,
    figure_png,
    map_windows,
    new_figure,
    open_study_model,
    write_result,
)
from worldmodel import WorldModel
from worldmodel.config import GenerationMode
from worldmodel.metrics import frame_psnr, frame_ssim, random_actions

MEASURES = ("psnr", "ssim", "copy_psnr", "copy_ssim", "delta_psnr")


def run(args: HorizonArgs) -> None:
    """Predict with true and with random actions in each mode, and compare frame by frame."""
    model = open_study_model(args)
    modes = {mode: measure_horizon(args, model, mode) for mode in args.modes}
    results = {"window": model.cfg.frames, "modes": modes}
    write_result(args, "horizon", results, {"": plot_horizon(results, args.context)})
    for mode, result in modes.items():
        for t in sorted({1, min(10, args.horizon), args.horizon}):
            value = {name: result["overall"][name][t - 1]["mean"] for name in MEASURES}
            console.print(
                f"{mode}, frame {t}: {value['psnr']:.2f} dB (copying {value['copy_psnr']:.2f}), "
                f"SSIM {value['ssim']:.3f}, delta-PSNR {value['delta_psnr']:.2f} dB"
            )


def measure_horizon(args: HorizonArgs, model: WorldModel, mode: GenerationMode) -> dict[str, Any]:
    """Return {"overall": SET, "games": {game: SET}}.

    A SET holds the mean and its 95 % interval for each measure and predicted frame.
    """

    def measure(windows: StudyWindows) -> tuple[dict[str, Tensor], list[str]]:
        return _measure_windows(args, windows, mode), windows.sessions

    parts = map_windows(measure, args, model, args.context + args.horizon, args.stride)
    return {
        "overall": _summarise_parts([part for of_game in parts.values() for part in of_game]),
        "games": {game: _summarise_parts(of_game) for game, of_game in parts.items()},
    }


def _measure_windows(
    args: HorizonArgs, windows: StudyWindows, mode: GenerationMode
) -> dict[str, Tensor]:
    """Return each measure of each window and predicted frame, (B, F).

    True and random actions start from the same noise.
    """
    seed, context, model = args.seed + windows.number, args.context, windows.model
    frames = windows.frames_BTCHW
    given, truth = frames[:, :context], frames[:, context:]
    options: dict[str, Any] = {"steps": args.sampling_steps, "mode": mode}
    predicted, random = (
        model.generate(
            given, actions, generator=torch.Generator(model.device).manual_seed(seed), **options
        )
        for actions in (
            windows.actions_BT,
            random_actions(windows.actions_BT, context, seed, model.actions),
        )
    )
    copied = given[:, -1:].expand_as(truth)
    quality = frame_psnr(truth, predicted)
    return {
        "psnr": quality,
        "ssim": frame_ssim(truth, predicted),
        "copy_psnr": frame_psnr(truth, copied),
        "copy_ssim": frame_ssim(truth, copied),
        "delta_psnr": quality - frame_psnr(truth, random),
    }


def _summarise_parts(
    parts: list[tuple[dict[str, Tensor], list[str]]],
) -> dict[str, list[dict[str, float | None]]]:
    """Return the SET of parts: their measures, and the sessions of their windows."""
    sessions = [session for _, part in parts for session in part]
    numbers = {session: number for number, session in enumerate(dict.fromkeys(sessions))}
    groups_B = torch.tensor([numbers[session] for session in sessions])
    values_BF = {name: torch.cat([measures[name] for measures, _ in parts]) for name in MEASURES}
    return {
        name: [estimate_json(values_B, groups_B) for values_B in values.T]
        for name, values in values_BF.items()
    }


def plot_horizon(results: Mapping[str, Any], context: int) -> bytes:
    """Return a PNG of PSNR, SSIM and delta-PSNR over predicted frames, grey past the window."""
    figure = new_figure(13, 4)
    titles = {"psnr": "PSNR, dB", "ssim": "SSIM", "delta_psnr": "delta-PSNR, dB"}
    inside = results["window"] - context
    for axes, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for number, (mode, result) in enumerate(results["modes"].items()):
            colour = COLOURS[number]
            mean, low, high = (
                [value[key] for value in result["overall"][name]] for key in ("mean", "low", "high")
            )
            x = range(1, len(mean) + 1)
            axes.plot(x, mean, color=colour, label=mode.replace("_", " "))
            if low[0] is not None:
                axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        copies = {
            mode: [value["mean"] for value in result["overall"].get(f"copy_{name}", [])]
            for mode, result in results["modes"].items()
        }
        if len(set(map(tuple, copies.values()))) == 1:  # the same frames are given in each mode
            copies = {"": next(iter(copies.values()))}
        for number, (mode, copied) in enumerate(copies.items()):
            if copied:
                label = f"copying, {mode}" if mode else "copying"
                axes.plot(x, copied, "--", color=COLOURS[number] if mode else "0.4", label=label)
        if len(x) > inside:
            span = (inside + 0.5, len(x) + 0.5)
            axes.axvspan(*span, color="0.93", zorder=0, label="past the window")
        axes.set(xlabel="predicted frame", title=title)
    return figure_png(figure)

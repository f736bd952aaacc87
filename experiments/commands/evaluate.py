"""Evaluate a world model on held-out episodes against a copy-last-frame baseline."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.table import Table

from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError
from envs.utils.progress import console
from envs.utils.ray_session import ray_session
from experiments.arguments import RayArgs, check_folder, default_threads
from worldmodel import load_world_model
from worldmodel.evaluation.evaluate import evaluate, export
from worldmodel.evaluation.external_predictions import ExternalPredictions
from worldmodel.models.genie import WorldModel


@dataclass(frozen=True, kw_only=True)
class Args(RayArgs):
    """Measure PSNR, SSIM, delta-PSNR and the Frechet distance on held-out episodes (App. A.2).

    Predictions of other models can be scored as well: --export-windows writes
    DIR/SESSION/FIRST-FRAME/ with given-000.png..., truth-000.png... and window.json (actions,
    random_actions). The other model adds frame-000.png..., one for each truth, and random-003.png
    (frame 4 under random_actions) for delta-PSNR. --peer DIR scores them, with the same --data,
    --horizon, --stride, --limit and --seed.
    """

    model: tyro.conf.Positional[Path | None] = None
    """World model: the `model` folder of `train dynamics`, `export` or `pipeline`."""
    peer: Path | None = None
    """Folder of another model's predictions, instead of a model."""
    export_windows: Path | None = None
    """Write the test windows to this folder, for another model to predict, and end."""
    data: tuple[Path, ...]
    """Episode folders that the model was not trained on."""
    out: Path | None = None
    """Also write the results to this JSON file."""
    context: int = 2
    """Number of given frames."""
    horizon: int = 10
    """Number of predicted frames."""
    stride: int = 20
    """Frames between the starts of two windows."""
    mode: Literal["one_pass", "autoregressive"] = "autoregressive"
    """one_pass: all frames at once; autoregressive: in chunks, given all frames before."""
    sampling_steps: int | None = None
    """MaskGIT steps per chunk of frames. Default: the model's number."""
    limit: int | None = None
    """Maximum number of windows of each game."""
    inception: Path | None = None
    """TorchScript file of Inception v3, for FID. Default: FID on EfficientNet-Lite0 features."""
    seed: int = 0
    """Seed of the sampling."""
    workers: int = 0
    """Ray workers, each with one torch thread; 0 evaluates in this process. The results are the
    same."""
    threads: int | None = None
    """Torch threads. Default: one on each core."""


def run(args: Args) -> None:
    """Evaluate, print a table and write the JSON file; or export the windows."""
    if sum(given is not None for given in (args.model, args.peer, args.export_windows)) != 1:
        raise InputError("evaluate: give one of MODEL, --peer DIR and --export-windows DIR")
    for folder in args.data:
        check_folder(folder, "data folder", "collect")

    options: dict[str, Any] = {} if args.sampling_steps is None else {"steps": args.sampling_steps}
    options |= {
        name: getattr(args, name)
        for name in ("context", "horizon", "stride", "mode", "limit", "seed")
    }
    data = [str(folder) for folder in args.data]
    if args.export_windows is not None:
        count = export(args.export_windows, data, **options)
        console.print(f"{count} windows written to {args.export_windows}")
        return
    model = open_model(args)
    with ray_session(args.ray_address) if args.workers else nullcontext():
        figures = evaluate(model, data, inception=args.inception, workers=args.workers, **options)
    if args.out is not None:
        write_json_atomic(args.out, figures)
    console.print(as_table(figures))


def open_model(args: Args) -> WorldModel | ExternalPredictions:
    """Return the model, or the predictions of another one."""
    torch.set_num_threads(args.threads or default_threads())
    if args.peer is not None:
        return ExternalPredictions(args.peer)
    assert args.model is not None
    return load_world_model(check_folder(args.model, "world model", "pipeline"))


def as_table(figures: dict[str, Any]) -> Table:
    """Return a table of all games: the model's results above those of copying the last frame."""
    horizon = figures["settings"]["horizon"]
    heads = (
        "1 step, dB",
        f"{horizon} steps, dB",
        "moving, dB",
        "SSIM",
        figures["distance_name"] or "distance",
    )
    table = Table(
        "", "", "windows", "rebuilt, dB", *heads, "delta-PSNR, dB", box=None, header_style="bold"
    )

    def told(value: float | None, digits: int = 2) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    sets = {
        **figures["games"],
        **({"all": figures["overall"]} if len(figures["games"]) > 1 else {}),
    }
    for game, values in sets.items():
        for side in ("prediction", "copy"):
            of, mine = values[side], side == "prediction"
            delta = values["delta_psnr"]
            table.add_row(
                game if mine else "",
                "model" if mine else "copy",
                str(values["windows"]) if mine else "",
                told(values["reconstruction"].get("psnr")) if mine else "",
                told(of["one_step"]["psnr"]),
                told(of["mean"]["psnr"]),
                told(of["mean"]["moving_psnr"]),
                told(of["mean"]["ssim"], 3),
                told(of["distance"], 1),
                f"{told(delta['mean'])} [{told(delta['low'])}, {told(delta['high'])}]"
                if mine
                else "",
            )
    return table

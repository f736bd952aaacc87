"""Measure a world model on held-out episodes, beside copying the last frame."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from envs.utils.ray_session import ray_session
from experiments.arguments import RayArgs, check_folder, default_threads

if TYPE_CHECKING:
    from rich.table import Table

    from worldmodel.evaluation.external_predictions import ExternalPredictions
    from worldmodel.models.genie import WorldModel


@dataclass(frozen=True, kw_only=True)
class Args(RayArgs):
    """Measure PSNR, SSIM, delta-PSNR and the Frechet distance of predictions on held-out episodes (appendix A.2).

    Other models are measured by the pictures that they make: --export-windows writes DIR/SESSION/FIRST-FRAME/ with
    given-000.png and so on, truth-000.png and so on, and window.json (actions, random_actions); the other model adds
    frame-000.png and so on, one for each truth, and random-003.png (frame 4 under random_actions) for delta-PSNR;
    --peer DIR scores them, with the same --data, --horizon, --stride, --limit and --seed.
    """

    model: tyro.conf.Positional[Path | None] = None
    """The world model: the `model` folder of `train dynamics`, or one that `export` or the pipeline made."""
    peer: Path | None = None
    """Instead of a model: the folder of another model's predictions."""
    export_windows: Path | None = None
    """Instead of measuring: write the test windows here, for a peer to predict."""
    data: tuple[Path, ...]
    """Folders of episodes that the model was not trained on."""
    out: Path | None = None
    """Write the figures to this JSON file too."""
    context: int = 2
    """Frames given."""
    horizon: int = 10
    """Frames predicted."""
    stride: int = 20
    """Frames between the starts of two windows."""
    mode: Literal["one_pass", "autoregressive"] = "autoregressive"
    """All frames at once, or two at a time given all before."""
    sampling_steps: int | None = None
    """MaskGIT steps for each group of frames. Default: the model's own number."""
    limit: int | None = None
    """At most this many windows of each game."""
    inception: Path | None = None
    """TorchScript file of Inception v3, for FID proper. Without it FID-EfficientNetLite0 is measured."""
    seed: int = 0
    """Seed of the sampling."""
    workers: int = 0
    """Ray workers that score windows, each with one torch thread; 0 scores them here. The numbers are the same."""
    threads: int | None = None
    """Torch threads. Default: the cores that this process may use."""


def run(args: Args) -> None:
    """Evaluate, print a table for each game, and write the JSON; or write windows for a peer."""
    from envs.utils.errors import InputError

    if sum(given is not None for given in (args.model, args.peer, args.export_windows)) != 1:
        raise InputError("evaluate: give one of MODEL, --peer DIR and --export-windows DIR")
    for folder in args.data:
        check_folder(folder, "data folder", "collect")

    from envs.utils.atomic_io import write_json_atomic
    from envs.utils.progress import console
    from worldmodel.evaluation.evaluate import evaluate, export

    options: dict[str, Any] = {} if args.sampling_steps is None else {"steps": args.sampling_steps}
    options |= {name: getattr(args, name) for name in ("context", "horizon", "stride", "mode", "limit", "seed")}
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


def open_model(args: Args) -> "WorldModel | ExternalPredictions":
    """What is measured: the model, or the peer's pictures."""
    import torch

    from worldmodel import load_world_model
    from worldmodel.evaluation.external_predictions import ExternalPredictions

    torch.set_num_threads(args.threads or default_threads())
    if args.peer is not None:
        return ExternalPredictions(args.peer)
    assert args.model is not None
    return load_world_model(check_folder(args.model, "world model", "pipeline"))


def as_table(figures: dict[str, Any]) -> "Table":
    """The figures of every game and of all, the model's beside those of copying the last given frame."""
    from rich.table import Table

    horizon = figures["settings"]["horizon"]
    heads = ("1 step, dB", f"{horizon} steps, dB", "moving, dB", "SSIM", figures["distance_name"] or "distance")
    table = Table("", "", "windows", "rebuilt, dB", *heads, "delta-PSNR, dB", box=None, header_style="bold")

    def told(value: float | None, digits: int = 2) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    sets = {**figures["games"], **({"all": figures["overall"]} if len(figures["games"]) > 1 else {})}
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
                f"{told(delta['mean'])} [{told(delta['low'])}, {told(delta['high'])}]" if mine else "",
            )
    return table

"""Measure a world model on held-out episodes, beside copying the last frame."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from experiments.common import check_folder, default_threads

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Args:
    """Measure PSNR, SSIM, delta-PSNR and the Frechet distance of predictions on held-out episodes (appendix A.2)."""

    model: tyro.conf.Positional[Path]
    """The world model: a folder that `map`, the pipeline or `save` wrote."""
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
    threads: int | None = None
    """Torch threads. Default: the cores that this process may use."""


def run(args: Args) -> None:
    """Evaluate, print a table for each game, and write the JSON."""
    check_folder(args.model, "world model", "pipeline")
    for folder in args.data:
        check_folder(folder, "data folder", "collect")

    import torch

    from envs.files import write_json_atomic
    from envs.runs import console
    from worldmodel import load_world_model
    from worldmodel.evaluate import evaluate

    torch.set_num_threads(args.threads or default_threads())
    options: dict[str, Any] = {} if args.sampling_steps is None else {"steps": args.sampling_steps}
    figures = evaluate(
        load_world_model(args.model),
        [str(folder) for folder in args.data],
        context=args.context,
        horizon=args.horizon,
        stride=args.stride,
        mode=args.mode,
        limit=args.limit,
        inception=args.inception,
        seed=args.seed,
        **options,
    )
    if args.out is not None:
        write_json_atomic(args.out, figures)
    console.print(as_table(figures))


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
                told(values["reconstruction"]["psnr"]) if mine else "",
                told(of["one_step"]["psnr"]),
                told(of["mean"]["psnr"]),
                told(of["mean"]["moving_psnr"]),
                told(of["mean"]["ssim"], 3),
                told(of["distance"], 1),
                f"{told(delta['mean'])} [{told(delta['low'])}, {told(delta['high'])}]" if mine else "",
            )
    return table

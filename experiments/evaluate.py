"""Measure a world model on held-out episodes, beside copying the last frame."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from experiments.common import check_folder, default_threads


@dataclass(frozen=True, kw_only=True)
class Args:
    """Measure PSNR, SSIM, delta-PSNR and the Frechet distance of predictions on held-out episodes (appendix A.2)."""

    model: tyro.conf.Positional[Path]
    """The world model: a folder that `GenieReduxG.save` or the pipeline wrote."""
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
    from worldmodel import GenieReduxG
    from worldmodel.evaluate import evaluate

    torch.set_num_threads(args.threads or default_threads())
    options: dict[str, Any] = {} if args.sampling_steps is None else {"steps": args.sampling_steps}
    figures = evaluate(
        GenieReduxG.load(args.model),
        [str(folder) for folder in args.data],
        context=args.context,
        horizon=args.horizon,
        stride=args.stride,
        mode=args.mode,
        limit=args.limit,
        seed=args.seed,
        **options,
    )
    if args.out is not None:
        write_json_atomic(args.out, figures)
    console.print(figures)

"""Evaluate a world model on held-out episodes against a copy-last-frame baseline."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.table import Table

from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError
from envs.utils.progress import console
from envs.utils.ray_session import ray_session
from experiments.arguments import (
    CompiledModelArgs,
    RayArgs,
    check_at_least,
    check_data,
    check_folder,
    check_model,
    default_threads,
)
from worldmodel.config import FidResize, GenerationMode, ReplacedActions

OPTIONS = (
    "context",
    "horizon",
    "stride",
    "mode",
    "actions",
    "predictor",
    "limit",
    "seed",
    "delta_actions",
)
"""Flags that `worldmodel.evaluation.evaluate.evaluate` takes under the same name."""


@dataclass(frozen=True, kw_only=True)
class Args(RayArgs, CompiledModelArgs):
    """Measure PSNR, SSIM, delta-PSNR and the Frechet distance on held-out episodes (App. A.2).

    Predictions of other models can be scored as well: --export-windows writes
    DIR/SESSION/FIRST-FRAME/ with given-000.png..., truth-000.png... and window.json (actions,
    random_actions). The other model adds frame-000.png..., one for each truth, and random-003.png
    (frame 4 under random_actions) for delta-PSNR. --peer DIR scores them, with the same --data,
    --horizon, --stride, --limit, --seed and --delta-actions.
    """

    model: tyro.conf.Positional[Path | None] = None
    """World model: the `model` folder of `train dynamics`, `export` or `pipeline`."""
    peer: Path | None = None
    """Folder of another model's predictions, instead of a model."""
    export_windows: Path | None = None
    """Write the test windows to this folder, for another model to predict, and exit."""
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
    mode: GenerationMode = "autoregressive"
    """one_pass: all frames at once; autoregressive: in chunks, given all earlier frames."""
    actions: Literal["recorded", "inferred"] = "recorded"
    """recorded, through the action map of a GenieRedux; or inferred: those that its latent action
    model infers from the true frames."""
    predictor: Literal["dynamics", "lam"] = "dynamics"
    """Part of a GenieRedux that predicts: its dynamics model, or its latent action model alone,
    from true frames and inferred actions."""
    sampling_steps: int | None = None
    """MaskGIT steps per chunk of frames. Default: the model's number."""
    limit: int | None = None
    """Maximum number of windows of each game. Default: all."""
    far_from: tuple[Path, ...] = ()
    """Episode folders, e.g. the training data: evaluate only the windows least like them."""
    far_share: float = 0.5
    """Share of each game's windows that --far-from keeps."""
    delta_actions: ReplacedActions = "all"
    """Actions that delta-PSNR replaces. all: those into the predicted frames, by random ones, which
    may be the true ones; last: the one into the measured frame, always by another, as the paper's
    code does."""
    inception: Path | None = None
    """TorchScript file of Inception v3, for FID; docs/recipes.md says where to get it. Default: the
    Frechet distance of EfficientNet-Lite0 features."""
    fid_resize: FidResize | None = None
    """Enlargement of frames for Inception. nearest (the default): pixels repeated, values cut to
    bytes, as the paper's code does; bilinear: values rounded, as common tools do."""
    seed: int = 0
    """Random seed of the sampling."""
    workers: int = 0
    """Number of Ray workers, each with one torch thread; 0 evaluates in this process. The results
    are the same."""
    threads: int | None = None
    """Torch threads. Default: one per core."""


def run(args: Args) -> None:
    """Evaluate, print a table and write the JSON file; or export the windows."""
    if sum(given is not None for given in (args.model, args.peer, args.export_windows)) != 1:
        raise InputError("evaluate: give one of MODEL, --peer DIR and --export-windows DIR")
    if args.far_from and args.export_windows is not None:
        raise InputError("evaluate: --far-from cannot be used with --export-windows")
    check_data((*args.data, *args.far_from))
    if args.model is not None:
        check_model(args.model)
    if args.inception is not None:
        check_folder(args.inception, "--inception", "evaluate")
    elif args.fid_resize is not None:
        raise InputError("evaluate: --fid-resize needs the file of --inception")
    check_at_least(1, sampling_steps=args.sampling_steps, threads=args.threads)

    # These import torch: wrong arguments are reported first.
    import torch

    from worldmodel import WorldModel
    from worldmodel.evaluation.evaluate import evaluate, export
    from worldmodel.evaluation.external_predictions import ExternalPredictions
    from worldmodel.evaluation.far_windows import FarWindows

    options: dict[str, Any] = {name: getattr(args, name) for name in OPTIONS}
    if args.sampling_steps is not None:
        options["steps"] = args.sampling_steps
    data = [str(folder) for folder in args.data]
    if args.export_windows is not None:
        count = export(args.export_windows, data, **options)
        console.print(f"{count} windows written to {args.export_windows}")
        return
    far = FarWindows(tuple(map(str, args.far_from)), args.far_share) if args.far_from else None
    torch.set_num_threads(args.threads or default_threads())
    model: WorldModel | ExternalPredictions
    if args.peer is not None:
        model = ExternalPredictions(args.peer)
    else:
        model = args.load_model(Path(str(args.model)))
    with ray_session(args.ray_address) if args.workers else nullcontext():
        results = evaluate(
            model,
            data,
            far=far,
            inception=args.inception,
            fid_resize=args.fid_resize or "nearest",
            workers=args.workers,
            **options,
        )
    if args.out is not None:
        write_json_atomic(args.out, results)
    console.print(results_table(results))


def results_table(results: dict[str, Any]) -> Table:
    """Return a table with two rows per game, the model's results and those of the baseline.

    The caption holds `comparison_notes`.
    """
    settings, distance = results["settings"], results["distance_name"] or "distance"
    table = Table("", "", "windows", "reconstruction, dB", "its distance", box=None)
    horizon = f"{settings['horizon']} steps, dB"
    delta_head = f"delta-PSNR ({settings['delta_actions']}), dB"
    for head in ("1 step, dB", horizon, "moving, dB", "SSIM", distance, delta_head):
        table.add_column(head)
    table.header_style, table.caption_justify = "bold", "left"
    table.caption = "\n".join(comparison_notes(results))
    sets = dict(results["games"])
    if len(sets) > 1:
        sets["all"] = results["overall"]
    for game, values in sets.items():
        delta, reconstruction = values["delta_psnr"], values["reconstruction"]
        interval = f"[{_number(delta['low'])}, {_number(delta['high'])}]"
        table.add_row(
            game,
            "model",
            str(values["windows"]),
            _number(reconstruction.get("psnr")),
            _number(reconstruction.get("distance"), 1),
            *_quality(values["prediction"]),
            f"{_number(delta['mean'])} {interval}",
        )
        table.add_row("", "copy", "", "", "", *_quality(values["copy"]), "")
    return table


def comparison_notes(results: dict[str, Any]) -> list[str]:
    """Return a line for each column that differs from the paper's tables, and the way to theirs."""
    from worldmodel.evaluation.feature_networks import INCEPTION_SHA256  # imports torch

    settings, notes = results["settings"], []
    if settings["mode"] != "one_pass":
        notes.append("Predicted in chunks; most rows of the paper's tables are --mode one_pass.")
    if settings["fid_resize"] is None:
        notes.append("The distance is not the paper's FID, which needs --inception.")
    elif settings["fid_resize"] != "nearest":
        notes.append("FID of smoothly enlarged frames; the paper's code has --fid-resize nearest.")
    if settings["inception_sha256"] not in (None, INCEPTION_SHA256):
        notes.append("FID with another file than inception-2015-12-05.pt, by its sha256.")
    if settings["delta_actions"] != "last":
        notes.append(
            "delta-PSNR against random actions in all predicted frames; the paper's code replaces "
            "only the last one, by another (--delta-actions last)."
        )
    notes.append("The paper has neither moving pixels nor copied frames.")
    return notes


def _quality(values: dict[str, Any]) -> list[str]:
    """Return the five cells about generated frames."""
    mean = values["mean"]
    return [
        _number(values["one_step"]["psnr"]),
        _number(mean["psnr"]),
        _number(mean["moving_psnr"]),
        _number(mean["ssim"], 3),
        _number(values["distance"], 1),
    ]


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"

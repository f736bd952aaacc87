"""Train the tokenizer, the latent action model or the dynamics model on recorded episodes, through Ray Train."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from experiments.common import Preset, RunArgs, check_folder, default_threads, ray_session


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Train one component of the world model."""

    component: tyro.conf.Positional[Literal["tokenizer", "lam", "dynamics"]]
    """What to train. dynamics needs --tokenizer; with --lam or --joint-lam it is GenieRedux's, on latent actions."""
    data: tuple[str, ...]
    """Folders of episodes, or places like s3://bucket/prefix, made by `autoexplore collect`; several are united."""
    out: Path
    """Folder of the run."""
    preset: Preset = "cpu"
    """Sizes of the model and of its training: debug (seconds), cpu (minutes on two cores), paper."""
    tokenizer: Path | None = None
    """For dynamics: the run folder or checkpoint of the trained tokenizer."""
    lam: Path | None = None
    """For dynamics: take the actions that this latent action model reads from the frames, not the recorded ones."""
    joint_lam: bool = False
    """For dynamics: train the latent action model at the same time, that of --lam or a new one."""
    init: Path | None = None
    """Start from the weights of this run folder or checkpoint (fine-tuning)."""
    decoder_only: bool = False
    """For a tokenizer with --init: train its decoder alone, so that its token ids stay as they are."""
    workers: int = 0
    """Ray Train workers; 0 trains in this process."""
    iterations: int | None = None
    """Optimizer steps, where the preset's number does not fit."""
    batch_size: int | None = None
    """Clips a step, where the preset's number does not fit."""
    lr: float | None = None
    """Highest learning rate, where the preset's does not fit."""
    stream_sessions: int | None = None
    """Stream the data instead of copying it to the local disk: how many compressed sessions a worker holds in memory,
    e.g. 10000. For data sets larger than the disk."""
    threads: int | None = None
    """Torch threads of a worker. Default: the cores that this process may use, shared among the workers."""


def run(args: Args) -> None:
    """Train and say where the newest checkpoint lies. Raises InputError for what does not fit together."""
    from envs.errors import InputError
    from envs.places import is_remote

    for folder in args.data:
        if not is_remote(folder):
            check_folder(Path(folder), "data folder", "collect")
    if args.component == "dynamics" and args.tokenizer is None:
        raise InputError("training dynamics needs --tokenizer: the run folder of a trained tokenizer")
    if args.component != "dynamics" and (args.tokenizer is not None or args.lam is not None or args.joint_lam):
        raise InputError("--tokenizer, --lam and --joint-lam are for dynamics; to continue from weights give --init")
    if args.decoder_only and args.init is None:
        raise InputError("--decoder-only fine-tunes a trained tokenizer: give it with --init")
    for folder_or_none in (args.tokenizer, args.lam, args.init):
        if folder_or_none is not None:
            check_folder(folder_or_none, "checkpoint", "train")

    from envs.runs import console
    from worldmodel import preset
    from worldmodel.train import recipe, train

    changes = {
        name: value
        for name in ("iterations", "batch_size", "lr", "stream_sessions", "threads")
        if (value := getattr(args, name)) is not None
    }
    changes.setdefault("threads", max(1, default_threads() // max(args.workers, 1)))
    settings = recipe(args.component, args.preset, seed=args.seed, **changes)
    with ray_session(args.ray_address):
        checkpoint = train(
            args.component,
            config=preset(args.preset),
            recipe=settings,
            data=args.data,
            out=args.out,
            workers=args.workers,
            resume=args.resume,
            init=args.init,
            tokenizer=args.tokenizer,
            lam=args.lam,
            joint_lam=args.joint_lam,
            decoder_only=args.decoder_only,
        )
    console.print(f"newest checkpoint: {checkpoint}")

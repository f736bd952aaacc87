"""Let a world model predict recorded episodes, and draw what it saw beside what happened."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from experiments.arguments import check_folder, default_threads


@dataclass(frozen=True, kw_only=True)
class Args:
    """Predict the frames of recorded episodes and write film strips (PNG) and GIFs, real beside predicted."""

    model: tyro.conf.Positional[Path]
    """The world model: the `model` folder of `train dynamics`, or one that `export` or the pipeline made."""
    data: Path
    """Folder of episodes."""
    out: Path
    """Folder for the pictures."""
    episodes: tuple[int, ...] = (0,)
    """Which episodes of the folder, counted from 0."""
    start: int = 0
    """First frame of the context in the episode."""
    context: int = 2
    """Frames given."""
    horizon: int = 10
    """Frames predicted."""
    mode: Literal["one_pass", "autoregressive"] = "autoregressive"
    """All frames at once, or two at a time given all before."""
    sampling_steps: int = 25
    """MaskGIT steps for each group of frames."""
    temperature: float = 1.0
    """Of the sampling."""
    scale: int = 4
    """Each pixel is drawn as a square of so many."""
    upscaler: Path | None = None
    """Draw frames four times as large by this upscaler, the run folder of `autoexplore train upscaler`."""
    seed: int = 0
    """Seed of the sampling."""


def run(args: Args) -> None:
    """Write `<game>-<session>-<start>.png` and `.gif` for each episode."""
    from envs.utils.errors import InputError

    check_folder(args.model, "world model", "pipeline")
    check_folder(args.data, "data folder", "collect")
    if args.upscaler is not None:
        check_folder(args.upscaler, "upscaler", "train upscaler")

    import torch

    from envs.episodes.dataset import EpisodeReader
    from envs.utils.images import gif
    from envs.utils.progress import console
    from experiments.reports.images import at_scale, film_strip, predict, save_png
    from worldmodel import load_world_model
    from worldmodel.loading import load_upscaler

    torch.set_num_threads(default_threads())
    model = load_world_model(args.model)
    upscaler = None if args.upscaler is None else load_upscaler(args.upscaler)
    reader = EpisodeReader(args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    length = args.context + args.horizon
    for index in args.episodes:
        if not 0 <= index < len(reader):
            raise InputError(f"--episodes {index}: {args.data} holds episodes 0 to {len(reader) - 1}")
        if reader.num_frames(index) < args.start + length:
            raise InputError(f"episode {index} has {reader.num_frames(index)} frames: too few for --start {args.start}")
        episode = reader[index]
        real = episode.frames_THWC[args.start : args.start + length]
        predicted = predict(
            model.for_game(episode.game),
            real[: args.context],
            episode.actions[args.start : args.start + length - 1],
            steps=args.sampling_steps,
            temperature=args.temperature,
            mode=args.mode,
            seed=args.seed,
        )
        name = args.out / f"{episode.game}-{episode.session_id}-{args.start:05d}"
        (real, scale), (predicted, _) = (at_scale(frames, upscaler, args.scale) for frames in (real, predicted))
        save_png(film_strip([real, predicted], scale), name.with_suffix(".png"))
        name.with_suffix(".gif").write_bytes(gif([real, predicted], scale))
        console.print(f"{name}.png and .gif: above or left real, below or right predicted")

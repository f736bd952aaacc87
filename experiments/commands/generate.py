"""Generate frames from recorded episodes and save GIFs next to the ground truth."""

from dataclasses import dataclass
from pathlib import Path

from envs.utils.errors import InputError
from envs.utils.progress import console
from experiments.arguments import GenerationArgs, check_at_least, default_threads
from worldmodel.config import GenerationMode


@dataclass(frozen=True, kw_only=True)
class Args(GenerationArgs):
    """Generate frames after those of recorded episodes, and save film strips (PNG) and GIFs of the
    ground truth and the prediction."""

    out: Path
    """Folder of the pictures."""
    episodes: tuple[int, ...] = (0,)
    """Indices of the episodes in the folder, from 0."""
    context: int = 2
    """Number of given frames."""
    horizon: int = 10
    """Number of predicted frames."""
    mode: GenerationMode = "autoregressive"
    """one_pass: all frames at once; autoregressive: in chunks, given all earlier frames."""
    sampling_steps: int = 25
    """MaskGIT steps per chunk of frames."""
    scale: int = 4
    """Picture pixels per frame pixel."""


def run(args: Args) -> None:
    """Write `<game>-<session>-<start>.png` and `.gif` for each episode."""
    check_at_least(0, start=args.start, temperature=args.temperature)
    check_at_least(1, context=args.context, horizon=args.horizon, scale=args.scale)
    check_at_least(1, sampling_steps=args.sampling_steps)
    args.check_folders()

    # These import torch: wrong arguments are reported first.
    import torch

    from envs.episodes.dataset import EpisodeReader
    from envs.utils.images import gif, png
    from experiments.reports.images import at_scale, film_strip, predict
    from worldmodel.loading import load_upscaler

    torch.set_num_threads(default_threads())
    model = args.load_model(args.model)
    upscaler = None if args.upscaler is None else load_upscaler(args.upscaler, args.device)
    reader = EpisodeReader(args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    end = args.start + args.context + args.horizon
    for index in args.episodes:
        if not 0 <= index < len(reader):
            raise InputError(
                f"--episodes {index}: {args.data} holds episodes 0 to {len(reader) - 1}"
            )
        if reader.num_frames(index) < end:
            raise InputError(
                f"episode {index} has {reader.num_frames(index)} frames: "
                f"too few for --start {args.start}"
            )
        episode = reader[index]
        real = episode.frames_THWC[args.start : end]
        predicted = predict(
            model.for_game(episode.game),
            real[: args.context],
            episode.actions[args.start : end - 1],
            steps=args.sampling_steps,
            temperature=args.temperature,
            mode=args.mode,
            seed=args.seed,
        )
        name = args.out / f"{episode.game}-{episode.session_id}-{args.start:05d}"
        real, scale = at_scale(real, upscaler, args.scale)
        predicted, _ = at_scale(predicted, upscaler, args.scale)
        name.with_suffix(".png").write_bytes(png(film_strip([real, predicted], scale)))
        name.with_suffix(".gif").write_bytes(gif([real, predicted], scale))
        console.print(f"{name}.png and .gif: ground truth above or left, prediction below or right")

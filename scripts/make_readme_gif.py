"""Write docs/media/demo.gif from a run: real frames, predicted frames and their uncertainty.

    python -m scripts.make_readme_gif runs/demo/games/PrivateEye-Atari2600

`--model MODEL --data DATA` use another model and other episodes than those of the run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tyro
from numpy.typing import NDArray

from envs.utils.errors import InputError

if TYPE_CHECKING:
    from worldmodel import WorldModel

LARGEST_BYTES = 1_000_000


@dataclass(frozen=True)
class Args:
    """Settings of the picture."""

    run: tyro.conf.Positional[Path] = Path("runs/demo/games/PrivateEye-Atari2600")
    """Folder of the pipeline's run of one model."""
    model: Path | None = None
    """World model, instead of the run's base model."""
    data: Path | None = None
    """Episodes, instead of the run's held-out random play."""
    out: Path = Path("docs/media/demo.gif")
    """Picture to write."""
    episode: int = 0
    """Index of the episode in the data, from 0."""
    start: int = 0
    """Index of the first frame, from 0."""
    frames: int = 48
    """Number of frames of the picture."""
    scale: int = 4
    """Picture pixels per frame pixel."""
    sampling_steps: int = 1
    """MaskGIT steps per frame."""


def rollout(
    model: "WorldModel", frames_THWC: NDArray[np.uint8], actions_T: NDArray[np.uint8], steps: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Predict every frame as the reward does -> frames (T, H, W, 3) and token entropies (T, h, w).

    Each frame is the last of three that are predicted from two real ones. The first four frames,
    which have no such window, stay real with an entropy of 0.
    """
    from experiments.reports.images import predict
    from worldmodel.config import WINDOW
    from worldmodel.uncertainty import window_entropies

    context, last = 2, WINDOW - 1
    predicted = frames_THWC.copy()
    for end in range(last, len(frames_THWC)):
        begin = end - last
        given, actions = frames_THWC[begin : begin + context], actions_T[begin:end]
        window = predict(model, given, actions, steps=steps, mode="autoregressive")
        predicted[end] = window[-1]
    windows = np.stack([frames_THWC[end - last : end + 1] for end in range(last, len(frames_THWC))])
    actions_B4 = np.stack([actions_T[end - last : end] for end in range(last, len(frames_THWC))])
    entropy_BN = window_entropies(model, windows, actions_B4.astype(np.int64))
    side = int(entropy_BN.shape[1] ** 0.5)
    entropy_Thw = np.zeros((len(frames_THWC), side, side), np.float32)
    entropy_Thw[last:] = entropy_BN.reshape(-1, side, side)
    return predicted, entropy_Thw


def main(args: Args) -> None:
    """Write the picture. Raises InputError if the run holds no model or too few frames."""
    import torch

    from envs.episodes import EpisodeReader
    from envs.utils.images import gif, heat_map
    from worldmodel import load_world_model

    torch.set_num_threads(1)
    model = load_world_model(args.model or args.run / "models" / "base")
    reader = EpisodeReader(args.data or args.run / "data" / "test-random")
    episode = reader[args.episode]
    real = episode.frames_THWC[args.start : args.start + args.frames]
    if len(real) < args.frames:
        raise InputError(f"episode {args.episode} is too short: give a smaller --start or --frames")
    actions = episode.actions[args.start : args.start + args.frames - 1]
    model = model.for_game(episode.game)
    predicted, entropy_Thw = rollout(model, real, actions, args.sampling_steps)
    drawn = heat_map(entropy_Thw, real, float(np.quantile(entropy_Thw, 0.99)))
    picture = gif([real[4:], predicted[4:], drawn[4:]], args.scale)
    if len(picture) > LARGEST_BYTES:
        raise InputError(f"{len(picture):,} bytes are too many: give a smaller --frames or --scale")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(picture)
    print(f"{args.out}: {len(picture):,} bytes; left real, middle predicted, right uncertainty")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

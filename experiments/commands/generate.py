"""Generate frames from recorded episodes and save GIFs next to the ground truth."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.utils.errors import InputError
from envs.utils.progress import console
from experiments.arguments import GenerationArgs, check_at_least, check_model, default_threads
from experiments.studies.mid_air import MOST_MOTION, jump_actions, mid_air_frames
from worldmodel.config import GenerationMode

if TYPE_CHECKING:
    from envs.episodes.episode import Episode
    from envs.utils.images import Frames
    from worldmodel import WorldModel


@dataclass(frozen=True, kw_only=True)
class Args(GenerationArgs):
    """Generate frames after those of recorded episodes, and save film strips (PNG) and GIFs of the
    ground truth and the prediction."""

    out: Path
    """Folder of the pictures."""
    episodes: tuple[int, ...] = (0,)
    """Indices of the episodes in the folder, from 0."""
    each_action: bool = False
    """Hold every action of the model over the horizon instead of the recorded ones: a row for each,
    with its name, and no ground truth (Fig. 4, 10, 17, 19, 23)."""
    mid_air: bool = False
    """Start at the first frame from --start on that shows the character in mid-air: two to four
    steps after jump was pressed, with something small moving in each of them (Fig. 12)."""
    most_motion: float = MOST_MOTION
    """For --mid-air: largest share of the picture that may change in a step since the press."""
    beside: Path | None = None
    """Another world model, whose predictions are shown below or right of those of MODEL."""
    context: int | None = None
    """Number of given frames. Default: 2, with --mid-air 1."""
    horizon: int = 10
    """Number of predicted frames."""
    mode: GenerationMode = "autoregressive"
    """one_pass: all frames at once; autoregressive: in chunks, given all earlier frames."""
    sampling_steps: int = 25
    """MaskGIT steps per chunk of frames."""
    scale: int = 4
    """Picture pixels per frame pixel."""

    @property
    def given(self) -> int:
        """Number of given frames."""
        return self.context or (1 if self.mid_air else 2)

    @property
    def sampling(self) -> dict[str, Any]:
        """Options of `experiments.reports.images.predict`."""
        return {
            "steps": self.sampling_steps,
            "temperature": self.temperature,
            "mode": self.mode,
            "seed": self.seed,
        }


def run(args: Args) -> None:
    """Write `<game>-<session>-<start>.png` and `.gif` for each episode.

    With --each-action the names end in `-actions`, with --beside in `-beside`.
    """
    check_at_least(0, start=args.start, temperature=args.temperature)
    check_at_least(1, context=args.context, horizon=args.horizon, scale=args.scale)
    check_at_least(1, sampling_steps=args.sampling_steps)
    args.check_folders()
    if args.beside is not None:
        check_model(args.beside)

    # These import torch: wrong arguments are reported first.
    import torch

    from envs.episodes.dataset import EpisodeReader
    from worldmodel.loading import load_upscaler

    torch.set_num_threads(default_threads())
    paths = [args.model] if args.beside is None else [args.model, args.beside]
    models = dict(zip(model_labels(paths), map(args.load_model, paths), strict=True))
    upscaler = None if args.upscaler is None else load_upscaler(args.upscaler, args.device)
    reader = EpisodeReader(args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    for index in args.episodes:
        if not 0 <= index < len(reader):
            raise InputError(
                f"--episodes {index}: {args.data} holds episodes 0 to {len(reader) - 1}"
            )
        episode = reader[index]
        start = choose_start(args, episode, index)
        driven = {label: model.for_game(episode.game) for label, model in models.items()}
        make = hold_actions if args.each_action else replay_actions
        _write(args, make(args, driven, episode, start), upscaler, _name(args, episode, start))


def model_labels(paths: list[Path]) -> list[str]:
    """Return short names of models: their folders' or, of folders named `model`, the runs'."""
    names = [path.resolve() for path in paths]
    labels = [path.parent.name if path.name == "model" else path.name for path in names]
    distinct = len({"real", *labels}) == 1 + len(labels)
    return labels if distinct else ["model", "beside"][: len(paths)]


def choose_start(args: Args, episode: "Episode", index: int) -> int:
    """Return the first given frame, --start or the one before a frame in mid-air.

    Raises: InputError for an episode that is too short or has no such frame.
    """
    needed = args.given + (0 if args.each_action else args.horizon)
    latest = episode.num_frames - needed
    if latest < args.start:
        raise InputError(
            f"episode {index} has {episode.num_frames} frames: too few for --start {args.start}"
        )
    if not args.mid_air:
        return args.start
    if not (jumps := jump_actions(episode.action_names)):
        names = ", ".join(episode.action_names)
        raise InputError(f"no start in mid-air: none of the actions {names} is a jump")
    found = mid_air_frames(
        episode.actions, jumps, episode.frames_THWC, most_motion=args.most_motion
    )
    for frame in found.tolist():
        if args.start <= frame - args.given + 1 <= latest:
            return frame - args.given + 1
    raise InputError(
        f"episode {index} has no frame in mid-air between {args.start} and {latest}: "
        "give another of --episodes or an earlier --start"
    )


def replay_actions(
    args: Args, models: "dict[str, WorldModel]", episode: "Episode", start: int
) -> "dict[str, Frames]":
    """Return name -> frames: the real ones and those that each model predicts."""
    from experiments.reports.images import predict

    end = start + args.given + args.horizon
    real = episode.frames_THWC[start:end]
    actions = episode.actions[start : end - 1]
    predicted = {
        label: predict(model, real[: args.given], actions, **args.sampling)
        for label, model in models.items()
    }
    return {"real": real, **predicted}


def hold_actions(
    args: Args, models: "dict[str, WorldModel]", episode: "Episode", start: int
) -> "dict[str, Frames]":
    """Return name -> frames that each model predicts when one action is held, for each action.

    Every film starts from the same noise. Raises: InputError for models with other actions.
    """
    from envs.controls import numbered_actions
    from experiments.reports.images import predict_held

    first, *others = models.values()
    for other in others:
        if (other.actions, other.cfg.action_names) != (first.actions, first.cfg.action_names):
            raise InputError("--each-action: the model of --beside has other actions than MODEL")
    names = episode.action_names
    if len(names) != first.actions:
        names = first.cfg.action_names or numbered_actions(first.actions)
    else:
        first.check_action_names(names, "the episode has")
    given = episode.frames_THWC[start : start + args.given]
    recorded = episode.actions[start : start + args.given - 1]
    held = {
        label: predict_held(model, given, recorded, names, args.horizon, **args.sampling)
        for label, model in models.items()
    }
    return {
        f"{name}, {label}" if others else name: films[name]
        for name in names
        for label, films in held.items()
    }


def _name(args: Args, episode: "Episode", start: int) -> Path:
    """Return the path of the pictures without suffix."""
    kind = ("-actions" if args.each_action else "") + ("-beside" if args.beside else "")
    return args.out / f"{episode.game}-{episode.session_id}-{start:05d}{kind}"


def _write(args: Args, films: "dict[str, Frames]", upscaler: Any, name: Path) -> None:
    """Write a film strip with a row for each film, and a GIF of all side by side."""
    from envs.utils.atomic_io import write_atomic
    from envs.utils.images import gif, png
    from experiments.reports.images import at_scale, film_strip, write_labelled_films

    scale, shown = args.scale, {}
    for label, frames in films.items():
        shown[label], scale = at_scale(frames, upscaler, args.scale)
    if args.each_action or args.beside is not None:
        written = write_labelled_films(name, shown, scale, args.given)
        console.print(f"{written}: {'; '.join(shown)}")
        return
    rows = list(shown.values())
    write_atomic(Path(f"{name}.png"), png(film_strip(rows, scale)))
    write_atomic(Path(f"{name}.gif"), gif(rows, scale))
    console.print(f"{name}.png and .gif: ground truth above or left, prediction below or right")

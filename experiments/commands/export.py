"""Put a world model together; of latent actions, learn which each button is, so that a person can drive it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.arguments import check_folder, default_threads

if TYPE_CHECKING:
    from rich.table import Table

    from worldmodel import ActionMap, LatentActionModel


@dataclass(frozen=True, kw_only=True)
class Args:
    """Make a GenieRedux-G of tokenizer and dynamics; or, where that was trained on latent actions, a GenieRedux of both
    and the LAM, whose action map is learnt from a few labelled episodes."""

    tokenizer: Path
    """Run folder or checkpoint of the tokenizer."""
    dynamics: Path
    """Run folder or checkpoint of the dynamics model."""
    lam: Path | None = None
    """Run folder or checkpoint of the latent action model. Default: the one that was trained with the dynamics."""
    data: tuple[Path, ...] = ()
    """For a GenieRedux: folders of episodes whose actions are known. What was learnt from the train split is checked on
    the other one."""
    out: Path
    """Folder for the world model, for evaluate, generate, play, explore and serve."""
    clips: int = 0
    """Labelled clips to learn from, evenly spread; 0 for all."""


def run(args: Args) -> None:
    """Save the model and print what each button became. Raises InputError where the parts do not belong together."""
    from envs.utils.errors import InputError

    check_folder(args.tokenizer, "tokenizer", "train tokenizer")
    check_folder(args.dynamics, "dynamics", "train dynamics")
    for folder in args.data:
        check_folder(folder, "data folder", "collect")

    import torch

    from envs.utils.progress import console
    from worldmodel import GenieRedux, GenieReduxG
    from worldmodel.loading import load_dynamics, load_lam, load_tokenizer

    torch.set_num_threads(default_threads())
    tokenizer, dynamics = load_tokenizer(args.tokenizer), load_dynamics(args.dynamics)
    if not dynamics.cfg.dynamics.latent_actions:
        if args.lam is not None or args.data:
            raise InputError(f"{args.dynamics} was trained on real actions: leave --lam and --data out")
        GenieReduxG(tokenizer, dynamics).save(args.out)
        console.print(f"{args.out}: a world model that the buttons drive")
        return
    if not args.data:
        raise InputError(f"{args.dynamics} was trained on latent actions: name labelled episodes with --data")
    model = GenieRedux(tokenizer, load_lam(args.lam or args.dynamics), dynamics)
    model.action_map = learn_map(model.lam, args)
    model.save(args.out)
    console.print(as_table(model.action_map))
    console.print(f"{args.out}: a world model that the buttons drive")


def learn_map(lam: "LatentActionModel", args: Args) -> "ActionMap":
    """The action map from the train split, and how well it fits the other one."""
    import tempfile

    from envs.controls import ACTIONS
    from worldmodel.data.clip_dataset import ClipDataset
    from worldmodel.training.fit_action_map import fit_action_map, measure_action_map

    length = lam.cfg.frames
    with tempfile.TemporaryDirectory() as cache:
        known, other = (
            ClipDataset(args.data, cache, length=length, stride=length - 1, split=split) for split in ("train", "val")
        )
        action_map = fit_action_map(lam, known, actions=len(ACTIONS), count=args.clips)
        return measure_action_map(action_map, lam, other) if len(other) else action_map


def as_table(action_map: "ActionMap") -> "Table":
    """For each game and button the latent action with its score, and the agreement on other episodes."""
    from rich.table import Table

    from envs.controls import ACTIONS

    heads = ("agreement", "by chance", "kappa", "information")
    table = Table("", *ACTIONS, *heads, box=None, header_style="bold", title="latent action of each button (score)")
    for game in action_map.counts:
        chosen = zip(action_map.latent_actions(game), action_map.confidence(game), strict=True)
        found = action_map.measured.get(game, {})
        figures = (f"{found[name]:.2f}" if found else "-" for name in ("agreement", "chance", "kappa", "information"))
        table.add_row(game, *(f"{latent} ({score:.2f})" for latent, score in chosen), *figures)
    return table

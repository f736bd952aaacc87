"""Combine a tokenizer and a dynamics model into a world model."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from envs.controls import ACTIONS
from envs.utils.errors import InputError
from envs.utils.progress import console
from experiments.arguments import check_folder, default_threads
from worldmodel import ActionMap, GenieRedux, GenieReduxG, LatentActionModel
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.loading import load_dynamics, load_lam, load_tokenizer
from worldmodel.training.fit_action_map import fit_action_map, measure_action_map


@dataclass(frozen=True, kw_only=True)
class Args:
    """Make a GenieRedux-G from a tokenizer and a dynamics model. If the dynamics model was trained
    on latent actions, make a GenieRedux and fit its action map, from buttons to latent actions, on
    a few labelled episodes."""

    tokenizer: Path
    """Run folder or checkpoint of the tokenizer."""
    dynamics: Path
    """Run folder or checkpoint of the dynamics model."""
    lam: Path | None = None
    """Run folder or checkpoint of the latent action model. Default: the one trained with the
    dynamics."""
    data: tuple[Path, ...] = ()
    """For GenieRedux: episode folders with recorded actions. The map is fitted on the train split
    and measured on the other one."""
    out: Path
    """Folder of the world model, for evaluate, generate, play, explore and serve."""
    clips: int = 0
    """Number of labelled clips, evenly spread; 0 for all."""


def run(args: Args) -> None:
    """Save the model and print its action map. Raises InputError for parts that do not match."""
    check_folder(args.tokenizer, "tokenizer", "train tokenizer")
    check_folder(args.dynamics, "dynamics", "train dynamics")
    for folder in args.data:
        check_folder(folder, "data folder", "collect")

    torch.set_num_threads(default_threads())
    tokenizer, dynamics = load_tokenizer(args.tokenizer), load_dynamics(args.dynamics)
    if not dynamics.cfg.dynamics.latent_actions:
        if args.lam is not None or args.data:
            raise InputError(
                f"{args.dynamics} was trained on real actions: leave --lam and --data out"
            )
        GenieReduxG(tokenizer, dynamics).save(args.out)
        console.print(f"{args.out}: world model saved")
        return
    if not args.data:
        raise InputError(
            f"{args.dynamics} was trained on latent actions: name labelled episodes with --data"
        )
    model = GenieRedux(tokenizer, load_lam(args.lam or args.dynamics), dynamics)
    model.action_map = learn_map(model.lam, args)
    model.save(args.out)
    console.print(as_table(model.action_map))
    console.print(f"{args.out}: world model saved")


def learn_map(lam: LatentActionModel, args: Args) -> ActionMap:
    """Return the action map of the train split, measured on the other one."""
    length = lam.cfg.frames
    with tempfile.TemporaryDirectory() as cache:
        known, other = (
            ClipDataset(args.data, cache, length=length, stride=length - 1, split=split)
            for split in ("train", "val")
        )
        action_map = fit_action_map(lam, known, actions=len(ACTIONS), count=args.clips)
        return measure_action_map(action_map, lam, other) if len(other) else action_map


def as_table(action_map: ActionMap) -> Table:
    """Return a table of games: latent action and score of each button, agreement on other
    episodes."""
    heads = ("agreement", "by chance", "kappa", "information")
    table = Table(
        "",
        *ACTIONS,
        *heads,
        box=None,
        header_style="bold",
        title="latent action of each button (score)",
    )
    for game in action_map.counts:
        chosen = zip(action_map.latent_actions(game), action_map.confidence(game), strict=True)
        found = action_map.measured.get(game, {})
        figures = (
            f"{found[name]:.2f}" if found else "-"
            for name in ("agreement", "chance", "kappa", "information")
        )
        table.add_row(game, *(f"{latent} ({score:.2f})" for latent, score in chosen), *figures)
    return table

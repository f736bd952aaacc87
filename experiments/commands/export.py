"""Combine a tokenizer and a dynamics model into a world model."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from envs.episodes.dataset import recorded_actions
from envs.utils.errors import InputError
from envs.utils.progress import console
from experiments.arguments import (
    DeviceArgs,
    check_at_least,
    check_data,
    check_folder,
    default_threads,
)

if TYPE_CHECKING:
    from worldmodel import ActionMap, LatentActionModel


@dataclass(frozen=True, kw_only=True)
class Args(DeviceArgs):
    """Make a GenieRedux-G from a tokenizer and a dynamics model. If the dynamics model was trained
    on latent actions, make a GenieRedux and fit its action map, from buttons to latent actions, on
    a few labelled episodes."""

    tokenizer: Path
    """Run folder or checkpoint of the tokenizer."""
    dynamics: Path
    """Run folder or checkpoint of the dynamics model."""
    lam: Path | None = None
    """Run folder or checkpoint of the latent action model. Default: the one trained together with
    the dynamics model."""
    data: tuple[Path, ...] = ()
    """For GenieRedux: episode folders with recorded actions. The map is fitted on the training
    split and measured on the validation split."""
    out: Path
    """Folder of the world model, for evaluate, generate, play, explore and serve."""
    clips: int = 0
    """Number of labelled clips to fit the map on, evenly spread; 0 for all."""


def run(args: Args) -> None:
    """Save the model and print its action map. Raises InputError for parts that do not match."""
    check_folder(args.tokenizer, "tokenizer", "train tokenizer")
    check_folder(args.dynamics, "dynamics", "train dynamics")
    if args.lam is not None:
        check_folder(args.lam, "latent action model", "train lam")
    check_data(args.data)
    check_at_least(0, clips=args.clips)

    # These import torch: wrong arguments are reported first.
    import torch

    from worldmodel import GenieRedux, GenieReduxG
    from worldmodel.devices import resolve_device
    from worldmodel.loading import load_dynamics, load_lam, load_tokenizer

    torch.set_num_threads(default_threads())
    tokenizer, dynamics = load_tokenizer(args.tokenizer), load_dynamics(args.dynamics)
    if dynamics.cfg.dynamics.latent_actions:
        if not args.data:
            raise InputError(
                f"{args.dynamics} was trained on latent actions: name labelled episodes with --data"
            )
        model = GenieRedux(tokenizer, load_lam(args.lam or args.dynamics), dynamics)
        actions = recorded_actions(args.data)
        model.action_map = learn_action_map(
            model.lam.to(resolve_device(args.device)), args, len(actions)
        )
        model.save(args.out)
        console.print(action_map_table(model.action_map, actions))
    else:
        if args.lam is not None or args.data:
            raise InputError(
                f"{args.dynamics} was trained on real actions: leave --lam and --data out"
            )
        GenieReduxG(tokenizer, dynamics).save(args.out)
    console.print(f"{args.out}: world model saved")


def learn_action_map(lam: "LatentActionModel", args: Args, actions: int) -> "ActionMap":
    """Return the action map fitted on the training split and measured on the validation split."""
    from worldmodel.data.clip_dataset import ClipDataset
    from worldmodel.training.fit_action_map import fit_action_map, measure_action_map

    length = lam.cfg.frames
    with tempfile.TemporaryDirectory() as cache:
        training, validation = (
            ClipDataset(args.data, cache, length=length, stride=length - 1, split=split)
            for split in ("train", "val")
        )
        action_map = fit_action_map(lam, training, actions=actions, count=args.clips)
        return measure_action_map(action_map, lam, validation) if len(validation) else action_map


def action_map_table(action_map: "ActionMap", actions: Sequence[str]) -> Table:
    """Return a table of games: latent action and score of each action, agreement on validation
    episodes."""
    heads = ("agreement", "by chance", "kappa", "information")
    table = Table("", *actions, *heads, box=None, header_style="bold")
    table.title = "latent action of each real one (score)"
    for game in action_map.counts:
        pairs = zip(action_map.latent_actions(game), action_map.confidence(game), strict=True)
        measured = action_map.measured.get(game, {})
        names = ("agreement", "chance", "kappa", "information")
        values = (f"{measured[name]:.2f}" if measured else "-" for name in names)
        table.add_row(game, *(f"{latent} ({score:.2f})" for latent, score in pairs), *values)
    return table

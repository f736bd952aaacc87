"""Ablations and analyses of the world model (JSON and PNG in --out)."""

from dataclasses import dataclass
from importlib import import_module
from typing import Annotated

from tyro.conf import subcommand

from experiments.studies.arguments import (
    AblationArgs,
    ExplorationArgs,
    HorizonArgs,
    RepresentationArgs,
    StepsArgs,
    UncertaintyArgs,
)

MODULES = {
    AblationArgs: "ablation",
    ExplorationArgs: "exploration",
    RepresentationArgs: "representation",
    UncertaintyArgs: "uncertainty",
    HorizonArgs: "horizon",
    StepsArgs: "sampling_steps",
}
"""Module of each study, which imports torch."""


@dataclass(frozen=True)
class Args:
    """Run an ablation of the method, or analyse one model."""

    which: (
        Annotated[AblationArgs, subcommand("ablation")]
        | Annotated[ExplorationArgs, subcommand("exploration")]
        | Annotated[RepresentationArgs, subcommand("representation")]
        | Annotated[UncertaintyArgs, subcommand("uncertainty")]
        | Annotated[HorizonArgs, subcommand("horizon")]
        | Annotated[StepsArgs, subcommand("steps")]
    )


def run(args: Args) -> None:
    """Check the paths, then run the study."""
    args.which.check_paths()
    import_module(f"experiments.studies.{MODULES[type(args.which)]}").run(args.which)

"""Ablations and analyses of the world model (JSON and PNG in --out)."""

from dataclasses import dataclass
from importlib import import_module
from typing import Annotated

from tyro.conf import subcommand

from experiments.configuration import Flat
from experiments.studies.arguments import (
    AblationArgs,
    ExplorationArgs,
    HorizonArgs,
    RepresentationArgs,
    StepsArgs,
    UncertaintyArgs,
)
from experiments.studies.people.arguments import (
    PeopleArgs,
    PeopleMakeArgs,
    PeopleScoreArgs,
    PeopleServeArgs,
)

MODULES = {
    AblationArgs: "ablation",
    ExplorationArgs: "exploration",
    RepresentationArgs: "representation",
    UncertaintyArgs: "uncertainty",
    HorizonArgs: "horizon",
    StepsArgs: "sampling_steps",
    PeopleMakeArgs: "people.make",
    PeopleServeArgs: "people.serve",
    PeopleScoreArgs: "people.score",
}
"""Module of each study, which imports torch."""


@dataclass(frozen=True)
class Args:
    """Run an ablation of the method, or analyse one model."""

    which: Flat[
        Annotated[AblationArgs, subcommand("ablation")]
        | Annotated[ExplorationArgs, subcommand("exploration")]
        | Annotated[RepresentationArgs, subcommand("representation")]
        | Annotated[UncertaintyArgs, subcommand("uncertainty")]
        | Annotated[HorizonArgs, subcommand("horizon")]
        | Annotated[StepsArgs, subcommand("steps")]
        | Annotated[PeopleArgs, subcommand("people")]
    ]


def run(args: Args) -> None:
    """Check the paths, then run the study."""
    study = args.which.which if isinstance(args.which, PeopleArgs) else args.which
    study.check_paths()
    import_module(f"experiments.studies.{MODULES[type(study)]}").run(study)

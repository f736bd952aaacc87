"""Studies of a world model or of how it is trained, each with its figures as JSON and its pictures as PNG in --out."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from experiments import study_ablation, study_horizon, study_representation, study_steps, study_uncertainty

STUDIES = (study_ablation, study_representation, study_uncertainty, study_horizon, study_steps)


@dataclass(frozen=True)
class Args:
    """Take parts of the method away, or look closely at one model."""

    which: (
        Annotated[study_ablation.Args, tyro.conf.subcommand("ablation", description=study_ablation.__doc__)]
        | Annotated[
            study_representation.Args, tyro.conf.subcommand("representation", description=study_representation.__doc__)
        ]
        | Annotated[study_uncertainty.Args, tyro.conf.subcommand("uncertainty", description=study_uncertainty.__doc__)]
        | Annotated[study_horizon.Args, tyro.conf.subcommand("horizon", description=study_horizon.__doc__)]
        | Annotated[study_steps.Args, tyro.conf.subcommand("steps", description=study_steps.__doc__)]
    )


def run(args: Args) -> None:
    """Do the study."""
    for module in STUDIES:
        if isinstance(args.which, module.Args):
            module.run(args.which)

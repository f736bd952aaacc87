"""Studies of a world model or of how it is trained, each with its figures as JSON and its pictures as PNG in --out."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from experiments import study_ablation, study_steps

STUDIES = {"ablation": study_ablation, "steps": study_steps}


@dataclass(frozen=True)
class Args:
    """Take parts of the method away, or look closely at one model."""

    which: (
        Annotated[study_ablation.Args, tyro.conf.subcommand("ablation", description=study_ablation.__doc__)]
        | Annotated[study_steps.Args, tyro.conf.subcommand("steps", description=study_steps.__doc__)]
    )


def run(args: Args) -> None:
    """Do the study."""
    for module in STUDIES.values():
        if isinstance(args.which, module.Args):
            module.run(args.which)

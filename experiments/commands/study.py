"""Ablations and analyses of the world model (JSON and PNG in --out)."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from experiments.studies import ablation, horizon, representation, sampling_steps, uncertainty

STUDIES = (ablation, representation, uncertainty, horizon, sampling_steps)
subcommand = tyro.conf.subcommand


@dataclass(frozen=True)
class Args:
    """Run an ablation of the method, or analyse one model."""

    which: (
        Annotated[ablation.Args, subcommand("ablation", description=ablation.__doc__)]
        | Annotated[
            representation.Args, subcommand("representation", description=representation.__doc__)
        ]
        | Annotated[uncertainty.Args, subcommand("uncertainty", description=uncertainty.__doc__)]
        | Annotated[horizon.Args, subcommand("horizon", description=horizon.__doc__)]
        | Annotated[sampling_steps.Args, subcommand("steps", description=sampling_steps.__doc__)]
    )


def run(args: Args) -> None:
    """Run the study."""
    for module in STUDIES:
        if isinstance(args.which, module.Args):
            module.run(args.which)

"""Agents trained on a game's own reward, whose play makes test sets (section 9 of the paper: Agent57, epsilon 0.15).

An agent of this project leaves a policy folder, which `collect --policy expert:FOLDER` plays. What trains it stands in
`TRAINERS` under a name: here the explorer's own network and learner, paid by the game. Agent57 would be one more entry.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from envs.utils.errors import InputError
from exploration.config import ExploreConfig, recipe
from exploration.train import explore


def train_actor_critic(
    game: str, out: Path, *, preset: str, epochs: int | None, runners: int | None, resume: bool, seed: int
) -> Path:
    """The explorer's network and learner with the game's own reward, cut to [-1, 1] -> the best agent's folder."""
    return explore(
        [game],
        None,
        out,
        plan=dataclasses.replace(EXPERTS[preset], epochs=epochs or EXPERTS[preset].epochs),
        reward="env",
        runners=runners,
        resume=resume,
        seed=seed,
    )


TRAINERS: dict[str, Callable[..., Path]] = {"actor-critic": train_actor_critic}


def _of(preset: str, **changes: Any) -> ExploreConfig:
    """A preset of the explorer, paid by the game: cheap to collect, so that it plays longer, and far-sighted."""
    plan = recipe(preset)
    loss = dataclasses.replace(plan.loss, gamma=0.99, normalize_advantages=True, entropy_coeff=0.01)
    fixed: dict[str, Any] = {
        "loss": loss,
        "normalize_rewards": False,
        "reward_clipping": True,
        "evaluate_greedily": False,
    }
    return dataclasses.replace(plan, **(fixed | changes))


EXPERTS: dict[str, ExploreConfig] = {
    "debug": _of("debug"),
    "cpu": _of(
        "cpu", epochs=25, steps=100, updates=40, epsilon_epochs=15, evaluate_every=5, evaluation_steps=400, lr=1e-3
    ),
    "paper": _of("paper"),
}


def train_expert(
    game: str,
    out: Path | str,
    *,
    agent: str = "actor-critic",
    preset: str = "cpu",
    epochs: int | None = None,
    runners: int | None = None,
    resume: bool = False,
    seed: int = 0,
) -> Path:
    """Train an agent on `game`'s own reward in the folder `out` -> the folder of the best one, by evaluation return.

    Raises InputError for an unknown agent, preset or game, and what `exploration.explore` raises it for.
    """
    if agent not in TRAINERS:
        raise InputError(f"agent {agent!r} is not known: choose one of {', '.join(TRAINERS)}")
    if preset not in EXPERTS:
        raise InputError(f"preset {preset!r} is not known: choose one of {', '.join(EXPERTS)}")
    return TRAINERS[agent](game, Path(out), preset=preset, epochs=epochs, runners=runners, resume=resume, seed=seed)

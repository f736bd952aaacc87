"""Metrics of an epoch and of an evaluation, from RLlib's results."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from envs.utils.progress import console

RETURN = "evaluation/intrinsic_return"
BLIND = 0.01
"""Mutual information in nats below which a policy counts as one that ignores the screen."""


def training_metrics(result: dict[str, Any], actions: Sequence[str]) -> dict[str, float]:
    """Convert RLlib's result of an epoch to metrics; `steps` counts the collected steps."""
    games = result["env_runners"]["games"]
    names = ("reward", "scored", "steps", "dropped")
    total = {name: sum(float(sums[name]) for sums in games.values()) for name in names}
    seconds = {name: float(value) for name, value in result["seconds"].items()}
    staleness, rollouts = result["sampling"]["staleness"], result["sampling"]["rollouts"]
    metrics = {f"explore/{name}": float(value) for name, value in result["learning"].items()}
    for game, sums in games.items():
        metrics[f"explore/intrinsic_return/{game}"] = float(sums["reward"]) / float(sums["envs"])
        metrics |= policy_metrics(game, sums, actions)
    return metrics | {
        "explore/reward": total["reward"] / max(total["scored"], 1.0),
        "explore/epsilon": float(result["epsilon"]),
        "explore/replay_steps": float(result["replay_steps"]),
        "explore/fragments_dropped": total["dropped"],
        "explore/staleness": float(staleness["mean"]),
        "explore/staleness_max": float(staleness["max"]),
        **{f"explore/rollouts_{name}": float(value) for name, value in rollouts.items()},
        "explore/sample_seconds": seconds["sample"],
        "explore/learn_seconds": seconds["learn"],
        "explore/env_steps_per_second": total["steps"] / max(seconds["sample"], 1e-9),
        "steps": total["steps"],
    }


def policy_metrics(game: str, sums: dict[str, Any], actions: Sequence[str]) -> dict[str, float]:
    """Compute what a policy did in a game from the sums of `policy_sums`.

    mutual_information: of action and history, in nats: the entropy of the mean policy minus the
    policy's mean entropy, 0 for a policy that does not look at the screen. action_share/<a>: share
    of the steps in which action a was played.
    """
    steps = float(sums["steps"])
    if not steps or "entropy" not in sums:
        return {}
    mean_A = np.array([float(sums[f"probability_{a}"]) for a in range(len(actions))]) / steps
    entropy = float(sums["entropy"]) / steps
    information = float(-(mean_A * np.log(mean_A)).sum()) - entropy
    return {
        f"explore/mutual_information/{game}": max(information, 0.0),
        **{
            f"explore/action_share/{game}/{name}": float(sums[f"action_{a}"]) / steps
            for a, name in enumerate(actions)
        },
    }


def evaluation_metrics(evaluation: dict[str, Any]) -> dict[str, float]:
    """Compute the intrinsic return of `evaluation_steps` steps of each game, and the mean return.

    A game that ends early is played again within these steps, so that the length of a life does not
    change the return by itself. A game with an unscored fragment has no return, and then there is
    no mean.
    """
    games = evaluation.get("env_runners", {}).get("games", {})
    returns = {
        game: float(sums["reward"]) / float(sums["envs"])
        for game, sums in games.items()
        if not sums["dropped"]
    }
    metrics = {f"{RETURN}/{game}": value for game, value in returns.items()}
    if returns and len(returns) == len(games):
        metrics[RETURN] = sum(returns.values()) / len(returns)
    return metrics


def warn_if_blind(metrics: dict[str, float]) -> None:
    """Print a line if the actions depend on the screen in no game."""
    prefix = "explore/mutual_information/"
    information = [value for name, value in metrics.items() if name.startswith(prefix)]
    if information and max(information) < BLIND:
        console.print(
            f"warning: the agent does not look at the screen: the mutual information of its action "
            f"and the history is {max(information):.4f} nats or less in every game; train it for "
            "longer, or on a reward that differs more"
        )

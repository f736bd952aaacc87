"""Play of a trained agent beside random play, from the same starts of a game.

<run>/random_play.json   returns, screens and depth of both, see `compare_with_random`
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.collect.policies import Policy, RandomPolicy
from envs.controls import custom_actions
from envs.episodes.frame_distance import UNSEEN, FrameDistance
from envs.games.base import EnvOptions
from envs.utils.atomic_io import write_json_atomic
from envs.utils.progress import console
from envs.utils.screen_hash import distinct_screens
from exploration.agent.policy import load_policy
from exploration.config import ExploreConfig
from exploration.rollout.env_runner import DISTANCE_EVERY
from exploration.rollout.vector_env import Starts, close_vector_env, vector_env

FILE = "random_play.json"


@dataclass
class PlayedSteps:
    """Steps that a policy played in an env."""

    value: float = 0.0
    """Sum of rewards."""
    screens: set[bytes] = field(default_factory=set)
    """Distinct screens."""
    frames: list[NDArray[np.uint8]] = field(default_factory=list)
    """One frame in DISTANCE_EVERY."""
    actions: list[int] = field(default_factory=list)

    def add(self, frame_HWC: NDArray[np.uint8], reward: float, action: int) -> None:
        """Add a step, with the frame that follows it."""
        self.value += reward
        self.screens |= distinct_screens(frame_HWC[None])
        if len(self.actions) % DISTANCE_EVERY == 0:
            self.frames.append(frame_HWC.copy())
        self.actions.append(action)


def compare_with_random(
    run: Path, game: str, *, config: ExploreConfig, seed: int, options: EnvOptions = ()
) -> dict[str, Any]:
    """Play a run's best agent and random actions, as many envs and steps as in an evaluation.

    `options` are those of `envs.make`, with which the agent was trained.

    Returns {"game", "steps", "evaluation_return", "expert": ..., "random": ...}, and writes it to
    `random_play.json`. The last two have "return", the mean of "returns", those of each env;
    "screens", the number of distinct ones; and "actions", the share of each by name. The expert
    also has "distance", the mean one of its frames from those of random play in grey levels, and
    "unlike", the share of frames that are UNSEEN there. The agent plays anew: its best evaluation
    is the highest of several, and would be above random play by chance.
    """
    count, steps = config.evaluation_episodes, config.evaluation_steps
    temperature = 0.0 if config.evaluate_greedily else 1.0
    agents = [load_policy(run / "best", temperature=temperature) for _ in range(count)]
    names = agents[0].action_names
    randoms = [RandomPolicy() for _ in range(count)]
    for policy in randoms:
        policy.actions = len(names)
    starts = Starts(config.random_starts)
    actions = custom_actions(names)
    env: Any = vector_env(
        [game] * 2 * count, config.max_steps, starts=starts, actions=actions, options=options
    )
    try:
        seeds = [seed + number for number in range(count)] * 2
        played = play_side_by_side([*agents, *randoms], env, steps, seeds)
    finally:
        close_vector_env(env)
    sides = {"expert": played[:count], "random": played[count:]}
    result = {name: _summary(side, names) for name, side in sides.items()}
    expert_NHWC, random_NHWC = (
        np.stack([frame for each in side for frame in each.frames]) for side in sides.values()
    )
    distance_N = FrameDistance(random_NHWC)(expert_NHWC)
    result["expert"] |= {
        "distance": float(distance_N.mean()),
        "unlike": float((distance_N >= UNSEEN).mean()),
    }
    evaluated = json.loads((run / "best" / "config.json").read_text())["about"]
    about = {"game": game, "steps": steps, "evaluation_return": evaluated.get("evaluation_return")}
    comparison = about | result
    write_json_atomic(run / FILE, comparison)
    return comparison


def _summary(side: Sequence[PlayedSteps], names: Sequence[str]) -> dict[str, Any]:
    """Return the figures of one side, see `compare_with_random`."""
    returns = [each.value for each in side]
    counts_A = np.bincount([a for each in side for a in each.actions], minlength=len(names))
    return {
        "return": float(np.mean(returns)),
        "returns": returns,
        "screens": len(set().union(*(each.screens for each in side))),
        "actions": dict(zip(names, (counts_A / counts_A.sum()).tolist(), strict=True)),
    }


def play_side_by_side(
    policies: Sequence[Policy], env: Any, steps: int, seeds: Sequence[int]
) -> list[PlayedSteps]:
    """Let each policy play so many steps of its env of a vector env, in new episodes as they end.

    Equal seeds begin alike.
    """
    frames_NHWC = env.reset(seed=list(seeds))[0]
    played = [PlayedSteps(screens=distinct_screens(frame[None])) for frame in frames_NHWC]
    for policy, seed in zip(policies, seeds, strict=True):
        policy.reset(seed)
    ended = np.zeros(len(policies), bool)
    while any(len(each.actions) < steps for each in played):
        actions = [policy.act(frame) for policy, frame in zip(policies, frames_NHWC, strict=True)]
        frames_NHWC, rewards, terminated, truncated, _ = env.step(np.array(actions))
        for index, (policy, own) in enumerate(zip(policies, played, strict=True)):
            if ended[index]:  # the env ignored the action: the frame begins a new episode
                policy.reset(int(seeds[index] + len(own.actions)))
                own.screens |= distinct_screens(frames_NHWC[index : index + 1])
            elif len(own.actions) < steps:
                own.add(frames_NHWC[index], float(rewards[index]), actions[index])
        ended = terminated | truncated
    return played


def report_depth(result: dict[str, Any]) -> None:
    """Print the comparison of `compare_with_random`; warn of an expert that is not better."""
    expert, random = result["expert"], result["random"]
    action, share = max(expert["actions"].items(), key=lambda item: item[1])
    envs = len(expert["returns"])
    console.print(
        f"{result['game']}, mean of {envs} x {result['steps']} steps: return "
        f"{expert['return']:.1f} of the expert, {random['return']:.1f} of random play; distinct "
        f"screens {expert['screens']} and {random['screens']}; {expert['unlike']:.0%} of the "
        f"expert's frames are unlike random play's; {action} is {share:.0%} of its actions"
    )
    if expert["return"] <= random["return"]:
        console.print(
            "warning: the expert is not better than random play: its episodes are no test of deep "
            "play; train it for longer, e.g. with --explorer.epochs"
        )

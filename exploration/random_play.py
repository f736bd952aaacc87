"""Play of a trained agent beside random play, from the same starts of a game.

<run>/random_play.json   returns and distinct screens of both, see `compare_with_random`
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.collect.policies import Policy, RandomPolicy
from envs.controls import custom_actions
from envs.games.base import EnvOptions
from envs.utils.atomic_io import write_json_atomic
from envs.utils.progress import console
from envs.utils.screen_hash import distinct_screens
from exploration.agent.policy import load_policy
from exploration.config import ExploreConfig
from exploration.rollout.vector_env import Starts, close_vector_env, vector_env

FILE = "random_play.json"


def compare_with_random(
    run: Path, game: str, *, config: ExploreConfig, seed: int, options: EnvOptions = ()
) -> dict[str, Any]:
    """Play a run's best agent and random actions, as many envs and steps as in an evaluation.

    `options` are those of `envs.make`, with which the agent was trained.

    Returns {"game", "steps", "evaluation_return", "expert": ..., "random": ...}, the last two with
    "return", the mean of "returns", those of each env, and "screens", the number of distinct ones;
    writes it to `random_play.json`. The agent plays anew: its best evaluation is the highest of
    several, and would be above random play by chance.
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
        returns, screens = play_side_by_side([*agents, *randoms], env, steps, seeds)
    finally:
        close_vector_env(env)
    sides = {"expert": slice(count), "random": slice(count, None)}
    result: dict[str, Any] = {
        name: {
            "return": float(np.mean(returns[side])),
            "returns": returns[side],
            "screens": len(set().union(*screens[side])),
        }
        for name, side in sides.items()
    }
    evaluated = json.loads((run / "best" / "config.json").read_text())["about"]
    about = {"game": game, "steps": steps, "evaluation_return": evaluated.get("evaluation_return")}
    comparison = about | result
    write_json_atomic(run / FILE, comparison)
    return comparison


def play_side_by_side(
    policies: Sequence[Policy], env: Any, steps: int, seeds: Sequence[int]
) -> tuple[list[float], list[set[bytes]]]:
    """Let each policy play so many steps of its env of a vector env, in new episodes as they end.

    Returns the sum of rewards and the distinct screens of each. Equal seeds begin alike.
    """
    played, returns = np.zeros(len(policies), int), np.zeros(len(policies))
    frames_NHWC = env.reset(seed=list(seeds))[0]
    screens = [distinct_screens(frame_HWC[None]) for frame_HWC in frames_NHWC]
    for policy, seed in zip(policies, seeds, strict=True):
        policy.reset(seed)
    ended = np.zeros(len(policies), bool)
    while (played < steps).any():
        actions = [policy.act(frame) for policy, frame in zip(policies, frames_NHWC, strict=True)]
        frames_NHWC, rewards, terminated, truncated, _ = env.step(np.array(actions))
        for index, policy in enumerate(policies):
            if ended[index]:  # the env ignored the action: the frame begins a new episode
                policy.reset(int(seeds[index] + played[index]))
            elif played[index] < steps:
                returns[index] += rewards[index]
                played[index] += 1
            else:
                continue
            screens[index] |= distinct_screens(frames_NHWC[index : index + 1])
        ended = terminated | truncated
    return returns.tolist(), screens


def report_depth(result: dict[str, Any]) -> None:
    """Print the comparison of `compare_with_random`; warn of an expert that is not better."""
    expert, random = result["expert"], result["random"]
    envs = len(expert["returns"])
    console.print(
        f"{result['game']}, mean of {envs} x {result['steps']} steps: return "
        f"{expert['return']:.1f} of the expert, {random['return']:.1f} of random play; distinct "
        f"screens {expert['screens']} and {random['screens']}"
    )
    if expert["return"] <= random["return"]:
        console.print(
            "warning: the expert is not better than random play: its episodes are no test of deep "
            "play; train it for longer, e.g. with --explorer.epochs"
        )

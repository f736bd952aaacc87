"""Videos of the best agent next to a random one, from the same start of a game.

<run>/videos/<game>.gif   the agent on the left, the random one on the right
<run>/videos/videos.json  game -> {"steps", "agent", "random"}: distinct screens that each saw
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.controls import custom_actions
from envs.games.base import EnvOptions
from envs.utils.atomic_io import write_atomic, write_json_atomic
from envs.utils.images import Frames, gif
from envs.utils.run_dir import RunDir
from envs.utils.screen_hash import distinct_screens
from exploration.agent.policy import load_policy
from exploration.rollout.vector_env import close_vector_env, vector_env

FOLDER = "videos"
MAX_GAMES = 3
STEPS = 120
SCALE = 2


def rollout_against_random(
    policy: Path, game: str, seed: int, options: EnvOptions = ()
) -> tuple[Frames, Frames]:
    """Play the agent of a policy folder and a random one; return frames (T, H, W, 3) of each."""
    agent, generator = load_policy(policy), np.random.default_rng(seed)
    agent.reset(seed)
    count = len(agent.action_names)
    actions_of_env = custom_actions(agent.action_names)
    env = vector_env([game, game], None, actions=actions_of_env, options=options)
    try:
        frame_2HWC: Any = env.reset(seed=[seed, seed])[0]
        frames = [frame_2HWC]
        for _ in range(STEPS):
            actions = np.array([agent.act(frame_2HWC[0]), generator.integers(count)])
            frame_2HWC, _, terminated, truncated, _ = env.step(actions)
            if terminated[0] or truncated[0]:
                agent.reset(seed + len(frames))  # the next frame begins a new episode
            frames.append(frame_2HWC)
    finally:
        close_vector_env(env)
    frames_T2HWC = np.stack(frames)
    return frames_T2HWC[:, 0], frames_T2HWC[:, 1]


def record_videos(
    run: RunDir, epoch: int, games: Sequence[str], *, seed: int, options: EnvOptions = ()
) -> None:
    """Record videos of a run's best agent in up to MAX_GAMES games, also for TensorBoard."""
    counts = {}
    for game in games[:MAX_GAMES]:
        agent, random = rollout_against_random(run.path / "best", game, seed, options)
        data = gif([agent, random], SCALE, context=len(agent))
        write_atomic(run.path / FOLDER / f"{game}.gif", data)
        height, width = agent.shape[1] * SCALE, 2 * agent.shape[2] * SCALE
        run.log_picture(epoch, f"videos/{game}", data, height, width)
        screens = {"agent": len(distinct_screens(agent)), "random": len(distinct_screens(random))}
        counts[game] = {"steps": len(agent) - 1, **screens}
    write_json_atomic(run.path / FOLDER / "videos.json", counts)

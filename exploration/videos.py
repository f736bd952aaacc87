"""Videos of the best agent next to a random one; both begin the same game with the same seed.

<run>/videos/<game>.gif   left the agent, right the random one
<run>/videos/videos.json  game -> {"steps", "agent", "random"}: distinct screens that each saw
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.controls import ACTIONS
from envs.utils.atomic_io import write_atomic, write_json_atomic
from envs.utils.images import Frames, gif
from envs.utils.run_dir import RunDir
from envs.utils.screen_hash import distinct_screens
from exploration.agent.policy import load_policy
from exploration.rollout.vector_env import close_vector_env, vector_env

FOLDER = "videos"
GAMES = 3
STEPS = 120
SCALE = 2


def rollout_against_random(
    policy: Path, game: str, *, steps: int = STEPS, seed: int = 0
) -> tuple[Frames, Frames]:
    """Play the agent of a policy folder and a uniformly random one -> frames (steps + 1, H, W, 3)
    of each."""
    agent, chance = load_policy(policy), np.random.default_rng(seed)
    agent.reset(seed)
    env = vector_env([game, game], None)
    try:
        seen_2HWC: Any = env.reset(seed=[seed, seed])[0]
        frames = [seen_2HWC]
        for _ in range(steps):
            actions = np.array([agent.act(seen_2HWC[0]), chance.integers(len(ACTIONS))])
            seen_2HWC, _, ended, cut, _ = env.step(actions)
            if ended[0] or cut[0]:
                agent.reset(seed + len(frames))  # the next frame begins a new episode
            frames.append(seen_2HWC)
    finally:
        close_vector_env(env)
    film_T2HWC = np.stack(frames)
    return film_T2HWC[:, 0], film_T2HWC[:, 1]


def record_videos(run: RunDir, epoch: int, games: Sequence[str], *, seed: int = 0) -> None:
    """Record videos of up to GAMES games of the run's best agent, in its folder and for
    TensorBoard."""
    counts = {}
    for game in games[:GAMES]:
        agent, random = rollout_against_random(run.path / "best", game, seed=seed)
        data = gif([agent, random], SCALE, context=len(agent))
        write_atomic(run.path / FOLDER / f"{game}.gif", data)
        run.log_picture(
            epoch, f"videos/{game}", data, agent.shape[1] * SCALE, 2 * agent.shape[2] * SCALE
        )
        seen = {"agent": len(distinct_screens(agent)), "random": len(distinct_screens(random))}
        counts[game] = {"steps": len(agent) - 1, **seen}
    write_json_atomic(run.path / FOLDER / "videos.json", counts)

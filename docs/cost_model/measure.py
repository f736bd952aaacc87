"""Unit costs for the cost model, measured on this machine in core-seconds.

Times are process times, so that waiting for other programs does not count.
"""

import os
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import envs
from envs.collect.policies import RandomPolicy
from envs.collect.worker import EpisodeKey, play_episode
from exploration.agent.policy import CnnLstm
from exploration.config import ExploreConfig, explore_preset
from worldmodel import Dynamics, GenieReduxG, Tokenizer, preset
from worldmodel.models.cpu_kernels import use_cpu_kernels
from worldmodel.uncertainty import window_entropies


def measure(game: str, repeats: int) -> dict[str, Any]:
    """Return the unit costs of all work at the paper's sizes."""
    torch.set_num_threads(1)
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "game": game,
        **playing(game, repeats),
        **exploring(repeats, explore_preset("paper")),
        **rewarding(repeats),
    }


def core_seconds(repeats: int, work: Callable[[], Any]) -> float:
    """Return the shortest process time of several runs, after one to warm up."""
    work()
    best = float("inf")
    for _ in range(repeats):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best


def playing(game: str, repeats: int, steps: int = 300) -> dict[str, float]:
    """Return core-seconds per recorded step (four emulator frames) and bytes per stored frame."""
    env, sizes = envs.make(game), []

    def play() -> None:
        episode = play_episode(env, RandomPolicy(), EpisodeKey(game, "random", 0, 0), steps=steps)
        sizes.append(sum(map(len, episode.encode().chunks)) / episode.num_frames)

    seconds = core_seconds(repeats, play)
    env.close()
    return {"env_step_core_seconds": seconds / steps, "bytes_per_frame": sizes[-1]}


def exploring(repeats: int, plan: ExploreConfig) -> dict[str, float]:
    """Return the costs of choosing an action, in all environments at once, and of an update."""
    network = CnnLstm(plan.network)
    units, envs_at_once = plan.network.lstm_dim, plan.runners * plan.envs_per_runner

    def forward(batch: int, length: int) -> Any:
        frames = torch.zeros(batch, length, 64, 64, 3, dtype=torch.uint8)
        return network(frames, (torch.zeros(batch, units), torch.zeros(batch, units)))

    with torch.inference_mode():
        act = core_seconds(repeats, lambda: forward(envs_at_once, 1)) / envs_at_once

    def update() -> None:
        logits, values, _ = forward(plan.batch_size, plan.seq_len)
        (logits.mean() + values.mean()).backward()

    seconds = core_seconds(1, update)
    with FlopCounterMode(display=False) as counter:
        forward(1, plan.seq_len)
    flops = 3.0 * counter.get_total_flops() * plan.batch_size
    return {"action_core_seconds": act, "update_core_seconds": seconds, "update_flops": flops}


def rewarding(repeats: int, windows: int = 2) -> dict[str, float]:
    """Return the costs of one reward of the paper's world model, from a window of five frames."""
    config = preset("paper")
    model = GenieReduxG(Tokenizer(config), Dynamics(config)).eval()
    use_cpu_kernels(model)  # as in every model loaded for a CPU, and all its FLOPs are counted
    frames = np.random.default_rng(0).integers(256, size=(windows, 5, 64, 64, 3), dtype=np.uint8)
    actions = np.zeros((windows, 4), np.int64)
    seconds = core_seconds(repeats, lambda: window_entropies(model, frames, actions))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        window_entropies(model, frames[:1], actions[:1])
    return {
        "window_core_seconds": seconds / windows,
        "window_flops": float(counter.get_total_flops()),
    }

"""Unit costs for the cost model, measured on this machine in core-seconds.

Times are process times, which exclude waiting for other programs.
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


def measure_units(game: str, repeats: int) -> dict[str, Any]:
    """Return the unit costs of all work at the paper's sizes."""
    torch.set_num_threads(1)
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "game": game,
        **measure_play(game, repeats),
        **measure_agent(repeats, explore_preset("paper")),
        **measure_reward(repeats),
    }


def core_seconds(repeats: int, work: Callable[[], Any]) -> float:
    """Return the shortest process time of several runs, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def measure_play(game: str, repeats: int, steps: int = 300) -> dict[str, float]:
    """Return core-seconds per recorded step (four emulator frames) and bytes per stored frame."""
    env, sizes = envs.make(game), []

    def play() -> None:
        episode = play_episode(env, RandomPolicy(), EpisodeKey(game, "random", 0, 0), steps=steps)
        sizes.append(sum(map(len, episode.encode().chunks)) / episode.num_frames)

    seconds = core_seconds(repeats, play)
    env.close()
    return {"env_step_core_seconds": seconds / steps, "bytes_per_frame": sizes[-1]}


def measure_agent(repeats: int, config: ExploreConfig) -> dict[str, float]:
    """Return the costs of choosing an action, in all environments at once, and of an update."""
    network = CnnLstm(config.network)
    units, envs_at_once = config.network.lstm_dim, config.runners * config.envs_per_runner

    def forward(batch: int, length: int) -> Any:
        frames = torch.zeros(batch, length, 64, 64, 3, dtype=torch.uint8)
        return network(frames, (torch.zeros(batch, units), torch.zeros(batch, units)))

    with torch.inference_mode():
        act = core_seconds(repeats, lambda: forward(envs_at_once, 1)) / envs_at_once

    def update() -> None:
        logits, values, _ = forward(config.batch_size, config.seq_len)
        (logits.mean() + values.mean()).backward()

    seconds = core_seconds(1, update)
    with FlopCounterMode(display=False) as counter:
        forward(1, config.seq_len)
    flops = 3.0 * counter.get_total_flops() * config.batch_size
    return {"action_core_seconds": act, "update_core_seconds": seconds, "update_flops": flops}


def measure_reward(repeats: int, windows: int = 2) -> dict[str, float]:
    """Return the costs of one reward of the paper's world model, from a window of five frames."""
    config = preset("paper")
    model = GenieReduxG(Tokenizer(config), Dynamics(config)).eval()
    use_cpu_kernels(model)  # as in every model loaded for a CPU, and all its FLOPs are counted
    frames = np.random.default_rng(0).integers(256, size=(windows, 5, 64, 64, 3), dtype=np.uint8)
    actions = np.zeros((windows, 4), np.int64)
    seconds = core_seconds(repeats, lambda: window_entropies(model, frames, actions))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        window_entropies(model, frames[:1], actions[:1])
    flops = float(counter.get_total_flops())
    return {"window_core_seconds": seconds / windows, "window_flops": flops}

"""Comparison of trained explorers with random agents, over seeds and by the same measures.

<out>/seed-<s>/agent/             the explorer's run
<out>/seed-<s>/explorer/ random/  episodes of either agent
<out>/seed-<s>/measured-*.json    measures of one seed
<out>/agents.json                 what `evaluate_explorers` returns
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.collect.collector import collect
from envs.episodes.dataset import EpisodeReader
from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError
from envs.utils.progress import progress
from envs.utils.screen_hash import distinct_screens
from exploration.agent.policy import policy_spec
from exploration.reward.scorers import LocalScorer
from exploration.train import explore
from worldmodel.statistics import estimate
from worldmodel.uncertainty import WINDOW, cut_windows

AGENTS = ("explorer", "random")


@dataclass(frozen=True)
class ExplorationStats:
    """Measures of one agent's episodes of one game."""

    frames: int
    screens: int
    """Distinct ones among as many frames as the agent that played fewer has."""
    uncertainty: float
    """Mean reward (eq. 2-4) of the windows that were scored."""


def evaluate_explorers(
    games: Sequence[str],
    model_path: Path | str,
    out: Path | str,
    *,
    preset: str = "cpu",
    seeds: Sequence[int] = (0, 1, 2),
    episodes: int = 4,
    steps: int = 400,
    epsilon: float = 0.1,
    windows: int = 60,
    **options: Any,
) -> dict[str, Any]:
    """Train an explorer for each seed, let it and a random agent play, and measure both.

    Returns {"seeds": {seed: {game: {agent: ExplorationStats}}}, "summary": {game: what `summary`
    gives}}.

    `episodes` of at most `steps` steps a game, seed and agent; `windows` of each episode are scored
    by the world model, spread evenly; `epsilon` is what the explorer collects with. `options` go to
    `exploration.explore`. What is there already is not done again. Needs the Ray that the process
    is connected to. Raises InputError for bad input.
    """
    if not seeds or windows < 1:
        raise InputError(f"{len(seeds)} seeds and {windows} windows: give at least one of each")
    out, scorer = Path(out), LocalScorer(model_path)
    by_seed: dict[str, Any] = {}
    with progress("comparing agents", len(seeds)) as bar:
        for seed in seeds:
            folder = out / f"seed-{seed}"
            agent = folder / "agent"
            best = explore(
                games, model_path, agent, preset=preset, resume=agent.exists(), seed=seed, **options
            )
            for name in AGENTS:
                policy = (
                    policy_spec(f"checkpoint:{best}", epsilon=epsilon)
                    if name == "explorer"
                    else "random"
                )
                collect(
                    games,
                    str(folder / name),
                    episodes=episodes,
                    steps=steps,
                    policy=policy,
                    seed=seed,
                    progress=False,
                )
            measured = folder / f"measured-{windows}.json"
            if not measured.exists():
                write_json_atomic(measured, measure(games, folder, scorer, windows))
            by_seed[str(seed)] = json.loads(measured.read_text())
            bar.advance()
    result = {
        "seeds": by_seed,
        "summary": {game: summary([rows[game] for rows in by_seed.values()]) for game in games},
    }
    write_json_atomic(out / "agents.json", result)
    return result


def measure(
    games: Sequence[str], folder: Path, scorer: LocalScorer, windows: int
) -> dict[str, dict[str, Any]]:
    """`ExplorationStats` of each agent, by game, from the episodes in `folder`/<agent>."""
    rows: dict[str, dict[str, Any]] = {}
    readers = {name: EpisodeReader(folder / name) for name in AGENTS}
    for game in games:
        films = {
            name: [reader[index] for index, own in enumerate(reader.games) if own == game]
            for name, reader in readers.items()
        }
        shared = min(sum(episode.num_frames for episode in own) for own in films.values())
        rows[game] = {}
        for name, own in films.items():
            frames = np.concatenate([episode.frames_THWC for episode in own])
            rewards = [
                reward for episode in own for reward in sample_rewards(episode, scorer, windows)
            ]
            screens = len(distinct_screens(frames[:shared]))
            rows[game][name] = dataclasses.asdict(
                ExplorationStats(len(frames), screens, float(np.mean(rewards)))
            )
    return rows


def sample_rewards(episode: Any, scorer: LocalScorer, count: int) -> list[float]:
    """Compute the rewards of `count` windows of an episode, or of all, spread evenly over it."""
    if len(episode.frames_THWC) < WINDOW:
        return []
    windows = cut_windows(episode.frames_THWC, episode.actions)
    picked = np.unique(np.linspace(0, len(windows.actions_B4) - 1, count).round().astype(int))
    rewards: list[float] = scorer.score_windows(windows.select(picked)).rewards_B.tolist()
    return rewards


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Compute means over seeds of each agent and of explorer minus random, with half widths of 95 %
    intervals.

    Student's t over seeds; infinite for a single one.
    """
    table: dict[str, Any] = {}
    for quantity in ("uncertainty", "screens"):
        values = {name: np.array([row[name][quantity] for row in rows], float) for name in AGENTS}
        values["difference"] = values["explorer"] - values["random"]
        table[quantity] = {name: interval(own) for name, own in values.items()}
    return table


def interval(values: np.ndarray[Any, Any]) -> dict[str, float]:
    """Compute the mean and the half width of its 95 % interval."""
    if len(values) < 2:
        return {"mean": float(values.mean()), "half_width": math.inf}
    mean = estimate(torch.from_numpy(values))
    return {"mean": mean.mean, "half_width": mean.high - mean.mean}

"""Comparison of trained explorers with random agents, over several seeds.

<out>/seed-<s>/agent/             the explorer's run
<out>/seed-<s>/explorer/ random/  episodes of each agent
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
from numpy.typing import NDArray

from envs.collect.collector import collect
from envs.episodes.dataset import EpisodeReader
from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError
from envs.utils.progress import progress
from envs.utils.screen_hash import distinct_screens
from exploration.agent.policy import policy_spec
from exploration.config import ExploreConfig
from exploration.reward.scorers import LocalScorer
from exploration.train import explore
from worldmodel.config import WINDOW
from worldmodel.statistics import estimate
from worldmodel.uncertainty import cut_windows

AGENTS = ("explorer", "random")


@dataclass(frozen=True)
class ComparisonConfig:
    """Play by which agents are compared."""

    seeds: int = 3
    """Number of explorers, with the seeds 0 to seeds - 1."""
    episodes: int = 4
    """Episodes of each game, seed and agent."""
    steps: int = 400
    """Maximum episode length in steps."""
    epsilon: float = 0.1
    """Probability of a random action in the explorer's episodes."""
    windows: int = 60
    """Windows of each episode, evenly spread, that the world model scores."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.windows < 1:
            raise InputError(f"{self.seeds} seeds, {self.windows} windows: give 1 or more of each")


@dataclass(frozen=True)
class ExplorationStats:
    """Measures of one agent's episodes of one game."""

    frames: int
    screens: int
    """Distinct screens among the first frames, as many as both agents have."""
    uncertainty: float
    """Mean reward (Eq. 2-4) of the scored windows."""


def evaluate_explorers(
    games: Sequence[str],
    model_path: Path | str,
    out: Path | str,
    *,
    explorer: ExploreConfig,
    comparison: ComparisonConfig,
) -> dict[str, Any]:
    """Train an explorer for each seed, let it and a random agent play, and measure both.

    Returns {"seeds": {seed: {game: {agent: ExplorationStats}}}, "summary": {game: what
    `summarize_seeds` returns}}. Complete parts in `out` are reused. Requires a connected Ray.
    Raises InputError for bad input.
    """
    out, scorer = Path(out), LocalScorer(model_path, precision=explorer.precision)
    by_seed: dict[str, Any] = {}
    with progress("comparing agents", comparison.seeds) as bar:
        for seed in range(comparison.seeds):
            folder = out / f"seed-{seed}"
            agent = folder / "agent"
            best = explore(
                games, model_path, agent, config=explorer, resume=agent.exists(), seed=seed
            )
            for name, policy in zip(AGENTS, (f"checkpoint:{best}", "random"), strict=True):
                collect(
                    games,
                    str(folder / name),
                    episodes=comparison.episodes,
                    steps=comparison.steps,
                    policy=policy_spec(policy, epsilon=comparison.epsilon),
                    seed=seed,
                    progress=False,
                )
            measured = folder / f"measured-{comparison.windows}.json"
            if not measured.exists():
                stats = measure_agents(games, folder, scorer, comparison.windows)
                write_json_atomic(measured, stats)
            by_seed[str(seed)] = json.loads(measured.read_text())
            bar.advance()
    summary = {game: summarize_seeds([rows[game] for rows in by_seed.values()]) for game in games}
    result = {"seeds": by_seed, "summary": summary}
    write_json_atomic(out / "agents.json", result)
    return result


def measure_agents(
    games: Sequence[str], folder: Path, scorer: LocalScorer, windows: int
) -> dict[str, dict[str, Any]]:
    """Compute the `ExplorationStats` of each agent, by game, from the episodes in `folder`."""
    rows: dict[str, dict[str, Any]] = {game: {} for game in games}
    readers = {name: EpisodeReader(folder / name) for name in AGENTS}
    for game in games:
        episodes = {
            name: [reader[index] for index, played in enumerate(reader.games) if played == game]
            for name, reader in readers.items()
        }
        shared = min(sum(episode.num_frames for episode in own) for own in episodes.values())
        for name, own in episodes.items():
            frames = np.concatenate([episode.frames_THWC for episode in own])
            rewards = np.concatenate([sample_rewards(episode, scorer, windows) for episode in own])
            screens = len(distinct_screens(frames[:shared]))
            stats = ExplorationStats(len(frames), screens, float(rewards.mean()))
            rows[game][name] = dataclasses.asdict(stats)
    return rows


def sample_rewards(episode: Any, scorer: LocalScorer, count: int) -> list[float]:
    """Compute the rewards of up to `count` windows, evenly spread over an episode."""
    if len(episode.frames_THWC) < WINDOW:
        return []
    windows = cut_windows(episode.frames_THWC, episode.actions)
    picked = np.unique(np.linspace(0, len(windows.actions_B4) - 1, count).round().astype(int))
    rewards: list[float] = scorer.score_windows(windows.select(picked)).rewards_B.tolist()
    return rewards


def summarize_seeds(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Compute the mean over seeds of each agent, and of explorer minus random."""
    table: dict[str, Any] = {}
    for quantity in ("uncertainty", "screens"):
        values = {name: np.array([row[name][quantity] for row in rows], float) for name in AGENTS}
        values["difference"] = values["explorer"] - values["random"]
        table[quantity] = {name: mean_with_interval(own) for name, own in values.items()}
    return table


def mean_with_interval(values: NDArray[np.float64]) -> dict[str, float]:
    """Compute the mean and the half width of its 95 % interval, infinite for a single value."""
    if len(values) < 2:
        return {"mean": float(values.mean()), "half_width": math.inf}
    mean = estimate(torch.from_numpy(values))
    return {"mean": mean.mean, "half_width": mean.high - mean.mean}

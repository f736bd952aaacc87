"""RLlib callbacks: score fragments in the env runner, and log metrics of each game."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.columns import Columns

from envs.utils.errors import InputError
from exploration.agent.replay_buffer import GAME, SCORED
from exploration.rollout.reward_connector import RewardConnector
from exploration.rollout.snapshots import take_snapshots


class ExploreCallbacks(RLlibCallback):
    """Callbacks that name the game of each episode and score fragments in the runner."""

    def __init__(self) -> None:
        super().__init__()
        self._connector: RewardConnector | None = None
        self._incomplete: set[str] = set()

    # RLlib passes many keywords, of which only a few are needed here.
    def on_episode_created(self, *_: Any, **keywords: Any) -> None:
        """Write the name of the game into the episode; later fragments keep it."""
        runner = keywords["env_runner"]
        keywords["episode"].custom_data[GAME] = runner.games[keywords["env_index"]]

    def on_episode_step(self, *_: Any, **keywords: Any) -> None:
        """Submit windows to a reward service while the games play on."""
        if self._connector is not None:
            self._connector.top_fraction = keywords["env_runner"].config.top_fraction
            self._connector.submit_early(keywords["episode"])

    def reset_counts(self) -> None:
        """Reset a reward that counts screens."""
        if self._connector is not None and hasattr(self._connector.scorer, "reset_counts"):
            self._connector.scorer.reset_counts()

    def on_sample_end(self, *_: Any, **keywords: Any) -> None:
        """Score the fragments, and log metrics of each game."""
        runner, samples = keywords["env_runner"], keywords["samples"]
        config = runner.config
        dropped: list[Any] = []
        if config.scorer is not None:
            try:
                if self._connector is None:
                    self._connector = RewardConnector(config.scorer(), config.top_fraction)
                self._connector.top_fraction = config.top_fraction  # may change between epochs
                self._connector(episodes=samples)
                dropped = [episode for episode, _ in self._connector.dropped]
                runner.snapshots = take_snapshots(self._connector.rewards)
            except InputError as error:
                # A restarted runner would fail in the same way: report the error to the algorithm.
                runner.fault = str(error)
                dropped, samples[:] = list(samples), []
            self._incomplete |= {episode.id_ for episode in dropped}
            self._incomplete -= exclude_from_returns(runner, self._incomplete)
        epsilon = 0.0 if runner.module is None else runner.module.epsilons
        log_games(keywords["metrics_logger"], samples, dropped, runner.games, epsilon)


def exclude_from_returns(env_runner: Any, incomplete: set[str]) -> set[str]:
    """Exclude episodes that lost a fragment from RLlib's returns, which would count it as 0.

    Returns the ids of those that have ended.
    """
    ended = env_runner._done_episodes_for_metrics
    excluded = {episode.id_ for episode in ended} & incomplete
    ended[:] = [episode for episode in ended if episode.id_ not in excluded]
    for episode_id in incomplete:
        env_runner._ongoing_episodes_for_metrics.pop(episode_id, None)
    return excluded


def log_games(
    metrics_logger: Any,
    samples: list[Any],
    dropped: list[Any],
    games: list[str],
    epsilon: float | NDArray[np.float32] = 0.0,
) -> None:
    """Log sums of each game over runners: reward, scored, steps, envs, dropped fragments, and those
    of `policy_sums`."""
    for game in dict.fromkeys(games):
        own = [episode for episode in samples if episode.custom_data.get(GAME) == game]
        outputs = [episode.extra_model_outputs for episode in own]
        scored = [columns[SCORED].get().sum() for columns in outputs if SCORED in columns]
        steps = sum(map(len, own))
        sums = {
            "reward": float(sum(episode.get_return() for episode in own)),
            "scored": float(sum(scored)) if scored else float(steps),
            "steps": float(steps),
            "envs": float(games.count(game)),
            "dropped": float(sum(episode.custom_data.get(GAME) == game for episode in dropped)),
            **policy_sums(own, epsilon),
        }
        metrics_logger.log_dict(sums, key=("games", game), reduce="sum")


def policy_sums(episodes: list[Any], epsilon: float | NDArray[np.float32]) -> dict[str, float]:
    """Return sums over the steps of fragments, of which `policy_metrics` makes measures.

    entropy: of the policy, in nats; probability_<a>: the policy's probability of action a;
    action_<a>: 1 if a was played. The policy is the one without its random share `epsilon`, one
    number or that of each arm.
    """
    sums: dict[str, float] = {}
    for episode in episodes:
        outputs = episode.extra_model_outputs
        if Columns.ACTION_DIST_INPUTS not in outputs or not len(episode):
            continue
        mixed_TA = np.exp(np.asarray(outputs[Columns.ACTION_DIST_INPUTS].get(), np.float64))
        count = mixed_TA.shape[1]
        state = outputs[Columns.STATE_OUT].get() if Columns.STATE_OUT in outputs else {}
        noise = np.asarray(state["noise"], np.float64) if "noise" in state else 1 / count
        if "arm" in state:
            epsilon_T1 = np.asarray(epsilon, np.float64)[state["arm"].astype(int) - 1]
        else:
            epsilon_T1 = np.float64(epsilon)
        policy_TA = (mixed_TA - epsilon_T1 * noise).clip(1e-12)
        policy_TA /= policy_TA.sum(1, keepdims=True)
        played_A = np.bincount(np.asarray(episode.actions.get(), np.int64), minlength=count)
        parts = {"entropy": -(policy_TA * np.log(policy_TA)).sum()}
        parts |= {f"probability_{a}": policy_TA[:, a].sum() for a in range(count)}
        parts |= {f"action_{a}": played_A[a] for a in range(count)}
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return sums

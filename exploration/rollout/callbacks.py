"""RLlib callbacks: score fragments in the env runner, and log metrics of each game."""

from typing import Any

from ray.rllib.callbacks.callbacks import RLlibCallback

from envs.utils.errors import InputError
from exploration.agent.replay_buffer import GAME, SCORED
from exploration.rollout.reward_connector import RewardConnector
from exploration.rollout.snapshots import take_snapshots


class ExploreCallbacks(RLlibCallback):
    """Notes the game of each episode, and scores the fragments before they leave the runner."""

    def __init__(self) -> None:
        super().__init__()
        self._connector: RewardConnector | None = None
        self._incomplete: set[str] = set()

    # RLlib calls these with keywords of which only a few matter here.
    def on_episode_created(self, *_: Any, **given: Any) -> None:
        """Write the name of the game into the episode; its later fragments keep it."""
        given["episode"].custom_data[GAME] = given["env_runner"].games[given["env_index"]]

    def on_episode_step(self, *_: Any, **given: Any) -> None:
        """Submit windows to a reward service while the games play on."""
        if self._connector is not None:
            self._connector.submit_early(given["episode"])

    def reset_counts(self) -> None:
        """Reset a reward that counts what it has seen."""
        if self._connector is not None and hasattr(self._connector.scorer, "reset_counts"):
            self._connector.scorer.reset_counts()

    def on_sample_end(self, *_: Any, **given: Any) -> None:
        """Score the fragments, and log metrics of each game."""
        env_runner, metrics_logger, samples = (
            given["env_runner"],
            given["metrics_logger"],
            given["samples"],
        )
        config = env_runner.config
        dropped: list[Any] = []
        if config.scorer is not None:
            try:
                if self._connector is None:
                    self._connector = RewardConnector(config.scorer(), config.top_fraction)
                # It may change while the agent learns.
                self._connector.top_fraction = config.top_fraction
                self._connector(episodes=samples)
                dropped = [episode for episode, _ in self._connector.dropped]
                env_runner.snapshots = take_snapshots(self._connector.answers)
            except InputError as error:
                # A new runner would meet the same: hand the message over instead of being restarted
                # for ever.
                env_runner.fault = str(error)
                dropped, samples[:] = list(samples), []
            self._incomplete |= {episode.id_ for episode in dropped}
            self._incomplete -= exclude_from_returns(env_runner, self._incomplete)
        log_games(metrics_logger, samples, dropped, env_runner.games)


def exclude_from_returns(env_runner: Any, incomplete: set[str]) -> set[str]:
    """Keep episodes that lost a fragment out of RLlib's returns, where the fragment would count as
    0.

    Returns the ids of the episodes that are over.
    """
    done = env_runner._done_episodes_for_metrics
    over = {episode.id_ for episode in done} & incomplete
    done[:] = [episode for episode in done if episode.id_ not in over]
    for episode_id in incomplete:
        env_runner._ongoing_episodes_for_metrics.pop(episode_id, None)
    return over


def log_games(
    metrics_logger: Any, samples: list[Any], dropped: list[Any], games: list[str]
) -> None:
    """Log sums of each game, which add up over runners: reward, scored, steps, envs, dropped
    fragments."""
    for game in dict.fromkeys(games):
        own = [episode for episode in samples if episode.custom_data.get(GAME) == game]
        scored = [
            episode.extra_model_outputs[SCORED].get()
            for episode in own
            if SCORED in episode.extra_model_outputs
        ]
        steps = sum(map(len, own))
        sums = {
            "reward": float(sum(episode.get_return() for episode in own)),
            "scored": float(sum(column.sum() for column in scored)) if scored else float(steps),
            "steps": float(steps),
            "envs": float(games.count(game)),
            "dropped": float(sum(episode.custom_data.get(GAME) == game for episode in dropped)),
        }
        metrics_logger.log_dict(sums, key=("games", game), reduce="sum")

"""Env runner: RLlib's, with a process for each game, whose failure costs one fragment."""

from typing import Any

import torch
from gymnasium.wrappers.vector import DictInfoToList
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from exploration.rollout.callbacks import ExploreCallbacks
from exploration.rollout.snapshots import SnapshotPair
from exploration.rollout.vector_env import Starts, close_vector_env, games_of_runner, vector_env


class GameRunner(SingleAgentEnvRunner):
    """Runner of `config.games`, or of the env of `config.environment` if there are no games.

    A dead game process is noticed at the next step, a hung one after `config.step_timeout_s`.
    RLlib then calls `make_env` again and discards what was collected since the last `sample()`.
    """

    games: list[str]
    """Game of each env of this runner."""
    fault: str = ""
    """Message of an error that a restarted runner would repeat, e.g. an invalid model."""
    snapshots: SnapshotPair | None = None
    """Screens of the last sampled fragments."""
    config: Any
    module: Any
    env: Any

    def make_env(self) -> None:
        """Open the envs, after closing those that are open, dead or alive."""
        # A runner in the learner's process must not change the learner's threads.
        if self.worker_index:
            torch.set_num_threads(max(1, int(self.config.runner_threads)))
        if not self.config.games:
            super().make_env()
            self.games = [str(self.config.env)] * self.num_envs
            return
        if self.env is not None:
            close_vector_env(self.env)
        # Remote runners count from 1; a runner in the algorithm's process has number 0 or none.
        runner = max((self.worker_index or 0) - 1, 0)
        self.games = games_of_runner(self.config.games, runner, self.config.num_envs_per_env_runner)
        self.env = DictInfoToList(
            vector_env(
                self.games,
                self.config.max_steps,
                self.config.step_timeout_s,
                starts=Starts(
                    self.config.random_starts, self.config.archive, self.config.archive_share
                ),
                actions=self.config.actions,
            )
        )
        self.num_envs = len(self.games)
        self._needs_initial_reset = True

    def stop(self) -> None:
        """Stop the game processes."""
        if self.env is not None and self.config.games:
            close_vector_env(self.env)
        else:
            super().stop()

    def start_evaluation(self) -> None:
        """Start new episodes and reset counts, so that evaluation does not depend on age."""
        self._needs_initial_reset = True
        for callback in self._callbacks:
            if isinstance(callback, ExploreCallbacks):
                callback.reset_counts()

    def set_exploration(self, epsilon: float, temperature: float, top_fraction: float) -> None:
        """Set epsilon and temperature of exploration and the top fraction of the reward."""
        if self.module is not None:
            self.module.set_exploration(epsilon, temperature)
        # The config is frozen. A restarted runner begins with the original value.
        vars(self.config)["top_fraction"] = top_fraction

    def set_weights(self, weights: dict[str, Any]) -> None:
        """Set the weights of the policy, arrays by name."""
        if self.module is not None:  # with remote runners the local one has no module
            self.module.set_state(weights)

"""Env runner: RLlib's, with each game in its own process and faults that cost one fragment."""

from typing import Any

import torch
from gymnasium.wrappers.vector import DictInfoToList
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from exploration.rollout.callbacks import ExploreCallbacks
from exploration.rollout.snapshots import SnapshotPair
from exploration.rollout.vector_env import close_vector_env, games_of_runner, vector_env


class GameRunner(SingleAgentEnvRunner):
    """Plays `config.games`, or any env of `config.environment` where no games are set.

    A game's process that dies is noticed at the next step, one that hangs after
    `config.step_timeout_s`: RLlib's loop calls `make_env` again, throws away what it had collected
    since the last `sample()`, and goes on.
    """

    games: list[str]
    """Game of each env of this runner."""
    fault: str = ""
    """Message of an error that a new runner would meet too, e.g. a model that cannot be loaded."""
    snapshots: SnapshotPair | None = None
    """Screens of the last sampled fragments."""
    config: Any
    module: Any
    env: Any

    def make_env(self) -> None:
        """Open the envs, closing those that are open, dead or alive."""
        # A runner in the learner's own process leaves the learner's threads alone.
        if self.worker_index:
            torch.set_num_threads(max(1, int(self.config.runner_threads)))
        if not self.config.games:
            super().make_env()
            self.games = [str(self.config.env)] * self.num_envs
            return
        if self.env is not None:
            close_vector_env(self.env)
        # Runners count from 1; a runner in the algorithm's own process is number 0, or has none.
        place = max((self.worker_index or 0) - 1, 0)
        self.games = games_of_runner(self.config.games, place, self.config.num_envs_per_env_runner)
        self.env = DictInfoToList(
            vector_env(self.games, self.config.max_steps, self.config.step_timeout_s)
        )
        self.num_envs = len(self.games)
        self._needs_initial_reset = True

    def stop(self) -> None:
        """End the processes of the games."""
        if self.env is not None and self.config.games:
            close_vector_env(self.env)
        else:
            super().stop()

    def start_evaluation(self) -> None:
        """Begin new episodes, and reset counts, so that agents of all ages are evaluated alike."""
        self._needs_initial_reset = True
        for callback in self._callbacks:
            if isinstance(callback, ExploreCallbacks):
                callback.reset_counts()

    def set_exploration(self, epsilon: float, temperature: float, top_fraction: float) -> None:
        """Set the epsilon and temperature of exploration, and the top fraction of the reward."""
        if self.module is not None:
            self.module.set_exploration(epsilon, temperature)
        vars(self.config)["top_fraction"] = (
            top_fraction  # the config is frozen, and a restarted runner's is the first
        )

    def set_weights(self, weights: dict[str, Any]) -> None:
        """Set the weights of the policy, arrays by name."""
        if self.module is not None:  # where there are remote runners, the local one plays nothing
            self.module.set_state(weights)

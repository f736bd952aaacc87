"""Env runner: RLlib's, with a process for each game, whose failure costs one fragment."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray
import torch
from gymnasium.wrappers.vector import DictInfoToList
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED

from envs.episodes.frame_distance import FrameDistance
from envs.utils.screen_hash import distinct_screens
from exploration.agent.replay_buffer import Fragment, to_fragment
from exploration.rollout.callbacks import ExploreCallbacks
from exploration.rollout.snapshots import SnapshotPair
from exploration.rollout.vector_env import Starts, close_vector_env, games_of_runner, vector_env

DISTANCE_EVERY = 4
"""Every which frame is compared with the data of the world model, to save time."""


@dataclass(frozen=True)
class PlaySettings:
    """Settings of a rollout, which are sent with each request, so that restarted runners get them.

    Weights and references are those themselves, or their places in Ray's object store.
    """

    epsilon: float
    temperature: float
    top_fraction: float
    weights: Any
    """Arrays of the policy by name."""
    references: Any
    """Distance of frames from the data of the world model, for each game with such data."""
    arm_odds_K: NDArray[np.float32] | None = None
    """Probabilities of the epsilons of new episodes, see `EpisodeBandit`."""


@dataclass
class RunnerRollout:
    """Play of a runner's envs in an epoch, as small as the driver can use it."""

    metrics: Any
    """RLlib's metrics of the runner."""
    steps: int
    """Steps played, those of dropped fragments included."""
    settings: dict[str, float]
    """Settings in effect, by name."""
    staleness: int = 0
    """Updates between the weights that played and those that learn from it."""
    snapshots: SnapshotPair | None = None
    fault: str = ""
    """Message of an error that a restarted runner would repeat."""
    fragments: list[Fragment] = field(default_factory=list)
    screens: dict[str, set[bytes]] = field(default_factory=dict)
    """Distinct screens of each game."""
    distances: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Distances of each game's frames, one in DISTANCE_EVERY, from the references."""
    ended: list[tuple[int, float]] = field(default_factory=list)
    """Arm and return of each episode that ended, with an `epsilon_spread`."""


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
        self._returns: dict[str, float] = {}
        """Return so far of each episode that goes on."""
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
                options=self.config.env_options,
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

    def play(self, settings: PlaySettings) -> RunnerRollout:
        """Play one epoch's steps with these settings.

        Frames are compressed, counted and measured here: the driver of many runners has no time to.
        """
        self.set_exploration(settings)
        self.set_weights(_fetch(settings.weights))
        references: dict[str, FrameDistance] = _fetch(settings.references)
        episodes = self.sample()
        metrics = self.get_metrics()
        rollout = RunnerRollout(
            metrics,
            int(metrics.get(NUM_ENV_STEPS_SAMPLED, 0)),
            {
                "epsilon": float(self.module.epsilon),
                "temperature": float(self.module.temperature),
                "top_fraction": float(self.config.top_fraction),
            },
            snapshots=self.snapshots,
            fault=self.fault,
        )
        if self.module is not None and self.module.epsilon_spread:
            rollout.ended = self._end_episodes(episodes)
        for episode in filter(len, episodes):
            fragment = to_fragment(episode, episodic=self.config.episodic_returns)
            if self.config.reward_clipping:
                fragment = replace(fragment, rewards_T=fragment.rewards_T.clip(-1, 1))
            rollout.fragments.append(fragment)
            if self.config.games:
                frames_THWC = np.asarray(episode.observations.get())
                screens = rollout.screens.setdefault(fragment.game, set())
                screens |= distinct_screens(frames_THWC)
                if fragment.game in references:
                    found = references[fragment.game](frames_THWC[1::DISTANCE_EVERY])
                    before = rollout.distances.get(fragment.game, found[:0])
                    rollout.distances[fragment.game] = np.concatenate([before, found])
        return rollout

    def _end_episodes(self, episodes: list[Any]) -> list[tuple[int, float]]:
        """Add up the rewards of episodes; return arm and return of those that ended."""
        ended = []
        for episode in filter(len, episodes):
            value = self._returns.pop(episode.id_, 0.0) + float(episode.get_return())
            if episode.is_done:
                state = episode.get_extra_model_outputs(Columns.STATE_OUT, -1)
                ended.append((int(state["arm"][0]) - 1, value))
            else:
                self._returns[episode.id_] = value
        return ended

    def set_exploration(self, settings: PlaySettings) -> None:
        """Set epsilon and temperature of exploration and the top fraction of the reward."""
        if self.module is not None:
            self.module.set_exploration(settings.epsilon, settings.temperature, settings.arm_odds_K)
        # The config is frozen. A restarted runner begins with the original value.
        vars(self.config)["top_fraction"] = settings.top_fraction

    def set_weights(self, weights: dict[str, Any]) -> None:
        """Set the weights of the policy, arrays by name."""
        if self.module is not None:  # with remote runners the local one has no module
            self.module.set_state(weights)


def _fetch(value: Any) -> Any:
    """Return a value, from Ray's object store if it is there."""
    return ray.get(value) if isinstance(value, ray.ObjectRef) else value

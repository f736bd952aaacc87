"""AutoExplore as an RLlib `Algorithm`: collect, score, store, learn.

One iteration is one epoch of App. A.3; `exploration.train.explore` makes a whole run.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS

from envs import action_names
from envs.episodes.frame_distance import FrameDistance
from envs.utils.errors import InputError
from exploration.agent.bandit import EpisodeBandit
from exploration.agent.config import LossConfig, PolicyConfig
from exploration.agent.learner import ExploreLearner
from exploration.agent.policy import CnnLstm
from exploration.agent.priorities import Priority
from exploration.agent.replay_buffer import ReplayBuffer
from exploration.agent.rl_module import AgentModule, action_names_of
from exploration.agent.updates import Updates
from exploration.config import ExploreConfig, epsilon_at
from exploration.mutable_settings import MUTABLE_SETTINGS, apply_settings
from exploration.part_timer import PartTimer
from exploration.reward.scorers import Scorer
from exploration.reward.token_entropy import TOP_FRACTION, check_top_fraction
from exploration.rollout.callbacks import ExploreCallbacks
from exploration.rollout.env_runner import GameRunner, PlaySettings, RunnerRollout
from exploration.rollout.reward_connector import LOOKBACK
from exploration.rollout.sampler import RolloutSampler, WeightsVersion
from exploration.rollout.snapshots import SnapshotPair, merge_snapshots
from exploration.rollout.vector_env import STEP_SECONDS, check_env_slots

GAMES_ENV = "autoexplore-games"
DEFAULTS: dict[str, Any] = ExploreConfig().algorithm_settings() | {
    "runner_threads": 1,
    "archive": None,
    "env_options": (),
    "step_timeout_s": STEP_SECONDS,
}
"""Settings that `AutoExploreConfig.training` takes besides RLlib's, with their defaults."""
SAMPLE_TIMEOUT_S = 900.0
"""Longest wait of an epoch for a live env runner."""
RUNNER_TIMEOUT_S = 120.0
"""Longest wait of an epoch for a lost env runner to restart, if no other is left."""


class AutoExploreConfig(AlgorithmConfig):
    """Settings of AutoExplore: the fields of `ExploreConfig`, flat, so that Tune can vary any."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return a setting of DEFAULTS."""

    # RLlib declares these with the type of their defaults alone.
    env_runner_cls: Any
    num_cpus_per_env_runner: Any
    evaluation_config: Any
    gamma: Any
    seed: Any
    callbacks_class: Any
    sample_timeout_s: Any
    merge_env_runner_states: Any
    broadcast_env_runner_states: Any

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or AutoExplore)
        vars(self).update(DEFAULTS)
        self.games: tuple[str, ...] = ()
        self.actions: tuple[str, ...] = ()
        self.scorer: Callable[[], Scorer] | None = None
        self.grad_clip_by = "global_norm"
        self.env_runner_cls = GameRunner
        self.callbacks_class = ExploreCallbacks
        self.num_cpus_per_env_runner = 0.5
        self.num_env_runners = ExploreConfig.runners
        self.num_envs_per_env_runner = ExploreConfig.envs_per_runner
        self.episode_lookback_horizon = LOOKBACK
        self.evaluation_duration_unit = "timesteps"
        self.evaluation_force_reset_envs_before_iteration = True
        # Agents are compared by the paper's fraction and without random actions.
        self.evaluation_config = {"explore": False, "top_fraction": TOP_FRACTION}
        self.restart_failed_env_runners = self.restart_failed_sub_environments = True
        self.delay_between_env_runner_restarts_s = 1.0
        # No connector has a state; gathering them would wait for runners that are playing.
        self.merge_env_runner_states = self.broadcast_env_runner_states = False
        # An epoch with its rewards may take longer than RLlib's default of a minute.
        self.sample_timeout_s = self.evaluation_sample_timeout_s = SAMPLE_TIMEOUT_S

    def explore_settings(
        self,
        *,
        games: Sequence[str] = (),
        scorer: Callable[[], Scorer] | None = None,
        max_steps: int | None = None,
        actions: Sequence[str] = (),
    ) -> Self:
        """Set the games to explore, the reward and the maximum episode length.

        `games`: assigned to the envs in turn; without any set `.environment(env)` to an env of
        uint8 HWC frames. `scorer`: creates the scorer of a runner; without one the env's own reward
        is used. `actions`: names of other actions than the games' own.
        """
        if actions:
            self.actions = tuple(actions)
        if games:
            self.games = tuple(games)
            self.environment(GAMES_ENV)
        if scorer is not None:
            self.scorer = scorer
        if max_steps is not None:
            self.max_steps = max_steps
        return self

    def training(self, **settings: Any) -> Self:
        """Set settings of RLlib, and those of DEFAULTS."""
        own = {name: settings.pop(name) for name in DEFAULTS.keys() & settings.keys()}
        super().training(**settings)
        for name, value in own.items():
            setattr(self, name, value)
        return self

    @property
    def action_names(self) -> tuple[str, ...] | None:
        """Actions of the games; None for an env whose actions have no names."""
        return action_names(self.games, self.actions) if self.games else None

    @property
    def loss(self) -> LossConfig:
        """Coefficients of the loss."""
        return LossConfig(**{field.name: getattr(self, field.name) for field in fields(LossConfig)})

    def validate(self) -> None:
        """Raise InputError for invalid settings."""
        super().validate()
        check_top_fraction(self.top_fraction)
        _ = self.loss
        if self.games:
            check_env_slots(self.games, self.num_env_runners, self.num_envs_per_env_runner)
        if self.episode_lookback_horizon < LOOKBACK:
            raise InputError(
                f"episode_lookback_horizon {self.episode_lookback_horizon}: windows need {LOOKBACK}"
            )
        if self.num_learners > 1 and self.batch_size % self.num_learners:
            raise InputError(
                f"batch_size {self.batch_size} is not divisible by {self.num_learners} learners"
            )

    def get_default_learner_class(self) -> type:
        """Return the class of the learners."""
        return ExploreLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Return the agent's network as RLlib builds it."""
        model: dict[str, Any] = {"channels": tuple(self.channels), "actions": self.action_names}
        model["max_seq_len"] = self.seq_len + 1
        noise = ("burst_exponent", "noise_alpha", "sticky", "epsilon_spread")
        for name in ("lstm_dim", "feature_norm", "precision", "burn_in", *noise):
            model[name] = getattr(self, name)
        return RLModuleSpec(module_class=AgentModule, model_config=model)

    def get_rollout_fragment_length(self, worker_index: int = 0) -> int:
        """Return the steps that each env plays in one `sample()`: those of an epoch."""
        return self.steps_per_epoch

    @property
    def steps_of_runner(self) -> int:
        """Steps that the envs of a runner together play in an epoch."""
        return int(self.num_envs_per_env_runner * self.steps_per_epoch)

    @property
    def collected_per_epoch(self) -> int:
        """Steps that all envs together play in an epoch."""
        return max(self.num_env_runners, 1) * self.steps_of_runner

    @property
    def capacity(self) -> int:
        """Capacity of the replay buffer in steps."""
        return max(self.replay_capacity, self.min_replay_epochs * self.collected_per_epoch)

    @property
    def updates(self) -> int:
        """Updates in an epoch."""
        drawn = self.min_replay_ratio * self.collected_per_epoch
        return max(self.updates_per_epoch, math.ceil(drawn / (self.batch_size * self.seq_len)))


class AutoExplore(Algorithm):
    """Algorithm of App. A.3.

    One `train()` is one epoch: every env plays `steps_per_epoch` steps, then the learner makes
    `updates_per_epoch` updates.
    """

    config: AutoExploreConfig
    # RLlib declares these as None until `setup`.
    learner_group: Any
    env_runner_group: Any
    spaces: Any
    metrics: Any

    @classmethod
    def get_default_config(cls) -> AutoExploreConfig:
        """Return the default settings."""
        return AutoExploreConfig()

    def setup(self, config: Any) -> None:
        """Build runners, learners and an empty replay buffer."""
        super().setup(config)
        self.settings = self.config
        priority = Priority(self.config.priority_exponent, self.config.importance_exponent)
        self.replay = ReplayBuffer(self.config.capacity, self.config.seed or 0, priority)
        self.bandit = EpisodeBandit()
        self.timer = PartTimer()
        actions = self.spaces[DEFAULT_MODULE_ID][1].n
        self.updates = Updates(self.config, self.learner_group, self.metrics, actions, self.timer)
        self.screens: dict[str, set[bytes]] = {}
        self.snapshots: SnapshotPair | None = None
        self.references: Any = {}
        """Distances of `set_references`."""
        self.distances: dict[str, NDArray[np.float32]] = {}
        """Distances of the frames of the last epoch, one in DISTANCE_EVERY."""
        self.sampler = RolloutSampler(self.env_runner_group, self.config.max_staleness)
        self.settings_played: dict[str, float] = {}
        """Settings in effect in the newest rollout."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Change the MUTABLE_SETTINGS without rebuilding anything; Tune calls it.

        Returns False, and changes nothing, if another setting differs, which needs a new algorithm.
        """
        self.config = self.settings  # Tune replaces the config by a dict
        for name in DEFAULTS.keys() - MUTABLE_SETTINGS.keys() - {"final_epsilon"}:
            current = getattr(self.config, name)
            if new_config.get(name, current) != current:
                return False
        mutable = [name for name in MUTABLE_SETTINGS if name in new_config]
        apply_settings(self, {name: new_config[name] for name in mutable})
        return True

    @property
    def epsilon(self) -> float:
        """Epsilon of the current epoch."""
        c = self.config
        return epsilon_at(self.iteration, c.epsilon, c.final_epsilon, c.epsilon_epochs)

    def set_references(self, references: dict[str, FrameDistance]) -> None:
        """Set the distance of frames from the data of the world model, for games with such data."""
        self.references = ray.put(references)  # once, not with every request

    def training_step(self) -> None:
        """Collect with the newest weights, and learn."""
        started = time.monotonic()
        self._collect()
        collected = time.monotonic()
        with self.timer("other in updates"):
            self.updates.make_epoch(self.replay)
        learned = time.monotonic()
        self.metrics.log_dict({"epsilon": self.epsilon, "replay_steps": len(self.replay)}, window=1)
        seconds = {"sample": collected - started, "learn": learned - collected}
        # RLlib's own timers are running averages.
        self.metrics.log_dict(seconds, key="seconds", window=1)
        self.metrics.log_dict(self.timer.take(), key="driver_cpu_seconds", window=1)

    def _collect(self) -> None:
        """Collect one epoch: add its steps to the replay buffer, and keep the runners' snapshots.

        Waits up to RUNNER_TIMEOUT_S for a runner to restart if none answers. Raises InputError with
        the message of a runner that has failed for good.
        """
        deadline = time.monotonic() + RUNNER_TIMEOUT_S
        with self.timer("weights"):
            settings = self._play_settings()
        rollouts = self._sample(settings)
        while not any(rollout.fragments for rollout in rollouts):
            for fault in filter(None, (rollout.fault for rollout in rollouts)):
                raise InputError(fault)
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"no scored steps received from any env runner for {RUNNER_TIMEOUT_S:.0f} s"
                )
            time.sleep(1.0)
            self.restore_env_runners(self.env_runner_group)
            rollouts = self._sample(settings)
        self.distances = {}
        with self.timer("distinct screens"):
            for rollout in rollouts:
                self._add(rollout)
        self.settings_played = rollouts[-1].settings
        self.snapshots = merge_snapshots(rollout.snapshots for rollout in rollouts)
        staleness = [rollout.staleness for rollout in rollouts]
        values = {"mean": np.mean(staleness), "max": max(staleness)}
        counts = {name: getattr(self.sampler, name) for name in ("lost", "stale", "in_flight")}
        self.metrics.log_dict({"staleness": values, "rollouts": counts}, key="sampling", window=1)

    def _play_settings(self) -> PlaySettings:
        """Return the current settings of the rollouts, with the newest weights."""
        # One copy of the weights for all runners.
        weights = ray.put(self.learner_group.get_weights()[DEFAULT_MODULE_ID])
        values = (self.epsilon, self.config.temperature, self.config.top_fraction)
        return PlaySettings(*values, weights, self.references, self.bandit.odds())

    def _sample(self, settings: PlaySettings) -> list[RunnerRollout]:
        """Let the runners play; return their rollouts."""
        c = self.config
        with self.timer("receive"):
            rollouts = self.sampler.sample(
                settings,
                WeightsVersion(self.iteration, self.updates.done),
                # The others of a synchronous epoch are awaited, but one runner is enough to go on.
                steps=c.collected_per_epoch if c.max_staleness else c.steps_of_runner,
                seconds=c.sample_timeout_s,
            )
            if rollouts:
                received = [rollout.metrics for rollout in rollouts]
                self.metrics.aggregate(received, key=ENV_RUNNER_RESULTS)
        return rollouts

    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """Bring restarted runners back; their rollouts in flight are lost."""
        restored: list[int] = super().restore_env_runners(env_runner_group)
        if env_runner_group is self.env_runner_group:
            self.sampler.lose(restored)
        return restored

    def _add(self, rollout: RunnerRollout) -> None:
        """Add the fragments of a rollout to the replay buffer, and its screens and distances."""
        with self.timer("store"):
            for fragment in rollout.fragments:
                self.replay.add(fragment)
        self.bandit.add(rollout.ended)
        for game, screens in rollout.screens.items():
            self.screens.setdefault(game, set()).update(screens)
        for game, found in rollout.distances.items():
            before = self.distances.get(game, found[:0])
            self.distances[game] = np.concatenate([before, found])

    def _before_evaluate(self) -> None:
        """Reset the envs of a local evaluation runner; RLlib resets only those of remote ones."""
        if self.eval_env_runner is not None:
            self.eval_env_runner.start_evaluation()

    def network(self) -> CnnLstm:
        """Return a copy of the learner's network."""
        state = self.learner_group.get_weights()[DEFAULT_MODULE_ID]
        spaces = self.spaces[DEFAULT_MODULE_ID]
        shape = PolicyConfig(
            actions=action_names_of(spaces[1], self.config.action_names),
            channels=tuple(self.config.channels),
            lstm_dim=self.config.lstm_dim,
            feature_norm=self.config.feature_norm,
            size=spaces[0].shape[0],
        )
        network = CnnLstm(shape)
        arrays = {name.removeprefix("network."): array for name, array in state.items()}
        network.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
        return network

    def set_network(self, network: CnnLstm) -> None:
        """Set the weights of the network; optimizer, replay buffer and epoch stay."""
        weights = {
            f"network.{name}": tensor.cpu().numpy() for name, tensor in network.state_dict().items()
        }
        self.learner_group.set_weights({DEFAULT_MODULE_ID: weights})
        for group in filter(None, (self.env_runner_group, self.eval_env_runner_group)):
            # RLlib's own synchronisation drops weights that are not newer than the runner's.
            group.foreach_env_runner(partial(GameRunner.set_weights, weights=weights))

    def get_state(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Return RLlib's state, the screens and, with `replay_in_checkpoint`, the replay buffer."""
        state: dict[str, Any] = super().get_state(*arguments, **options)
        state["screens"] = {game: sorted(keys) for game, keys in self.screens.items()}
        state |= {"entropy_scale": self.updates.entropy_scale, "bandit": self.bandit.get_state()}
        if self.config.replay_in_checkpoint:
            state["replay"] = self.replay.get_state()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state of `get_state`, and the replay buffer if it was stored."""
        self.sampler.invalidate()
        super().set_state(state)
        self.screens = {game: set(keys) for game, keys in state.get("screens", {}).items()}
        self.updates.entropy_scale = state.get("entropy_scale", 1.0)
        self.bandit.set_state(state.get("bandit", []))
        if "replay" in state:
            self.replay.set_state(state["replay"])

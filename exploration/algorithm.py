"""AutoExplore as an RLlib `Algorithm`: collect, score, store, learn.

One iteration is one epoch of App. A.3; `exploration.train.explore` makes a whole run.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.execution.rollout_ops import synchronous_parallel_sample
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
)

from envs import action_names
from envs.episodes.frame_distance import FrameDistance
from envs.utils.errors import InputError
from envs.utils.screen_hash import distinct_screens
from exploration.agent.config import LossConfig, PolicyConfig
from exploration.agent.learner import ExploreLearner, as_learner_batch, quiet_actor_errors
from exploration.agent.loss import LOSS_PARTS
from exploration.agent.policy import CnnLstm
from exploration.agent.replay_buffer import Batch, Fragment, ReplayBuffer, Scale, to_fragment
from exploration.agent.rl_module import AgentModule, action_names_of
from exploration.config import ExploreConfig, epsilon_at
from exploration.mutable_settings import MUTABLE_SETTINGS, apply_settings
from exploration.reward.scorers import Scorer
from exploration.reward.token_entropy import TOP_FRACTION, check_top_fraction
from exploration.rollout.callbacks import ExploreCallbacks
from exploration.rollout.env_runner import GameRunner
from exploration.rollout.reward_connector import LOOKBACK
from exploration.rollout.snapshots import SnapshotPair, merge_snapshots
from exploration.rollout.vector_env import STEP_SECONDS, check_env_slots

GAMES_ENV = "autoexplore-games"
DEFAULTS: dict[str, Any] = ExploreConfig().algorithm_settings() | {
    "runner_threads": 1,
    "archive": None,
    "step_timeout_s": STEP_SECONDS,
}
"""Settings that `AutoExploreConfig.training` takes besides RLlib's, with their defaults."""
SAMPLE_TIMEOUT_S = 900.0
"""Longest wait of an epoch for a live env runner."""
DISTANCE_EVERY = 4
"""Every which frame is compared with the data of the world model, to save time."""
ENTROPY_STEP = 0.05
"""Change of the logarithm of the entropy coefficient in an update, for an entropy that misses its
target by all of ln A."""
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
        model = {
            "channels": tuple(self.channels),
            "lstm_dim": self.lstm_dim,
            "feature_norm": self.feature_norm,
            "actions": self.action_names,
            "max_seq_len": self.seq_len + 1,
            "precision": self.precision,
            "burn_in": self.burn_in,
            "burst_exponent": self.burst_exponent,
            "noise_alpha": self.noise_alpha,
        }
        return RLModuleSpec(module_class=AgentModule, model_config=model)

    def get_rollout_fragment_length(self, worker_index: int = 0) -> int:
        """Return the steps that each env plays in one `sample()`: those of an epoch."""
        return self.steps_per_epoch

    @property
    def collected_per_epoch(self) -> int:
        """Steps that all envs together play in an epoch."""
        runners = max(self.num_env_runners, 1)
        return int(runners * self.num_envs_per_env_runner * self.steps_per_epoch)

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
        self.replay = ReplayBuffer(self.config.capacity, seed=self.config.seed or 0)
        self.entropy_scale = 1.0
        """Factor of `entropy_coeff` that has brought the entropy near its target."""
        self.screens: dict[str, set[bytes]] = {}
        self.snapshots: SnapshotPair | None = None
        self.references: dict[str, FrameDistance] = {}
        """Distance of frames from the data of the world model, for each game with such data."""
        self.distances: dict[str, NDArray[np.float32]] = {}
        """Distances of the frames of the last epoch, one in DISTANCE_EVERY."""

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

    def training_step(self) -> None:
        """Collect, learn, and send the new weights to the runners."""
        started = time.monotonic()
        self._collect()
        collected = time.monotonic()
        self._learn()
        learned = time.monotonic()
        self.env_runner_group.sync_weights(
            from_worker_or_learner_group=self.learner_group, inference_only=True
        )
        self.metrics.log_dict({"epsilon": self.epsilon, "replay_steps": len(self.replay)}, window=1)
        seconds = {"sample": collected - started, "learn": learned - collected}
        # RLlib's own timers are running averages.
        self.metrics.log_dict(seconds, key="seconds", window=1)

    def _collect(self) -> None:
        """Collect one epoch: add its steps to the replay buffer, and keep the runners' snapshots.

        Waits up to RUNNER_TIMEOUT_S for a runner to restart if none answers. Raises InputError with
        the message of a runner that has failed for good.
        """
        deadline = time.monotonic() + RUNNER_TIMEOUT_S
        while not (episodes := self._sample_fragments()):
            self._raise_runner_fault()
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"no scored steps received from any env runner for {RUNNER_TIMEOUT_S:.0f} s"
                )
            time.sleep(1.0)
            self.restore_env_runners(self.env_runner_group)
        self.distances = {}
        for episode in episodes:
            self._add_to_replay(to_fragment(episode, episodic=self.config.episodic_returns))
        snapshots = self.env_runner_group.foreach_env_runner(lambda runner: runner.snapshots)
        self.snapshots = merge_snapshots(snapshots)

    def _sample_fragments(self) -> list[Any]:
        """Let every runner play with the current exploration settings; return scored fragments."""
        # Set before every sampling, so that the settings reach restarted runners.
        set_exploration = partial(
            GameRunner.set_exploration,
            epsilon=self.epsilon,
            temperature=self.config.temperature,
            top_fraction=self.config.top_fraction,
        )
        self.env_runner_group.foreach_env_runner(set_exploration)
        sampled: Any = synchronous_parallel_sample(
            worker_set=self.env_runner_group,
            max_env_steps=self.config.steps_per_epoch * self.config.num_envs_per_env_runner,
            concat=True,
            sample_timeout_s=self.config.sample_timeout_s,
            _uses_new_env_runners=True,
            _return_metrics=True,
        )
        episodes, results = sampled
        self.metrics.aggregate(results, key=ENV_RUNNER_RESULTS)
        return [episode for episode in episodes if len(episode)]

    def _raise_runner_fault(self) -> None:
        """Raise InputError if a runner has failed for good, with the message of the first one."""
        for fault in self.env_runner_group.foreach_env_runner(lambda runner: runner.fault):
            if fault:
                raise InputError(fault)

    def _add_to_replay(self, fragment: Fragment) -> None:
        """Add a fragment to the replay buffer, and its screens to those of its game."""
        if self.config.reward_clipping:
            fragment = replace(fragment, rewards_T=fragment.rewards_T.clip(-1, 1))
        self.replay.add(fragment)
        if self.config.games:
            screens = self.screens.setdefault(fragment.game, set())
            frames_THWC = fragment.frames_THWC
            screens.update(distinct_screens(frames_THWC))
            if fragment.game in self.references:
                found = self.references[fragment.game](frames_THWC[1::DISTANCE_EVERY])
                before = self.distances.get(fragment.game, found[:0])
                self.distances[fragment.game] = np.concatenate([before, found])

    def _learn(self) -> None:
        """Make one epoch's updates, and log the means of the loss terms under `learning`."""
        c = self.config
        scale = self._reward_scale() if c.normalize_rewards else None
        terms: dict[str, list[float]] = {name: [] for name in LOSS_PARTS}
        for _ in range(c.updates):
            batch = self.replay.sample(c.batch_size, c.seq_len, c.burn_in, scale)
            batch["entropy_coeff"] = np.full(c.batch_size, self.entropy_coeff, np.float32)
            results = self._update(batch)
            for name, values in terms.items():
                values.append(float(results[0][DEFAULT_MODULE_ID][name].peek()))
            self.metrics.aggregate(results, key=LEARNER_RESULTS)
            self._adjust_entropy_coeff(terms["entropy"][-1])
        means = {name: float(np.mean(values)) for name, values in terms.items()}
        means["entropy_coeff"] = self.entropy_coeff
        self.metrics.log_dict(means, key="learning", window=1)

    @property
    def entropy_coeff(self) -> float:
        """Coefficient of the entropy bonus in the next update."""
        return float(self.config.entropy_coeff * self.entropy_scale)

    def _adjust_entropy_coeff(self, entropy: float) -> None:
        """Raise the coefficient if the entropy of an update's policy, in nats, is below its target,
        and lower it otherwise."""
        if not self.config.target_entropy:
            return
        share = entropy / math.log(self.spaces[DEFAULT_MODULE_ID][1].n)
        change = math.exp(ENTROPY_STEP * (self.config.target_entropy - share))
        self.entropy_scale = min(max(self.entropy_scale * change, 1e-3), 1e3)

    def _reward_scale(self) -> Scale:
        """Compute the scale of rewards to mean 0 and deviation 1 - gamma, game by game.

        A return is then a weighted mean of rewards of deviation 1.
        """
        horizon = 1 / max(1 - float(self.config.gamma), 1e-3)
        scale = self.replay.reward_scale()
        return {game: (mean, width * horizon) for game, (mean, width) in scale.items()}

    def _update(self, batch: Batch) -> Any:
        """Make one update with all learners; return their metrics."""
        lifetime = (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME)
        steps = {NUM_ENV_STEPS_SAMPLED_LIFETIME: self.metrics.peek(lifetime)}
        learners = self.config.num_learners
        if learners < 2:
            data: dict[str, Any] = {"batch": as_learner_batch(batch)}
        else:
            # RLlib would cut one batch inside a segment; each learner gets whole ones.
            count = max(batch["learn"].sum(), 1) / learners
            rows = batch | {"count": np.full(len(batch["learn"]), count, np.float32)}
            parts = [
                {name: values[part::learners] for name, values in rows.items()}
                for part in range(learners)
            ]
            data = {"batches": [as_learner_batch(part) for part in parts]}
        with quiet_actor_errors():
            return self.learner_group.update(**data, timesteps=steps)

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
        state["entropy_scale"] = self.entropy_scale
        if self.config.replay_in_checkpoint:
            state["replay"] = self.replay.get_state()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state of `get_state`, and the replay buffer if it was stored."""
        super().set_state(state)
        self.screens = {game: set(keys) for game, keys in state.get("screens", {}).items()}
        self.entropy_scale = state.get("entropy_scale", 1.0)
        if "replay" in state:
            self.replay.set_state(state["replay"])

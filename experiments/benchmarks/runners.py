"""Benchmark of the driver of exploration: its CPU-seconds for each step that env runners play.

The runners are fake: they sleep for as long as a real one plays, and answer with fragments of real
size, cut from recorded play. Processes of Ray hold many of them, so that 256 fit one machine; the
driver still sends each its own calls and receives its own answers. The algorithm is the real one.
The learner, a process of its own, gets the batches but computes nothing. CPU-seconds, unlike those
on the clock, hardly depend on what else the machine does.
"""

import itertools
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import ray
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

import envs
from envs.collect.policies import RandomPolicy
from envs.collect.worker import EpisodeKey, play_episode
from experiments.benchmarks.common import Args, Row
from exploration.agent.learner import ExploreLearner
from exploration.agent.loss import LOSS_PARTS
from exploration.agent.replay_buffer import GAME, SCORED
from exploration.config import explore_preset
from exploration.rollout.callbacks import log_games
from exploration.rollout.env_runner import GameRunner
from exploration.rollout.reward_connector import LOOKBACK
from exploration.rollout.vector_env import spaces
from exploration.train import configure

RUNNERS = (4, 16, 64, 256)
PROCESSES = 4
"""Processes that hold the fake runners."""
RUNNER_RATE = 200
"""Steps per second of a runner with the paper's four envs."""
STORE_BYTES = 2_000_000_000
"""Object store of Ray, which holds an epoch of 256 runners."""
EPISODE = 1_000
"""Steps of an episode."""
EPOCHS = 2
"""Measured epochs; one more comes before them."""
UPDATES = 64
"""Updates in a measured epoch. Their cost is multiplied to as many as the paper's epoch has."""
PER_UPDATE = ("draw batches", "send batches", "other in updates")
"""Parts that cost something for each update, not for each step."""


class StillEnv(gymnasium.Env[Any, Any]):
    """Env with the spaces of a game, which is never played."""

    def __init__(self, game: str) -> None:
        self.observation_space, self.action_space = spaces([game])


class FakeRunner(GameRunner):
    """Process of many fake runners. Each call of `sample` is that of the next of them."""

    def __init__(self, *, config: Any, frames: Any = None, runners: int = 1, **_: Any) -> None:
        super().__init__(config=config)
        self._frames, self._runners = frames, runners
        self._calls, self._lock, self._own = itertools.count(), threading.Lock(), threading.local()

    def make_env(self) -> None:
        """Make envs of the right spaces."""
        self.num_envs = self.config.num_envs_per_env_runner
        games = self.config.games
        self.games = [games[index % len(games)] for index in range(self.num_envs)]
        self.env = SyncVectorEnv([partial(StillEnv, game) for game in self.games])

    def stop(self) -> None:
        """Do nothing: other runners still use this process."""

    def sample(self, **_: Any) -> list[Any]:
        """Sleep for as long as a runner plays; return the next fragments of one runner."""
        steps = self.config.steps_per_epoch
        time.sleep(steps * self.num_envs / RUNNER_RATE)
        with self._lock:
            epoch, runner = divmod(next(self._calls), self._runners)
            episodes = [
                self._fragment(f"{id(self)}-{runner}-{env}-", epoch * steps, steps, game)
                for env, game in enumerate(self.games)
            ]
            self._increase_sampled_metrics(steps * self.num_envs, 0)
            log_games(self.metrics, episodes, [], self.games)
            self._own.metrics = super().get_metrics()
            return episodes

    def get_metrics(self) -> Any:
        """Return the metrics of the last sample of this thread."""
        return self._own.metrics

    def set_weights(self, weights: dict[str, Any]) -> None:
        """Set the weights, in one thread at a time."""
        with self._lock:
            super().set_weights(weights)

    def _fragment(self, name: str, first: int, steps: int, game: str) -> SingleAgentEpisode:
        """Return steps of recorded play as an env runner does, with the outputs of a policy."""
        number, first = divmod(first, EPISODE)
        lookback = min(LOOKBACK, first)
        length, actions = lookback + steps, int(self.env.single_action_space.n)
        generator = np.random.default_rng(first)
        state_TD = generator.standard_normal((2, length, self.config.lstm_dim), np.float32)
        episode = SingleAgentEpisode(
            f"{name}{number}",
            observations=list(self._frames[first - lookback : first + steps + 1]),
            actions=list(generator.integers(actions, size=length)),
            rewards=list(generator.random(length, np.float32)),
            extra_model_outputs={
                Columns.ACTION_LOGP: list(np.full(length, -1.6, np.float32)),
                Columns.ACTION_DIST_INPUTS: list(np.full((length, actions), -1.6, np.float32)),
                Columns.STATE_OUT: [{"h": h, "c": c} for h, c in zip(*state_TD, strict=True)],
                SCORED: list(np.ones(length, np.bool_)),
            },
            t_started=first,
            len_lookback_buffer=lookback,
        )
        episode.custom_data[GAME] = game
        return episode.to_numpy()


class IdleLearner(ExploreLearner):
    """Learner that receives its batches and computes nothing."""

    def _update(self, batch: dict[str, Any], **_: Any) -> Any:
        self.metrics.log_dict(dict.fromkeys(LOSS_PARTS, 0.0), key=DEFAULT_MODULE_ID, window=1)
        return {}, {}, {}


def measure_runners(args: Args, scratch: Path) -> Iterator[Row]:
    """Measure the driver with more and more runners."""
    frames = ray.put(record_frames(args.games[0]))
    for runners in RUNNERS:
        parts = driver_seconds(args.games, runners, frames)
        for part, seconds in parts.items():
            yield Row("runners", f"{runners} runners: {part}", 1e6 * seconds, "us/step")
        rate = 1 / sum(parts.values())
        played = runners * RUNNER_RATE
        yield Row("runners", f"{runners} runners: driver", rate, "steps/s", "played", played, 1.0)
        most = rate / RUNNER_RATE
        yield Row("runners", f"{runners} runners: most runners at this cost", most, "runners")


def record_frames(game: str) -> NDArray[np.uint8]:
    """Return the frames of random play in one episode of EPISODE steps, or its repetition."""
    env = envs.make(game)
    try:
        episode = play_episode(env, RandomPolicy(), EpisodeKey(game, "random", 0, 0), steps=EPISODE)
    finally:
        env.close()
    frames_THWC = episode.frames_THWC
    return np.resize(frames_THWC, (EPISODE + 1, *frames_THWC.shape[1:]))


def driver_seconds(games: tuple[str, ...], runners: int, frames: Any) -> dict[str, float]:
    """Return the CPU-seconds of the driver for each env-step, by part."""
    paper = explore_preset("paper")
    steps = runners * paper.envs_per_runner * paper.steps_per_epoch
    drawn = paper.batch_size * paper.seq_len
    config = explore_preset(
        "paper",
        runners=0,
        learners=1,
        updates_per_epoch=UPDATES,
        min_replay_ratio=1e-6,
        replay_capacity=paper.min_replay_epochs * steps,
        evaluate_every=1_000,
    )
    settings = configure(config, games, None)
    settings.env_runners(env_runner_cls=FakeRunner).learners(learner_class=IdleLearner)
    algorithm: Any = settings.build_algo()
    try:
        processes = min(runners, PROCESSES)
        resources: Any = {"num_cpus": 0, "max_concurrency": runners // processes}
        actor: Any = ray.remote(**resources)(FakeRunner)
        own = {"frames": frames, "runners": runners // processes}
        handles = [actor.remote(config=settings, **own) for _ in range(processes)]
        algorithm.env_runner_group.reset(handles * (runners // processes))
        algorithm.train()
        started = time.process_time()
        measured = [algorithm.train()["driver_cpu_seconds"] for _ in range(EPOCHS)]
        total = time.process_time() - started
    finally:
        algorithm.stop()
        for handle in handles:
            ray.kill(handle)
    seconds = {part: sum(epoch[part] for epoch in measured) for part in measured[0]}
    seconds["other"] = total - sum(seconds.values())
    updates = paper.min_replay_ratio / drawn  # for each step
    return {
        part: spent / EPOCHS * (updates / UPDATES if part in PER_UPDATE else 1 / steps)
        for part, spent in seconds.items()
    }

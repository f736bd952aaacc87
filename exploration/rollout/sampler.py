"""Sampling of rollouts from env runners, one at a time from each.

With a largest staleness of 0 every runner plays one rollout an epoch, and all are awaited.
Otherwise, as in IMPALA (Espeholt et al. 2018), a runner that has answered begins its next rollout
at once and plays on while the learner updates. An epoch then takes what has arrived once it is
enough, but never goes on while a rollout is in flight that would be too old in the next one.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from exploration.rollout.env_runner import GameRunner, PlaySettings, RunnerRollout

TAG = "play"
"""RLlib's name for the requests of a sampler."""
POLL_SECONDS = 0.1
"""Longest time for which a runner that has answered stays idle."""


@dataclass(frozen=True)
class WeightsVersion:
    """Epoch and updates from which a rollout has its weights."""

    epoch: int
    updates: int


BEFORE_ALL = WeightsVersion(-(10**9), 0)


class RolloutSampler:
    """Requests of rollouts, and the version of the weights of each."""

    def __init__(self, group: Any, max_staleness: int) -> None:
        self.group, self.max_staleness = group, max_staleness
        """RLlib's group of env runners; largest age of a rollout in epochs."""
        self.lost = 0
        """Rollouts lost with their runners."""
        self.stale = 0
        """Rollouts dropped because they came too late, or are of an agent that was replaced."""
        self._in_flight: dict[int, WeightsVersion] = {}

    @property
    def in_flight(self) -> int:
        """Rollouts that are being played."""
        return len(self._in_flight)

    def sample(
        self, settings: PlaySettings, now: WeightsVersion, *, steps: int, seconds: float
    ) -> list[RunnerRollout]:
        """Return rollouts of at least so many steps, or what has arrived after so many seconds.

        They are fewer also if no runner is alive. Without runner processes the local runner plays.
        """
        if not self.group.num_remote_env_runners():
            return self._play_locally(settings, steps)
        deadline, received = time.monotonic() + seconds, dict[int, list[RunnerRollout]]()
        self._request(settings, now)
        while self._in_flight and time.monotonic() < deadline:
            self._receive(received, now, deadline)
            played = sum(rollout.steps for own in received.values() for rollout in own)
            # The last requests are played during the updates.
            if self.max_staleness or (played < steps and not self._in_flight):
                self._request(settings, now)
            if played >= steps and not self._is_late(now):
                break
        # In the order of the runners, so that it does not depend on their speeds.
        return [rollout for runner in sorted(received) for rollout in received[runner]]

    def lose(self, runners: Iterable[int]) -> None:
        """Count the rollouts in flight of runners that were restarted as lost."""
        for runner in self._in_flight.keys() & set(runners):
            del self._in_flight[runner]
            self.lost += 1

    def invalidate(self) -> None:
        """Drop the rollouts in flight when they arrive: the agent has been replaced."""
        self._in_flight = dict.fromkeys(self._in_flight, BEFORE_ALL)

    def _play_locally(self, settings: PlaySettings, steps: int) -> list[RunnerRollout]:
        rollouts: list[RunnerRollout] = []
        while sum(rollout.steps for rollout in rollouts) < steps:
            rollouts.append(self.group.local_env_runner.play(settings))
        return rollouts

    def _request(self, settings: PlaySettings, now: WeightsVersion) -> None:
        """Request a rollout from each idle runner."""
        idle = [id_ for id_ in self.group.healthy_env_runner_ids() if id_ not in self._in_flight]
        if idle:  # RLlib takes an empty list for all runners
            play = partial(GameRunner.play, settings=settings)
            self.group.foreach_env_runner_async(play, tag=TAG, remote_worker_ids=idle)
            self._in_flight |= dict.fromkeys(idle, now)

    def _receive(
        self, received: dict[int, list[RunnerRollout]], now: WeightsVersion, deadline: float
    ) -> None:
        """Wait for rollouts: for all of them, or for those of the next POLL_SECONDS."""
        wait = POLL_SECONDS if self.max_staleness else deadline - time.monotonic()
        for runner, rollout in self.group.fetch_ready_async_reqs(
            tags=TAG, timeout_seconds=max(wait, 0.0)
        ):
            asked = self._in_flight.pop(runner)
            rollout.staleness = now.updates - asked.updates
            if now.epoch - asked.epoch > self.max_staleness:
                self.stale += 1
            else:
                received.setdefault(runner, []).append(rollout)
        # RLlib has marked those that failed.
        self.lose(self._in_flight.keys() - set(self.group.healthy_env_runner_ids()))

    def _is_late(self, now: WeightsVersion) -> bool:
        """Return True if a rollout in flight would be too old in the next epoch."""
        oldest = min((asked.epoch for asked in self._in_flight.values()), default=now.epoch + 1)
        return now.epoch + 1 - oldest > self.max_staleness

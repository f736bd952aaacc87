"""Reward connector: scores the fragments of an env runner and writes the rewards into its episodes.

The policy does not see the reward, so whole fragments are scored at the end of `sample()`, with all
requests in flight at once; scoring each step would halve the sampling rate. A fragment that could
not be scored is removed and counted; its steps never get a wrong reward.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer

from exploration.agent.replay_buffer import SCORED
from exploration.reward.scorers import ClipRewards, Pending, Scorer, ScoringError
from exploration.reward.token_entropy import check_top_fraction
from worldmodel.config import WINDOW

LOOKBACK = WINDOW - 1
"""Steps of the previous fragment that a fragment keeps, so that windows cross the boundary."""


class RewardConnector(ConnectorV2):
    """Writes rewards and the `scored` column of finished fragments (numpy).

    Fragments without rewards are removed from the list. Until the next call `dropped` holds them,
    and `rewards` what the scorer returned for the others.
    """

    def __init__(self, scorer: Scorer, top_fraction: float) -> None:
        super().__init__()
        check_top_fraction(top_fraction)
        self.scorer, self.top_fraction = scorer, top_fraction
        self.dropped: list[tuple[SingleAgentEpisode, str]] = []
        self.rewards: list[tuple[SingleAgentEpisode, ClipRewards]] = []
        self._steps_sent: dict[tuple[str, int], int] = {}
        self._pending: dict[tuple[str, int], list[Pending]] = {}

    def submit_early(self, episode: SingleAgentEpisode) -> None:
        """Submit the new steps of an unfinished fragment once they fill a request.

        A service then scores while the games play on. A scorer without `ahead` computes in this
        process, at the end.
        """
        ahead = getattr(self.scorer, "ahead", 0)
        if ahead and len(episode) - self._steps_sent.get(_key(episode), 0) >= ahead:
            self._submit(episode)

    def __call__(
        self, *, episodes: list[Any], batch: dict[str, Any] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Score all fragments; every request is sent before the first answer is awaited."""
        self.dropped, self.rewards = [], []
        for episode in episodes:
            self._submit(episode)
        kept = []
        for episode in episodes:
            try:
                rewards = _concat([receive() for receive in self._pending[_key(episode)]])
            except ScoringError as error:
                self.dropped.append((episode, str(error)))
                continue
            write_rewards(episode, rewards.rewards_B)
            self.rewards.append((episode, rewards))
            kept.append(episode)
        episodes[:] = kept
        # Also forgets fragments whose env failed.
        self._steps_sent.clear()
        self._pending.clear()
        return batch or {}

    def _submit(self, episode: SingleAgentEpisode) -> None:
        """Submit the windows that end in those steps of a fragment that were not submitted yet."""
        key = _key(episode)
        pending = self._pending.setdefault(key, [])
        new_steps = len(episode) - self._steps_sent.get(key, 0)
        self._steps_sent[key] = len(episode)
        frames_THWC = np.asarray(episode.observations.data[-(LOOKBACK + new_steps) :])
        if len(frames_THWC) >= WINDOW:  # the first four frames of an episode end no window
            actions_T = np.asarray(episode.actions.data[1 - len(frames_THWC) :])
            pending.append(self.scorer.submit(frames_THWC, actions_T, self.top_fraction))


def _key(episode: SingleAgentEpisode) -> tuple[str, int]:
    """Identify one fragment of one episode."""
    return str(episode.id_), int(episode.t_started)


def _concat(parts: list[ClipRewards]) -> ClipRewards:
    """Concatenate the rewards of consecutive parts of a fragment."""
    tokens = [part.tokens_BN for part in parts if part.tokens_BN is not None]
    rewards_B = np.concatenate([np.zeros(0, np.float32), *(part.rewards_B for part in parts)])
    return ClipRewards(rewards_B, np.concatenate(tokens) if tokens else None)


def write_rewards(episode: SingleAgentEpisode, rewards_B: NDArray[np.float32]) -> None:
    """Replace the rewards of a fragment by those of its last B steps, and mark these as scored."""
    lookback, unscored = episode.rewards.lookback, len(episode) - len(rewards_B)
    # set_rewards would warn about every reward that is a numpy scalar.
    before = [*episode.rewards.data[:lookback], *[0.0] * unscored]
    episode.rewards.data = np.concatenate([np.array(before, np.float32), rewards_B])
    scored = np.arange(lookback + len(episode)) >= lookback + unscored
    episode.extra_model_outputs[SCORED] = InfiniteLookbackBuffer(scored, lookback=lookback)

"""Reward connector: scores the fragments of an env runner and writes the rewards into its episodes.

The policy does not see the reward, so whole fragments are scored at the end of `sample()`, with
many windows in a request and all requests in flight: a call at every step would halve the rate. A
fragment that could not be scored is removed and counted; it never carries a made-up reward.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer

from exploration.agent.replay_buffer import SCORED
from exploration.reward.scorers import Scorer, ScoringError
from exploration.reward.token_entropy import check_top_fraction, cut_windows, uncertainty_reward
from worldmodel.uncertainty import WINDOW

LOOKBACK = WINDOW - 1
"""Steps that a fragment keeps of the one before, so that windows cross the cut."""
Pending = tuple[NDArray[np.bool_], Callable[[], NDArray[np.float32]] | None]
"""Some steps of a fragment: which of them are scored, and a call that awaits the answer."""


class RewardConnector(ConnectorV2):
    """Writes the rewards and the `scored` column of finished fragments (numpy).

    Fragments without a score are removed from the list. Until the next call they are kept in
    `dropped`, and the scorer's answers about the others in `answers`.
    """

    def __init__(self, scorer: Scorer, top_fraction: float) -> None:
        super().__init__()
        check_top_fraction(top_fraction)
        self.scorer, self.top_fraction = scorer, top_fraction
        self.dropped: list[tuple[SingleAgentEpisode, str]] = []
        self.answers: list[tuple[SingleAgentEpisode, NDArray[np.float32]]] = []
        self._sent: dict[tuple[str, int], list[Pending]] = {}

    def submit_early(self, episode: SingleAgentEpisode) -> None:
        """Submit the new steps of a fragment that is still being played, once they fill a request.

        A service then scores while the games play on. A scorer without `ahead` computes in this
        process, at the end.
        """
        ahead = getattr(self.scorer, "ahead", 0)
        if ahead and len(episode) - self._steps_sent(episode) >= ahead:
            self._send(episode)

    def __call__(
        self,
        *,
        rl_module: Any = None,
        batch: dict[str, Any] | None = None,
        episodes: list[Any],
        explore: bool | None = None,
        shared_data: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Score all fragments; every request is sent before the first answer is awaited."""
        self.dropped, self.answers = [], []
        for episode in episodes:
            self._send(episode)
        kept = []
        for episode in episodes:
            try:
                rewards_T, scored_T, answer = self._receive(episode)
            except ScoringError as error:
                self.dropped.append((episode, str(error)))
                continue
            write_rewards(episode, rewards_T, scored_T)
            if answer is not None:
                self.answers.append((episode, answer))
            kept.append(episode)
        episodes[:] = kept
        self._sent.clear()  # also what was sent of fragments that a fault has ended
        return batch or {}

    def _receive(
        self, episode: SingleAgentEpisode
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32] | None]:
        """Await the scores of a fragment; return its rewards, the steps that have one, the answers.

        Raises ScoringError where a part of the fragment could not be scored.
        """
        rewards, scored, answers = [], [], []
        for scored_T, score in self._sent[_key(episode)]:
            rewards_T = np.zeros(len(scored_T), np.float32)
            if score is not None:
                # Entropies (B, N) of a world model, or rewards (B,) of a baseline.
                answer = score()
                is_reward = answer.ndim == 1
                rewards_T[scored_T] = (
                    answer if is_reward else uncertainty_reward(answer, self.top_fraction)
                )
                answers.append(answer)
            rewards.append(rewards_T)
            scored.append(scored_T)
        joined_answers = np.concatenate(answers) if answers else None
        return np.concatenate(rewards), np.concatenate(scored), joined_answers

    def _steps_sent(self, episode: SingleAgentEpisode) -> int:
        return sum(len(scored_T) for scored_T, _ in self._sent.get(_key(episode), ()))

    def _send(self, episode: SingleAgentEpisode) -> None:
        """Submit the windows of those steps of a fragment that were not submitted yet."""
        steps = len(episode) - self._steps_sent(episode)
        past = WINDOW - 1 + steps
        frames_LHWC = np.asarray(episode.observations.data[-past - 1 :])
        windows = cut_windows(frames_LHWC, np.asarray(episode.actions.data[-past:]), steps)
        score = (
            self.scorer.submit(windows.frames_B5HWC, windows.actions_B4)
            if windows.scored_T.any()
            else None
        )
        self._sent.setdefault(_key(episode), []).append((windows.scored_T, score))


def _key(episode: SingleAgentEpisode) -> tuple[str, int]:
    """Identify one fragment of one episode."""
    return str(episode.id_), int(episode.t_started)


def write_rewards(
    episode: SingleAgentEpisode, rewards_T: NDArray[np.float32], scored_T: NDArray[np.bool_]
) -> None:
    """Replace the rewards of a fragment, and note which of its steps have one."""
    lookback = episode.rewards.lookback
    # set_rewards would warn about every reward that is a numpy scalar.
    episode.rewards.data = np.concatenate(
        [np.asarray(episode.rewards.data[:lookback], np.float32), rewards_T]
    )
    column_T = np.concatenate([np.zeros(lookback, np.bool_), scored_T])
    episode.extra_model_outputs[SCORED] = InfiniteLookbackBuffer(column_T, lookback=lookback)

"""The reward connector: scores what an environment runner has collected and writes the rewards into its episodes.

Nothing acts on the reward while it plays, so whole fragments are scored at the end of `sample()`, many windows a
request and all requests in flight: a call per step would halve the rate (ray.md). A fragment that could not be scored
is taken out and counted; it never carries a made-up reward.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer

from envs.errors import InputError
from exploration.film import Film
from exploration.glimpse import Glimpse, Glimpses
from exploration.replay import Fragment
from exploration.reward import WINDOW, check_top_fraction, cut_windows, uncertainty_reward
from exploration.scorers import Scorer, ScoringError

LOOKBACK = WINDOW - 1
"""Steps that a fragment keeps of the one before, so that windows cross the cut."""
SCORED = "scored"
"""Extra column of an episode: whether a step has a reward."""
GAME = "game"
"""Key of an episode's custom data."""

Pending = tuple[NDArray[np.bool_], Callable[[], NDArray[np.float32]] | None]
"""Some steps of a fragment: which of them are scored, and what waits for their entropies."""


class RewardConnector(ConnectorV2):
    """Called with `episodes`, finished fragments (numpy): writes their rewards and the `scored` column.

    Fragments without a score are removed from the list and kept in `dropped` until the next call.
    """

    def __init__(self, scorer: Scorer, top_fraction: float) -> None:
        super().__init__()
        check_top_fraction(top_fraction)
        self.scorer, self.top_fraction = scorer, top_fraction
        self.dropped: list[tuple[SingleAgentEpisode, str]] = []
        self.glimpses: Glimpses | None = None
        self._sent: dict[tuple[str, int], list[Pending]] = {}

    def send_ahead(self, episode: SingleAgentEpisode) -> None:
        """Send what a fragment that is still being played has gained, once that is enough for a request.

        So that a service scores while the games play on; a scorer without `ahead` computes in this process, and waits.
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
        """Score all fragments; every request is sent before the first answer is waited for."""
        self.dropped, self.glimpses = [], None
        for episode in episodes:
            self._send(episode)
        for episode in list(episodes):
            rewards, scored, answers = [], [], []
            try:
                for scored_T, score in self._sent[_key(episode)]:
                    rewards.append(np.zeros(len(scored_T), np.float32))
                    scored.append(scored_T)
                    if score is not None:
                        answer = score()  # entropies (B, N), or from `exploration.baselines` rewards (B,)
                        rewards_B = answer if answer.ndim == 1 else uncertainty_reward(answer, self.top_fraction)
                        rewards[-1][scored_T] = rewards_B
                        answers.append(answer)
            except ScoringError as error:
                self.dropped.append((episode, str(error)))
                episodes[:] = [kept for kept in episodes if kept is not episode]
            else:
                rewards_T, scored_T = np.concatenate(rewards), np.concatenate(scored)
                write_rewards(episode, rewards_T, scored_T)
                if answers:
                    self._look(episode, np.concatenate(answers), rewards_T[scored_T])
        self._sent.clear()  # and with it what was sent of fragments that a fault has ended
        return batch or {}

    def _look(self, episode: SingleAgentEpisode, answer: NDArray[Any], rewards_B: NDArray[np.floating]) -> None:
        """Keep the newest screen of a fragment, and the one that paid most of all fragments of this call."""
        frames, game = episode.observations.data, episode.custom_data.get(GAME, "")

        def glimpse(window: int) -> Glimpse:
            frame_HWC = np.asarray(frames[len(frames) - len(rewards_B) + window])
            entropy_N = answer[window] if answer.ndim == 2 else np.empty(0, np.float32)
            return Glimpse(game, frame_HWC, entropy_N, float(rewards_B[window]))

        newest, peak = glimpse(len(rewards_B) - 1), glimpse(int(np.argmax(rewards_B)))
        if self.glimpses is not None and self.glimpses.peak.reward >= peak.reward:
            peak = self.glimpses.peak
        self.glimpses = Glimpses(newest, peak)

    def _steps_sent(self, episode: SingleAgentEpisode) -> int:
        return sum(len(scored_T) for scored_T, _ in self._sent.get(_key(episode), ()))

    def _send(self, episode: SingleAgentEpisode) -> None:
        """Submit the windows that end in the steps of a fragment which were not sent yet."""
        steps = len(episode) - self._steps_sent(episode)
        past = WINDOW - 1 + steps
        frames_LHWC = np.asarray(episode.observations.data[-past - 1 :])
        windows = cut_windows(frames_LHWC, np.asarray(episode.actions.data[-past:]), steps)
        score = self.scorer.submit(windows.frames_B5HWC, windows.actions_B4) if windows.scored_T.any() else None
        self._sent.setdefault(_key(episode), []).append((windows.scored_T, score))


def _key(episode: SingleAgentEpisode) -> tuple[str, int]:
    """One fragment of one episode."""
    return str(episode.id_), int(episode.t_started)


def write_rewards(episode: SingleAgentEpisode, rewards_T: NDArray[np.float32], scored_T: NDArray[np.bool_]) -> None:
    """Replace a fragment's rewards by these, and note which of its steps have one."""
    lookback = episode.rewards.lookback
    # set_rewards would warn about every reward that is a numpy scalar.
    episode.rewards.data = np.concatenate([np.asarray(episode.rewards.data[:lookback], np.float32), rewards_T])
    column_T = np.concatenate([np.zeros(lookback, np.bool_), scored_T])
    episode.extra_model_outputs[SCORED] = InfiniteLookbackBuffer(column_T, lookback=lookback)


def to_fragment(episode: SingleAgentEpisode) -> Fragment:
    """What the replay keeps of a fragment (numpy) that has its rewards. Raises ValueError for one without lookback."""
    steps, past = len(episode), episode.rewards.lookback
    if episode.t_started > 0 and past == 0:
        raise ValueError("a fragment in mid-episode needs the step before it for the LSTM state: lookback of 1 or more")
    outputs: dict[str, Any] = {name: buffer.data for name, buffer in episode.extra_model_outputs.items()}
    scored_T = outputs[SCORED][past:] if SCORED in outputs else np.ones(steps, np.bool_)
    return Fragment(
        episode_id=episode.id_,
        game=episode.custom_data.get(GAME, ""),
        first_step=episode.t_started,
        terminated=bool(episode.is_terminated),
        film=Film.of(np.asarray(episode.observations.data)[past:]),
        actions_T=np.asarray(episode.actions.data[past:], np.int64),
        rewards_T=np.asarray(episode.rewards.data[past:], np.float32),
        log_probabilities_T=np.asarray(outputs[Columns.ACTION_LOGP][past:], np.float32),
        scored_T=np.asarray(scored_T, np.bool_),
        h_TD=_state_before(outputs[Columns.STATE_OUT]["h"], past),
        c_TD=_state_before(outputs[Columns.STATE_OUT]["c"], past),
    )


def _state_before(state_after_LD: NDArray[np.floating], past: int) -> NDArray[np.float16]:
    """LSTM states before each step from those after it; an episode starts from zeros."""
    first = state_after_LD[past - 1 : past] if past else np.zeros_like(state_after_LD[:1])
    return np.concatenate([first, state_after_LD[past:-1]]).astype(np.float16)


class ExploreCallbacks(RLlibCallback):
    """Notes each episode's game, and scores what a runner has collected before it leaves the runner."""

    def __init__(self) -> None:
        super().__init__()
        self._connector: RewardConnector | None = None
        self._incomplete: set[str] = set()

    # RLlib calls these with keywords of which only a few matter here.
    def on_episode_created(self, *_: Any, **given: Any) -> None:
        """Write the game's name into the episode; its later fragments keep it."""
        given["episode"].custom_data[GAME] = given["env_runner"].games[given["env_index"]]

    def on_episode_step(self, *_: Any, **given: Any) -> None:
        """Have a service score while the games play on."""
        if self._connector is not None:
            self._connector.send_ahead(given["episode"])

    def forget(self) -> None:
        """Let a reward that remembers what it has seen begin anew."""
        if self._connector is not None and hasattr(self._connector.scorer, "forget"):
            self._connector.scorer.forget()

    def on_sample_end(self, *_: Any, **given: Any) -> None:
        """Score the fragments where they are, and log what they hold by game."""
        env_runner, metrics_logger, samples = given["env_runner"], given["metrics_logger"], given["samples"]
        config = env_runner.config
        dropped: list[Any] = []
        if config.scorer is not None:
            try:
                if self._connector is None:
                    self._connector = RewardConnector(config.scorer(), config.top_fraction)
                self._connector.top_fraction = config.top_fraction  # it may change while the agent learns
                self._connector(episodes=samples)
                dropped = [episode for episode, _ in self._connector.dropped]
                env_runner.glimpses = self._connector.glimpses
            except InputError as error:
                # A new runner would meet the same: hand the message over instead of being restarted for ever.
                env_runner.fault = str(error)
                dropped, samples[:] = list(samples), []
            self._incomplete |= {episode.id_ for episode in dropped}
            self._incomplete -= forget(env_runner, self._incomplete)
        log_games(metrics_logger, samples, dropped, env_runner.games)


def forget(env_runner: Any, incomplete: set[str]) -> set[str]:
    """Keep episodes that lost a fragment out of RLlib's own returns, where it would count as 0.

    Returns the ids of those that are over.
    """
    done = env_runner._done_episodes_for_metrics
    over = {episode.id_ for episode in done} & incomplete
    done[:] = [episode for episode in done if episode.id_ not in over]
    for episode_id in incomplete:
        env_runner._ongoing_episodes_for_metrics.pop(episode_id, None)
    return over


def log_games(metrics_logger: Any, samples: list[Any], dropped: list[Any], games: list[str]) -> None:
    """Sums by game, which add up over runners: rewards, steps with a reward, all steps, envs, fragments dropped."""
    for game in dict.fromkeys(games):
        own = [episode for episode in samples if episode.custom_data.get(GAME) == game]
        scored = [episode.extra_model_outputs[SCORED].get() for episode in own if SCORED in episode.extra_model_outputs]
        steps = sum(map(len, own))
        sums = {
            "reward": float(sum(episode.get_return() for episode in own)),
            "scored": float(sum(column.sum() for column in scored)) if scored else float(steps),
            "steps": float(steps),
            "envs": float(games.count(game)),
            "dropped": float(sum(episode.custom_data.get(GAME) == game for episode in dropped)),
        }
        metrics_logger.log_dict(sums, key=("games", game), reduce="sum")

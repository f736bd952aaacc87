"""The reward: Eq. 2-4 by hand, which steps have one, actions and their frames, failed scorers."""

from functools import partial

import numpy as np
import pytest
import torch

from envs.games.counting import CountingEnv, read_step_and_action
from envs.utils.errors import InputError
from exploration.agent.replay_buffer import SCORED, to_fragment
from exploration.reward.scorers import LocalScorer, ScoringError, reward_tokens
from exploration.reward.token_entropy import uncertainty_reward
from exploration.rollout.reward_connector import RewardConnector
from tests.fixtures.explorers import (
    ActionScorer,
    add_step,
    counting_episode,
    random_clip,
    small_explorer,
)
from worldmodel.uncertainty import cut_windows

GREY = 128


def test_reward_by_hand():
    # Eight tokens, a quarter of them is two: (0.9 + 0.7) / 2 and (0.4 + 0.4) / 2.
    entropy_BN = np.array([[0.1, 0.9, 0.3, 0.7, 0.2, 0.6, 0.5, 0.0], [0.4] * 8])
    np.testing.assert_allclose(uncertainty_reward(entropy_BN), [0.8, 0.4], rtol=1e-6)
    np.testing.assert_allclose(
        uncertainty_reward(entropy_BN, 0.5), [(0.9 + 0.7 + 0.6 + 0.5) / 4, 0.4], rtol=1e-6
    )
    np.testing.assert_allclose(uncertainty_reward(entropy_BN, 1.0), [3.3 / 8, 0.4], rtol=1e-6)
    assert uncertainty_reward(entropy_BN).dtype == np.float32
    # 64 of the paper's 256 tokens; not rounded to two decimals.
    paper_BN = np.arange(256)[None] / 255.0
    np.testing.assert_allclose(
        uncertainty_reward(paper_BN), [np.arange(192, 256).mean() / 255], rtol=1e-6
    )


def test_reward_from_distributions_by_hand():
    from worldmodel.models.world_model import normalised_entropy

    # K = 4: certain -> 0, one of two -> ln 2 / ln 4 = 1/2, uniform -> 1; the top half of four
    # tokens is (1 + 1/2) / 2.
    probabilities_NK = torch.tensor([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4, [1, 0, 0, 0]])
    entropy_N = normalised_entropy((probabilities_NK + 1e-30).log()).numpy()
    np.testing.assert_allclose(entropy_N, [0, 0.5, 1, 0], atol=1e-6)
    np.testing.assert_allclose(uncertainty_reward(entropy_N[None], 0.5), [0.75], atol=1e-6)


def test_reward_range_and_fraction():
    generator = np.random.default_rng(0)
    for fraction in (0.01, 0.25, 1.0):
        rewards_B = uncertainty_reward(generator.random((100, 256)), fraction)
        assert rewards_B.min() >= 0
        assert rewards_B.max() <= 1
    assert uncertainty_reward(np.ones((1, 256))) == 1
    assert uncertainty_reward(np.zeros((1, 256))) == 0
    for fraction in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="top_fraction"):
            uncertainty_reward(np.ones((1, 4)), fraction)


def test_first_four_observations_have_no_reward():
    episode = counting_episode(9).to_numpy()
    scorer = ActionScorer()
    RewardConnector(scorer, 0.25)(episodes=[episode])
    # Step i leads to observation i + 1: observations 0 to 3 have no score, observation 4 is the
    # first with one.
    assert scorer.newest_steps == [4, 5, 6, 7, 8, 9]
    fragment = to_fragment(episode)
    assert fragment.scored_T.tolist() == [False] * 3 + [True] * 6
    assert (fragment.rewards_T[:3] == 0).all()
    np.testing.assert_allclose(fragment.rewards_T[3:], fragment.actions_T[3:] / 10, rtol=1e-6)


def test_windows_cross_the_cut_between_fragments():
    whole, cut = counting_episode(30).to_numpy(), counting_episode(12)
    pieces = [cut]
    for stop in (17, 23, 30):  # fragments of 12, 5, 6 and 7 steps
        piece = pieces[-1].cut(len_lookback_buffer=4)
        for step in range(piece.t_started, stop):
            add_step(piece, whole.get_observations(step + 1), whole.get_actions(step), state=1.0)
        pieces.append(piece)
    fragments = [piece.to_numpy() for piece in pieces]
    RewardConnector(ActionScorer(), 0.25)(episodes=[whole])
    scorer = ActionScorer()
    RewardConnector(scorer, 0.25)(episodes=fragments)
    assert scorer.newest_steps == list(range(4, 31))
    rewards = np.concatenate([to_fragment(fragment).rewards_T for fragment in fragments])
    np.testing.assert_array_equal(rewards, to_fragment(whole).rewards_T)
    assert to_fragment(fragments[1]).h_TD[0].tolist() == [0] * 4, (
        "the state that the fragment before ended with"
    )
    assert to_fragment(fragments[2]).h_TD[0].tolist() == [1] * 4


def test_what_is_sent_while_an_env_plays_is_not_sent_again():
    whole = counting_episode(30).to_numpy()
    RewardConnector(ActionScorer(), 0.25)(episodes=[whole])
    scorer = ActionScorer()
    scorer.ahead = 4
    connector, playing, sent = RewardConnector(scorer, 0.25), counting_episode(0), []
    env = CountingEnv()
    env.reset()
    for action in whole.get_actions():
        add_step(playing, env.step(action)[0], action)
        connector.submit_early(playing)
        sent.append(len(scorer.newest_steps))
    assert sent == [max(0, step // 4 * 4 - 3) for step in range(1, 31)]
    connector(episodes=[playing.to_numpy()])
    assert scorer.newest_steps == list(range(4, 31))
    np.testing.assert_array_equal(to_fragment(playing).rewards_T, to_fragment(whole).rewards_T)


def test_windows_are_cut_from_consecutive_frames_without_copies():
    frames_THWC, actions_T = random_clip(5)
    windows = cut_windows(frames_THWC, actions_T)
    assert windows.frames_B5HWC.shape == (5, 5, 64, 64, 3)
    assert np.shares_memory(windows.frames_B5HWC, frames_THWC)
    for start in range(5):
        np.testing.assert_array_equal(windows.frames_B5HWC[start], frames_THWC[start : start + 5])
        np.testing.assert_array_equal(windows.actions_B4[start], actions_T[start : start + 4])
    with pytest.raises(ValueError, match="actions"):
        cut_windows(np.zeros((5, 8, 8, 3), np.uint8), np.zeros(5, np.int64))


def test_fragments_shorter_than_a_window():
    scorer = ActionScorer()
    connector = RewardConnector(scorer, 0.25)
    episode = counting_episode(2)
    later = episode.cut(len_lookback_buffer=4)
    connector(episodes=[episode.to_numpy()])
    assert scorer.newest_steps == []
    assert to_fragment(episode).scored_T.tolist() == [False, False]
    assert len(later) == 0


@pytest.mark.parametrize("scorer", [ActionScorer(fail_at_step=14), ActionScorer(answer_nan=True)])
def test_a_fragment_without_a_score_is_dropped_and_never_gets_a_false_reward(scorer):
    long, short = counting_episode(20).to_numpy(), counting_episode(3, seed=1).to_numpy()
    connector = RewardConnector(scorer, 0.25)
    episodes = [long, short]
    connector(episodes=episodes)
    assert episodes == [short]
    assert [episode for episode, _ in connector.dropped] == [long]
    assert SCORED not in long.extra_model_outputs


@pytest.mark.parametrize(
    ("answer", "windows"),
    [
        (np.full((2, 4), np.nan), 2),
        (np.full((2, 4), np.inf), 2),
        (np.full((2, 4), 1.5), 2),
        (np.full((2, 4), -0.5), 2),
        (np.zeros((3, 4)), 2),
        (np.zeros(4), 4),
        (np.zeros((2, 0)), 2),
    ],
)
def test_answers_that_cannot_be_entropies_are_refused(answer, windows):
    with pytest.raises(ScoringError):
        reward_tokens(answer, windows, 0.25)


def test_rllib_keeps_actions_with_their_frames(ray_cluster):
    """Through env processes, runner, connector, whose scorer asserts it, and replay buffer."""
    config = small_explorer(scorer=ActionScorer, max_steps=13, steps_per_epoch=11)
    algorithm = config.build_algo()
    try:
        for _ in range(3):
            result = algorithm.train()
        assert result["env_runners"]["games"]["Counting"]["steps"] >= 22
        stretches = algorithm.replay.fragments
    finally:
        algorithm.stop()
    assert sum(map(len, stretches)) >= 66
    assert {stretch.first_step for stretch in stretches} == {0}, (
        "fragments of an episode were joined"
    )
    for stretch in stretches:
        assert len(stretch) <= 13
        shown = [read_step_and_action(frame) for frame in stretch.frames_THWC]
        assert [step for step, _ in shown] == list(range(len(stretch) + 1))
        assert [action for _, action in shown[1:]] == stretch.actions_T.tolist()
        assert stretch.scored_T.tolist() == [False] * min(3, len(stretch)) + [True] * max(
            len(stretch) - 3, 0
        )
        np.testing.assert_allclose(
            stretch.rewards_T, np.where(stretch.scored_T, stretch.actions_T / 10, 0), rtol=1e-6
        )
        # Pixels in the replay are those of the env.
        env = CountingEnv()
        frames = [env.reset()[0]] + [env.step(action)[0] for action in stretch.actions_T]
        np.testing.assert_array_equal(stretch.frames_THWC, np.stack(frames))
        assert stretch.frames_THWC.dtype == np.uint8


def test_dropped_fragments_are_counted_and_reach_neither_replay_nor_returns(ray_cluster):
    config = small_explorer(
        scorer=partial(ActionScorer, fail_at_step=8), max_steps=20, steps_per_epoch=10
    )
    algorithm = config.build_algo()
    try:
        result = algorithm.train()  # the first try brings nothing, so that the epoch collects again
        stretches = algorithm.replay.fragments
    finally:
        algorithm.stop()
    assert result["env_runners"]["games"]["Counting"]["dropped"] == 2
    assert [(stretch.first_step, len(stretch)) for stretch in stretches] == [(10, 10), (10, 10)]
    for stretch in stretches:
        np.testing.assert_allclose(stretch.rewards_T, stretch.actions_T / 10, rtol=1e-6)
    assert np.isnan(result["env_runners"].get("episode_return_mean", np.nan)), (
        "an episode with a hole has no return"
    )


def test_local_scorer_is_the_models_own_calculation(tiny_world):
    from worldmodel import GenieReduxG

    frames_THWC, actions_T = random_clip(6)
    scorer = LocalScorer(tiny_world)
    scored = scorer.submit(frames_THWC, actions_T)()
    model = GenieReduxG.load(tiny_world)
    windows = cut_windows(frames_THWC, actions_T)
    frames = torch.tensor(windows.frames_B5HWC).permute(0, 1, 4, 2, 3).float() / 255
    actions = torch.tensor(windows.actions_B4)
    plain_BN = model.token_entropy(frames, actions, context=2, steps=1).numpy()
    np.testing.assert_allclose(scored.tokens_BN, plain_BN, atol=1e-5)
    np.testing.assert_array_equal(scored.rewards_B, uncertainty_reward(scored.tokens_BN))
    half_B = scorer.submit(frames_THWC, actions_T, 0.5)().rewards_B
    np.testing.assert_array_equal(half_B, uncertainty_reward(scored.tokens_BN, 0.5))
    # The newest frame itself is not shown to the model, the actions are.
    changed = windows.frames_B5HWC.copy()
    changed[:, 2:] = GREY
    hidden = scorer.score_windows(windows._replace(frames_B5HWC=changed))
    np.testing.assert_array_equal(hidden.tokens_BN, scored.tokens_BN)
    other = scorer.submit(frames_THWC, (actions_T + 1) % 5)()
    assert not np.allclose(other.tokens_BN, scored.tokens_BN, atol=1e-6)

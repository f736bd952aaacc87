"""Recorded episodes played again at another size: the same play, the same split, or a refusal."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import envs
from envs.collect.collector import collect
from envs.collect.rerender import rerender, rerender_episode
from envs.episodes.dataset import EpisodeReader, EpisodeWriter
from envs.games.retro import letterbox
from envs.utils.errors import InputError

GAMES = ["Airstriker-Genesis", "Kangaroo-Atari2600"]


@pytest.fixture(scope="module")
def recorded(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rerender") / "recorded"
    collect(GAMES, folder, episodes=2, steps=30, seed=3, progress=False)
    return folder


def test_the_same_play_at_another_size(ray_cluster: None, recorded: Path, tmp_path: Path) -> None:
    summary = rerender(recorded, tmp_path, size=256, progress=False)
    assert (summary.episodes, summary.played_episodes, summary.skipped) == (4, 4, {})
    small, large = EpisodeReader(recorded), EpisodeReader(tmp_path)
    assert large.session_ids == small.session_ids
    assert large.validation == small.validation
    for one, other in zip(small, large, strict=True):
        assert other.frames_THWC.shape == (one.num_frames, 256, 256, 3)
        assert np.array_equal(one.actions, other.actions)
        assert np.array_equal(one.rewards, other.rewards)
        # Averaging 256x256 is not quite averaging the screen, but shows the same moment.
        again = np.stack([letterbox(frame, 64) for frame in other.frames_THWC]).astype(int)
        assert np.abs(again - one.frames_THWC).mean() < 4
        assert (
            np.abs(np.roll(again, 10, axis=0) - one.frames_THWC).mean()
            > np.abs(again - one.frames_THWC).mean()
        )
    assert rerender(recorded, tmp_path, size=256, progress=False).played_episodes == 0
    with pytest.raises(InputError, match="holds 'copy' made with"):
        rerender(recorded, tmp_path, size=128, progress=False)


def test_a_play_that_is_not_the_recorded_one_is_refused(recorded: Path) -> None:
    episode = EpisodeReader(recorded)[0]
    env = envs.make(episode.game, size=128)
    try:
        assert rerender_episode(env, episode).frames_THWC.shape[1:] == (128, 128, 3)
        frames = episode.frames_THWC.copy()
        frames[7, 3, 3, 0] ^= 1
        with pytest.raises(InputError, match="frame 7 differs from the record"):
            rerender_episode(env, dataclasses.replace(episode, frames_THWC=frames))
        rewards = episode.rewards.copy()
        rewards[4] += 1
        with pytest.raises(InputError, match="frame 5 differs from the record"):
            rerender_episode(env, dataclasses.replace(episode, rewards=rewards))
    finally:
        env.close()


def test_another_rom_skips_its_game(ray_cluster: None, recorded: Path, tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "source") as writer:
        for episode in EpisodeReader(recorded):
            writer.add(
                episode
                if episode.game == GAMES[0]
                else dataclasses.replace(episode, rom_sha1="0" * 40)
            )
    summary = rerender(tmp_path / "source", tmp_path / "out", size=128, progress=False)
    assert summary.episodes == 2
    assert "the installed ROM is not the one" in summary.skipped[GAMES[1]]
    with pytest.raises(InputError, match="size 4 must be at least 16"):
        rerender(recorded, tmp_path / "small", size=4)

"""Snapshots and videos of an explorer: which ones, on disk, in TensorBoard and in the report."""

from pathlib import Path

import numpy as np
import pytest

from envs.games.counting import read_step_and_action
from experiments.__main__ import execute
from exploration import explore
from exploration.config import explore_preset
from exploration.rollout.reward_connector import RewardConnector
from exploration.rollout.snapshots import (
    Snapshot,
    SnapshotPair,
    load_snapshots,
    merge_snapshots,
    save_snapshot,
    take_snapshots,
)
from tests.fixtures.explorers import ActionScorer, counting_episode


def snapshot(reward: float, tokens: int = 256) -> Snapshot:
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return Snapshot("Counting", frame, np.linspace(0, 0.8, tokens, dtype=np.float32), reward)


def test_snapshots_are_the_newest_screen_and_the_one_of_the_highest_reward() -> None:
    long, short = counting_episode(20).to_numpy(), counting_episode(9, seed=1).to_numpy()
    connector = RewardConnector(ActionScorer(), 0.25)
    connector(episodes=[long, short])
    seen = take_snapshots(connector.rewards)
    assert seen is not None
    assert read_step_and_action(seen.newest.frame_HWC) == (9, int(short.actions.data[-1]))
    rewards = {len(episode): np.asarray(episode.rewards.data) for episode in (long, short)}
    best = max(float(values.max()) for values in rewards.values())
    assert seen.peak.reward == pytest.approx(best)
    step, action = read_step_and_action(seen.peak.frame_HWC)
    assert action == round(best * 10), "the reward is a tenth of the action"
    assert step >= 4
    both = merge_snapshots(
        [
            None,
            SnapshotPair(snapshot(0.1), snapshot(0.2)),
            SnapshotPair(snapshot(0.3), snapshot(0.4)),
        ]
    )
    assert both is not None
    assert (both.newest.reward, both.peak.reward) == (0.1, 0.4)
    assert merge_snapshots([None]) is None


def test_snapshots_survive_the_disk(tmp_path: Path) -> None:
    save_snapshot(tmp_path, 7, snapshot(0.5))
    (epoch, back) = load_snapshots(tmp_path).popitem()
    assert (epoch, back.game, back.reward) == (7, "Counting", 0.5)
    assert np.array_equal(back.frame_HWC, snapshot(0.5).frame_HWC)
    np.testing.assert_allclose(back.entropy_N, snapshot(0.5).entropy_N, atol=1e-3)
    assert back.pair().shape == (64, 128, 3)


def test_a_run_leaves_screens_films_and_a_page(
    ray_cluster: None, tiny_world: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = explore_preset("debug", runners=0, envs_per_runner=1)
    explore(["Counting"], tiny_world, out, config=config)
    kept = load_snapshots(out)
    assert list(kept) == [1, 2]
    for epoch, seen in kept.items():
        assert 4 <= read_step_and_action(seen.frame_HWC)[0] <= 12 * epoch
        assert 0 < seen.reward <= 1
        assert seen.map() is not None
    assert (out / "videos/Counting.gif").read_bytes().startswith(b"GIF89a")
    events = b"".join(file.read_bytes() for file in (out / "tensorboard").iterdir())
    assert b"GIF89a" in events
    assert b"\x89PNG" in events
    assert execute(["report", str(out)]) == 0
    page = (out / "report/index.html").read_text()
    for text in (
        "Training of the explorer",
        "Uncertainty over time",
        "The best agent and random play",
        "data:image/gif",
    ):
        assert text in page, text

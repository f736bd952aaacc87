"""What a person sees of an agent that learns: the screens are the right ones, in the terminal, on disk, on the page."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from envs.games.counting import read_frame
from experiments.__main__ import execute
from exploration import explore
from exploration.rollout.reward_connector import RewardConnector
from exploration.rollout.snapshots import Snapshot, SnapshotPair, joined, load_snapshots, save_snapshot
from exploration.watch import HALF, Watch, bars, blocks, smaller
from tests.exploration.reward.test_token_entropy import ActionScorer, counting_episode

METRICS = {
    "explore/reward": 0.5,
    "explore/epsilon": 0.07,
    "explore/entropy": 1.25,
    "explore/env_steps_per_second": 90.0,
    "explore/intrinsic_return/Counting": 4.5,
    "evaluation/intrinsic_return/Counting": 123.456,
    "explore/screens/Counting": 12.0,
}


def snapshot(reward: float, tokens: int = 256) -> Snapshot:
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return Snapshot("Counting", frame, np.linspace(0, 0.8, tokens, dtype=np.float32), reward)


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system="truecolor", legacy_windows=False)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_character_is_two_pixels_one_above_the_other() -> None:
    frame = np.array([[[255, 0, 0], [1, 2, 3]], [[0, 0, 255], [4, 5, 6]]], np.uint8)
    console = terminal(20)
    console.print(blocks(frame))
    assert f"\x1b[38;2;255;0;0;48;2;0;0;255m{HALF}" in written(console)
    assert f"\x1b[38;2;1;2;3;48;2;4;5;6m{HALF}" in written(console)
    assert smaller(np.arange(48, dtype=np.uint8).reshape(4, 4, 3), 2).shape == (2, 2, 3)
    assert bars([0.0, 0.5, 1.0]) == "\N{LOWER ONE EIGHTH BLOCK}\N{LOWER FIVE EIGHTHS BLOCK}\N{FULL BLOCK}"


@pytest.mark.parametrize(("width", "characters"), [(170, 64 * 32 * 2), (150, 64 * 32 * 2), (80, 32 * 16 * 2)])
def test_the_view_has_both_pictures_and_the_figures(width: int, characters: int) -> None:
    console = terminal(width)
    watch = Watch(console, ["Counting"], epochs=8, done=2)
    console.print(watch)
    assert HALF not in written(console)
    watch.show(METRICS, SnapshotPair(snapshot(0.25), snapshot(0.75)))
    watch.advance()
    console.print(watch)
    view = re.sub(r"\x1b\[[0-9;]*m", "", written(console))
    assert view.count(HALF) == characters
    for words in ("epoch 3/8", "reward 0.250", "0.750", "0.070", "4.50", "123.46"):
        assert words in view, words
    no_map = Watch(terminal(width), ["Counting"], epochs=8)
    no_map.show(METRICS, SnapshotPair(snapshot(0.25, tokens=0), snapshot(0.75, tokens=0)))
    no_map.console.print(no_map)
    assert written(no_map.console).count(HALF) == characters // 2


def test_snapshots_are_the_newest_screen_and_the_one_that_paid_most() -> None:
    long, short = counting_episode(20).to_numpy(), counting_episode(9, seed=1).to_numpy()
    connector = RewardConnector(ActionScorer(), 0.25)
    connector(episodes=[long, short])
    seen = connector.snapshots
    assert seen is not None
    assert read_frame(seen.newest.frame_HWC) == (9, int(short.actions.data[-1]))
    rewards = {len(episode): np.asarray(episode.rewards.data) for episode in (long, short)}
    best = max(float(values.max()) for values in rewards.values())
    assert seen.peak.reward == pytest.approx(best)
    step, action = read_frame(seen.peak.frame_HWC)
    assert action == round(best * 10), "the scorer pays a tenth of the action's number"
    assert step >= 4
    both = joined([None, SnapshotPair(snapshot(0.1), snapshot(0.2)), SnapshotPair(snapshot(0.3), snapshot(0.4))])
    assert both is not None
    assert (both.newest.reward, both.peak.reward) == (0.1, 0.4)
    assert joined([None]) is None


def test_snapshots_survive_the_disk(tmp_path: Path) -> None:
    save_snapshot(tmp_path, 7, snapshot(0.5))
    (epoch, back) = load_snapshots(tmp_path).popitem()
    assert (epoch, back.game, back.reward) == (7, "Counting", 0.5)
    assert np.array_equal(back.frame_HWC, snapshot(0.5).frame_HWC)
    np.testing.assert_allclose(back.entropy_N, snapshot(0.5).entropy_N, atol=1e-3)
    assert back.pair().shape == (64, 128, 3)


def test_a_run_is_watched_and_leaves_screens_films_and_a_page(
    ray_cluster: None, tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console: Any = terminal(170)
    monkeypatch.setattr("exploration.train.console", console)
    out = tmp_path / "run"
    explore(["Counting"], tiny_world, out, preset="debug", runners=0, envs_per_runner=1, watch=True)
    assert HALF in written(console)
    assert "epoch 2/2" in re.sub(r"\x1b\[[0-9;]*m", "", written(console))
    kept = load_snapshots(out)
    assert list(kept) == [1, 2]
    for epoch, seen in kept.items():
        assert 4 <= read_frame(seen.frame_HWC)[0] <= 12 * epoch
        assert 0 < seen.reward <= 1
        assert seen.map() is not None
    assert (out / "videos/Counting.gif").read_bytes().startswith(b"GIF89a")
    events = b"".join(file.read_bytes() for file in (out / "tensorboard").iterdir())
    assert b"GIF89a" in events
    assert b"\x89PNG" in events
    assert execute(["report", str(out)]) == 0
    page = (out / "report/index.html").read_text()
    for words in ("Training of the explorer", "Uncertainty over time", "The best agent and random play", "data:image/gif"):
        assert words in page, words

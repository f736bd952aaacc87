"""Clips drawn by shares of data sets and by a world model's uncertainty."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.utils.errors import InputError
from experiments.__main__ import execute
from tests.fixtures.datasets import record
from tests.worldmodel.training.conftest import CONFIG, DYNAMICS
from worldmodel import GenieReduxG, checkpoint
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.data.sampler import WeightedSampler
from worldmodel.training.clip_weights import SCORE_EVERY, clip_uncertainty, clip_weights
from worldmodel.training.config import train_preset
from worldmodel.training.train import TrainingRun, train
from worldmodel.uncertainty import load_model, window_entropies


def test_windows_are_drawn_by_their_weights_whatever_the_ranks() -> None:
    sampler = WeightedSampler(np.array([1.0, 0.0, 3.0]), seed=4)
    drawn = sampler.batch(0, 40_000)
    assert np.bincount(drawn) / len(drawn) == pytest.approx([0.25, 0, 0.75], abs=0.01)
    halves = [sampler.batch(0, 40_000, rank, 2) for rank in range(2)]
    assert np.array_equal(np.concatenate(halves), drawn)
    assert np.array_equal(sampler.batch(1_000, 500), drawn[1_000:1_500])
    assert not np.array_equal(WeightedSampler(np.ones(3), 5).batch(0, 99), drawn[:99])
    assert sampler.epoch(6) == 2
    with pytest.raises(InputError, match="every weight is 0"):
        WeightedSampler(np.zeros(3), 0)


def test_shares_hold_and_uncertain_clips_are_preferred_inside_each_data_set(
    data: str, tmp_path: Path
) -> None:
    small = record(tmp_path / "small", episodes=1, steps=30, seed=9)
    clips = ClipDataset([data, small], tmp_path, length=6)
    source_N = np.repeat(clips.source_E, clips.windows_E)
    counts = np.bincount(source_N)
    assert counts[0] > counts[1] > 0
    plain_N = clip_weights(clips)
    np.testing.assert_allclose(plain_N, 1 / len(clips))
    shared_N = clip_weights(clips, (1, 3))
    assert np.bincount(source_N, shared_N) == pytest.approx([0.25, 0.75])
    uncertainty_N = np.arange(len(clips), dtype=np.float32)
    weights_N = clip_weights(clips, (1, 3), 1.0, uncertainty_N)
    assert np.bincount(source_N, weights_N) == pytest.approx([0.25, 0.75])
    first = weights_N[source_N == 0]
    z = (uncertainty_N - uncertainty_N.mean()) / uncertainty_N.std()
    expected = np.exp(z[source_N == 0])
    np.testing.assert_allclose(first / first[0], expected / expected[0], rtol=1e-5)
    half_N = clip_weights(clips, (1, 3), 0.5, uncertainty_N)
    np.testing.assert_allclose(half_N, (weights_N + shared_N) / 2)


def test_a_clip_has_the_uncertainty_of_its_middle_and_it_is_computed_once(
    data: str, tiny_world: Path, tmp_path: Path
) -> None:
    clips, world = ClipDataset([data], tmp_path, length=10), load_model(tiny_world)
    found_N = clip_uncertainty(clips, world, tmp_path)
    number = next(n for n in range(len(clips)) if clips.locate(n)[1] == 2 * SCORE_EVERY)
    assert clips.locate(number)[0] == 0
    # The window of the first episode that begins at frame 16 is nearest to the middle of 16 to 25.
    episode = ClipDataset([data], tmp_path, length=21).batch(np.array([0]))
    frames, actions = episode.frames_BTHWC.numpy()[:, 16:], episode.actions_BT.numpy()[:, 16:]
    expected = window_entropies(world, frames, actions).mean()
    assert found_N[number] == pytest.approx(expected, abs=1e-5)
    (stored,) = tmp_path.glob("uncertainty-*.npy")
    changed = np.load(stored) + 1
    np.save(stored, changed)
    again_N = clip_uncertainty(clips, world, tmp_path)
    np.testing.assert_allclose(again_N, found_N + 1, rtol=1e-5)


def test_a_prioritised_run_resumes_exactly(
    data: str, tokenizer_run: Path, tiny_world: Path, tmp_path: Path
) -> None:
    small = record(tmp_path / "small", episodes=2, steps=30, seed=9)
    recipe = dataclasses.replace(DYNAMICS, data_shares=(0.5, 0.5), prioritised=0.5)
    runs = [
        TrainingRun(
            "dynamics",
            CONFIG,
            recipe,
            [data, small],
            tmp_path / name,
            tokenizer=tokenizer_run,
            priority_model=tiny_world,
        )
        for name in ("straight", "resumed")
    ]
    train(runs[0])
    shutil.copytree(runs[0].out, runs[1].out)
    shutil.rmtree(runs[1].out / "checkpoints/step-00000008")
    model = GenieReduxG.load(tiny_world)
    torch.nn.init.normal_(model.dynamics.head.weight)
    model.save(tmp_path / "changed")
    with pytest.raises(InputError, match="trained on other data"):
        train(dataclasses.replace(runs[1], priority_model=tmp_path / "changed"), resume=True)
    train(runs[1], resume=True)
    one, other = (checkpoint.open_checkpoint(run.out) for run in runs)
    assert one.step == other.step == 8
    weights = other.weights()
    assert all(torch.equal(value, weights[name]) for name, value in one.weights().items())


def test_frames_and_actions_that_the_model_does_not_know_are_refused(
    data: str, tiny_world: Path, tmp_path: Path
) -> None:
    clips, world = ClipDataset([data], tmp_path, length=10), load_model(tiny_world)
    world.dynamics.cfg = world.cfg = dataclasses.replace(world.cfg, actions=2)
    with pytest.raises(InputError, match="actions"):
        clip_uncertainty(clips, world, tmp_path)


def test_weights_that_fit_nothing_are_refused(
    data: str, tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "tokenizer", "--preset", "debug", "--data", data]
    command += ["--out", str(tmp_path / "run")]
    for flags, words in (
        (["--prioritised", "0.5"], "go together"),
        (["--priority-model", str(tiny_world)], "go together"),
        (["--prioritised", "2", "--priority-model", str(tiny_world)], "a share is in [0, 1]"),
        (["--data-shares", "0.5", "0.5"], "one for each of the 1 folders"),
        (["--prioritised", "1", "--priority-model", str(tmp_path / "none")], "none"),
    ):
        assert execute([*command, *flags]) == 2
        assert words in " ".join(capsys.readouterr().err.split())
    for shares in ((1, 0), (1, float("nan")), (1, float("inf"))):
        with pytest.raises(InputError, match=r"data_shares = .* give numbers above 0"):
            train_preset("tokenizer", "debug", data_shares=shares)
    with pytest.raises(InputError, match="local disk"):
        train_preset("tokenizer", "debug", data_shares=(1.0,), streaming_buffer=4)

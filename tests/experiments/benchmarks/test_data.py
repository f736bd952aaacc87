"""Benchmarks of data on a small scale, with the game that needs no ROM."""

from pathlib import Path

import torch

from envs.episodes.dataset import EpisodeReader
from experiments.benchmarks.data import BATCH, LENGTH, decode_clips, open_large, png_loader
from tests.fixtures.datasets import record


def test_the_plain_loader_reads_the_same_frames(tmp_path: Path) -> None:
    reader = EpisodeReader(record(tmp_path / "data", episodes=1, steps=40))
    batch = next(iter(png_loader(reader, tmp_path / "png")))
    frames = torch.from_numpy(reader[0].frames_THWC)
    starts = len(frames) - LENGTH + 1
    assert batch.shape == (min(BATCH, starts), LENGTH, 64, 64, 3)
    first = {bytes(frames[start : start + LENGTH].numpy()) for start in range(starts)}
    assert {bytes(window.numpy()) for window in batch} == first


def test_a_set_of_ten_million_windows_opens(tmp_path: Path) -> None:
    seconds, _ = open_large(tmp_path)
    assert seconds > 0


def test_cutting_leaves_out_episodes_shorter_than_a_window(tmp_path: Path) -> None:
    reader = EpisodeReader(record(tmp_path / "data", episodes=8, steps=12))
    assert decode_clips(reader)() > 0

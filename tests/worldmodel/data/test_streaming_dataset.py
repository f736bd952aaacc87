"""Streamed sessions: the order of their windows, the memory they take, and resuming."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.episodes.dataset import EpisodeReader
from envs.episodes.episode import EncodedEpisode
from envs.utils.errors import InputError
from envs.utils.progress import console
from envs.utils.run_dir import read_metrics
from tests.fixtures.datasets import record
from worldmodel import checkpoint
from worldmodel.config import preset
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.data.loader import ClipLoader
from worldmodel.data.streaming_dataset import StreamingDataset
from worldmodel.loading import load_tokenizer
from worldmodel.training.config import train_preset
from worldmodel.training.train import TrainingRun, train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """60 sessions, 59 of them for training, of 3 to 62 windows of 8 frames."""
    return record(tmp_path_factory.mktemp("data") / "counting", episodes=60, steps=9)


def stream(data: str | Path, **options: int) -> StreamingDataset:
    return StreamingDataset([data], length=8, **{"sessions": 12, **options})


def next_ids(loader: ClipLoader, batches: int) -> np.ndarray:
    return np.concatenate([next(loader).window_ids_B.numpy() for _ in range(batches)])


def test_windows_are_those_of_the_local_copy(data: str, tmp_path: Path) -> None:
    clips, copied = stream(data), ClipDataset([data], tmp_path, length=8)
    assert len(clips) == len(copied)
    ids = clips.evenly_spaced(50)
    a, b = clips.batch(ids), copied.batch(ids)
    for name in ("frames_BTHWC", "actions_BT", "games_B", "window_ids_B"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    assert clips.describe(5) == copied.describe(5)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_any_number_of_ranks_draws_one_sequence_that_holds_every_window_once_an_epoch(
    data: str, ranks: int
) -> None:
    clips = stream(data)
    starts = range(0, 2 * len(clips), 30)
    expected = np.concatenate([clips.sampler(3).batch(start, 30) for start in starts])
    shares, sessions = [], []
    for rank in range(ranks):
        of_rank = stream(data)
        sampler = of_rank.sampler(3)
        shares.append(np.concatenate([sampler.batch(start, 30, rank, ranks) for start in starts]))
        indices, _ = clips.locate_all(shares[-1][: len(clips) // ranks])
        sessions.append(set(indices.tolist()))
        of_rank.close()
    drawn = np.stack(shares, 1).flatten()
    assert np.array_equal(drawn, expected)
    assert len(set(clips.locate_all(drawn[:10])[0].tolist())) > 3  # sessions are mixed
    epochs = drawn[: 2 * len(clips)].reshape(2, len(clips))
    for epoch in epochs:
        assert sorted(epoch) == list(range(len(clips)))
    assert not np.array_equal(*epochs)
    clips.close()
    # Two or three ranks divide the six lanes: only sessions that one of the five cuts divides are
    # read by two of them.
    if ranks in (2, 3):
        assert sum(map(len, sessions)) <= len(set().union(*sessions)) + 5


@pytest.mark.parametrize("bound", [{"sessions": 6}, {"sessions": 1000, "max_bytes": 60_000}])
def test_memory_stays_within_its_bounds_and_little_is_read_twice(
    data: str, bound: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    load = StreamingDataset._load

    def count_load(clips: StreamingDataset, episode: int) -> EncodedEpisode:
        read.append(episode)
        return load(clips, episode)

    monkeypatch.setattr(StreamingDataset, "_load", count_load)
    clips = stream(data, **bound)
    loader = ClipLoader(clips, 4, threads=1)
    assert clips.bytes_E.sum() > 4 * 60_000
    most = 0
    for _ in range(len(clips) // 4):
        next(loader)
        most = max(most, len(clips.buffer))
        assert len(clips.buffer) <= bound["sessions"]
        assert clips.buffer.bytes <= bound.get("max_bytes", 1 << 40)
    assert most > 3
    loader.close()
    assert len(read) < 1.5 * len(clips.episodes)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_stream_resumes_at_the_next_batch_from_a_few_numbers(data: str, threads: int) -> None:
    loader = ClipLoader(stream(data), 8, seed=7, rank=1, ranks=2, threads=threads)
    next_ids(loader, 100)
    state = json.dumps(loader.state())
    assert len(state) < 300
    expected = [next(loader) for _ in range(60)]
    loader.close()
    resumed = ClipLoader(
        stream(data), 8, seed=7, rank=1, ranks=2, threads=threads, state=json.loads(state)
    )
    for batch in expected:
        again = next(resumed)
        assert torch.equal(batch.window_ids_B, again.window_ids_B)
        assert torch.equal(batch.frames_BTHWC, again.frames_BTHWC)
        assert torch.equal(batch.actions_BT, again.actions_BT)
    resumed.close()
    # Other numbers of ranks continue the same stream: rank 1 of 2 had every second sample.
    for ranks in (1, 4):
        others = [
            ClipLoader(stream(data), 8, seed=7, rank=r, ranks=ranks, state=json.loads(state))
            for r in range(ranks)
        ]
        sequence = np.stack([next_ids(loader, 60) for loader in others], 1).flatten()
        assert np.array_equal(
            sequence[1::2], np.concatenate([batch.window_ids_B.numpy() for batch in expected])
        )
    with pytest.raises(InputError, match="other data"):
        ClipLoader(stream(data, sessions=10), 8, seed=7, ranks=2, state=json.loads(state))


def test_few_damaged_sessions_are_replaced_and_named_and_many_stop(tmp_path: Path) -> None:
    data = Path(record(tmp_path / "data", episodes=40, steps=9))
    reader = EpisodeReader(data, "train")
    bad = reader.session_ids[:4]
    for session in bad[:1]:
        (data / "env=Counting" / f"part-{session}-0.parquet").unlink()
    clips = stream(data)
    loader = ClipLoader(clips, 8)
    with console.capture() as printed:
        batches = [next(loader) for _ in range(len(clips) // 8)]
    assert printed.get().count(bad[0]) == 1
    assert list(clips.skipped) == bad[:1]
    ids = np.concatenate([batch.window_ids_B.numpy() for batch in batches])
    assert bad[0] not in {clips.episodes[index].session_id for index in clips.locate_all(ids)[0]}
    for batch in batches[:5]:
        assert torch.equal(clips.batch(batch.window_ids_B.numpy()).frames_BTHWC, batch.frames_BTHWC)
    for session in bad[1:]:
        (data / "env=Counting" / f"part-{session}-0.parquet").unlink()
    loader = ClipLoader(stream(data), 8)
    with pytest.raises(InputError, match=r"2 or more of 39 sessions are damaged, over 5%"):
        next_ids(loader, 100)
    loader.close()


def test_training_on_a_stream_continues_bit_for_bit(data: str, tmp_path: Path) -> None:
    settings = train_preset(
        "tokenizer", "debug", iterations=8, checkpoint_every=4, validate_every=4, streaming_buffer=6
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(TrainingRun("tokenizer", config=preset("debug"), recipe=settings, data=[data], out=whole))
    assert not (tmp_path / "cache").exists()  # nothing was copied
    shutil.copytree(whole, cut)
    shutil.rmtree(checkpoint.newest_checkpoint(cut))
    assert checkpoint.open_checkpoint(cut).step == 4
    train(
        TrainingRun("tokenizer", config=preset("debug"), recipe=settings, data=[data], out=cut),
        resume=True,
    )
    a, b = (load_tokenizer(run).state_dict() for run in (whole, cut))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any("validation/loss" in row for row in read_metrics(cut))

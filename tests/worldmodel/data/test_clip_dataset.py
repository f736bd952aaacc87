"""Windows: their order, and their content from the played episode to the batch."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.episodes.dataset import EpisodeReader
from envs.games.counting import read_step_and_action
from envs.utils.errors import InputError
from tests.fixtures.datasets import record
from worldmodel.data.arrow_cache import build_arrow_cache
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.data.loader import ClipLoader
from worldmodel.data.sampler import ClipSampler, feistel_permutation


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return record(tmp_path_factory.mktemp("data") / "counting", episodes=6, steps=70)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 65_537])
def test_feistel_is_a_permutation_that_depends_on_its_key(size: int) -> None:
    places = np.arange(size, dtype=np.uint64)
    images = [feistel_permutation(places, size, np.full(size, key, np.uint64)) for key in (1, 2)]
    for image in images:
        assert sorted(image) == list(range(size))
    if size > 5:
        assert not np.array_equal(*images)
        assert not np.array_equal(images[0], places)


def test_feistel_puts_every_window_everywhere_equally_often() -> None:
    """Chi-square over 4,000 keys: the first of 40 windows, and the first two of 6 windows."""
    keys = np.arange(4000, dtype=np.uint64) * np.uint64(7919)
    first = feistel_permutation(np.zeros(4000, np.uint64), 40, keys)
    counts = np.bincount(first.astype(int), minlength=40)
    assert ((counts - 100) ** 2 / 100).sum() < 75  # 39 degrees of freedom, p = 0.0005
    pairs = [feistel_permutation(np.full(4000, place, np.uint64), 6, keys) for place in (0, 1)]
    counts = np.bincount((pairs[0] * 6 + pairs[1]).astype(int), minlength=36)
    assert (counts.reshape(6, 6).diagonal() == 0).all()
    expected = 4000 / 30
    assert ((counts[counts > 0] - expected) ** 2 / expected).sum() < 62  # 29 degrees of freedom


def test_sampler_memory_and_time_do_not_grow_with_the_windows() -> None:
    ids = ClipSampler(492_000_000, seed=3).batch(10**12, 112)
    assert len(set(ids.tolist())) == 112
    assert ids.min() >= 0
    assert ids.max() < 492_000_000


def test_an_epoch_holds_every_window_once_and_epochs_differ() -> None:
    sampler = ClipSampler(103, seed=5)
    epochs = sampler.window_ids(np.arange(206)).reshape(2, 103)
    for epoch in epochs:
        assert sorted(epoch) == list(range(103))
    assert not np.array_equal(*epochs)
    assert not np.array_equal(epochs[0], ClipSampler(103, seed=6).window_ids(np.arange(103)))


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_global_batches_do_not_depend_on_the_number_of_ranks(ranks: int) -> None:
    sampler = ClipSampler(1000, seed=1)
    for consumed in (0, 112, 960):  # the last one crosses the end of an epoch
        parts = [sampler.batch(consumed, 112, rank, ranks) for rank in range(ranks)]
        assert np.array_equal(np.concatenate(parts), sampler.batch(consumed, 112))
        if consumed < 960:
            assert len(set(np.concatenate(parts).tolist())) == 112  # ranks share no window
    with pytest.raises(InputError, match="does not split over 3 workers"):
        sampler.batch(0, 112, 0, 3)


def test_windows_hold_the_episodes_frames_and_never_cross_an_end(data: str, cache: Path) -> None:
    episodes = {episode.session_id: episode for episode in EpisodeReader(data)}
    clips = ClipDataset([data], cache, length=16, stride=5, split=None)
    expected = sum((len(episode.frames_THWC) - 16) // 5 + 1 for episode in episodes.values())
    assert len(clips) == expected
    batch = clips.batch(np.arange(len(clips)))
    for number in range(len(clips)):
        index, start = clips.locate(number)
        episode = episodes[clips.episodes[index].session_id]
        assert np.array_equal(
            batch.frames_BTHWC[number].numpy(), episode.frames_THWC[start : start + 16]
        )
        assert np.array_equal(batch.actions_BT[number].numpy(), episode.actions[start : start + 15])
        assert clips.window_game(number) == "Counting"


def test_action_t_is_the_one_that_frame_t_plus_1_shows(data: str, cache: Path) -> None:
    """Windows begin anywhere, also across blobs."""
    clips = ClipDataset([data], cache, length=8)
    batch = next(ClipLoader(clips, 64, seed=2))
    assert batch.frames_BTHWC.dtype == torch.uint8
    assert batch.actions_BT.shape == (64, 7)
    starts = set()
    for frames, actions in zip(batch.frames_BTHWC.numpy(), batch.actions_BT.tolist(), strict=True):
        shown = [read_step_and_action(frame) for frame in frames]
        assert [action for _, action in shown[1:]] == actions
        assert all(after[0] == before[0] + 1 for before, after in itertools.pairwise(shown))
        starts.add(shown[0][0])
    assert any(25 <= start <= 31 for start in starts)  # windows that need two blobs of 32 frames


def test_splits_are_disjoint_and_the_union_of_data_sets_is_all_their_windows(
    data: str, cache: Path, tmp_path: Path
) -> None:
    other = record(tmp_path / "other", episodes=3, steps=40, seed=9)
    for split in ("train", "val", None):
        sizes = [len(ClipDataset([uri], cache, length=8, split=split)) for uri in (data, other)]
        assert min(sizes) > 0
        assert len(ClipDataset([data, other], cache, length=8, split=split)) == sum(sizes)
    sessions = {}
    for split in ("train", "val", None):
        clips = ClipDataset([data], cache, length=8, split=split)
        sessions[split] = {episode.session_id for episode in clips.episodes}
    assert not sessions["train"] & sessions["val"]
    assert sessions["train"] | sessions["val"] == sessions[None]
    union = ClipDataset([data, other], cache, length=8)
    second = ClipDataset([other], cache, length=8)
    first_of_second = len(union) - len(second)
    a, b = union.batch(np.array([first_of_second])), second.batch(np.array([0]))
    assert torch.equal(a.frames_BTHWC, b.frames_BTHWC)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_loader_resumes_at_the_next_batch_with_any_threads_and_ranks(
    data: str, cache: Path, threads: int
) -> None:
    clips = ClipDataset([data], cache, length=8)
    straight = ClipLoader(clips, 4, seed=7)
    expected = [next(straight).window_ids_B.tolist() for _ in range(120)]
    loader = ClipLoader(clips, 4, seed=7, threads=threads)
    assert [next(loader).window_ids_B.tolist() for _ in range(50)] == expected[:50]
    state = loader.state()
    loader.close()
    assert state["samples_consumed"] == 200
    assert state["epoch"] == pytest.approx(200 / len(clips))
    parts = [
        ClipLoader(clips, 4, seed=7, rank=rank, ranks=2, threads=threads, state=state, batches=70)
        for rank in (0, 1)
    ]
    resumed = [
        a.window_ids_B.tolist() + b.window_ids_B.tolist() for a, b in zip(*parts, strict=True)
    ]
    assert resumed == expected[50:]
    for part in parts:
        part.close()


def test_loader_refuses_to_continue_on_other_data(data: str, cache: Path) -> None:
    state = ClipLoader(ClipDataset([data], cache, length=8), 4).state()
    with pytest.raises(InputError, match="other data"):
        ClipLoader(ClipDataset([data], cache, length=6), 4, state=state)


def test_episodes_shorter_than_a_clip_are_named_as_the_reason(data: str, cache: Path) -> None:
    with pytest.raises(InputError, match="shorter than a clip"):
        ClipLoader(ClipDataset([data], cache, length=500), 4)


def test_data_is_copied_once_and_again_when_it_changes(tmp_path: Path) -> None:
    uri = record(tmp_path / "data", episodes=2, steps=12)
    first = build_arrow_cache(uri, tmp_path / "cache")
    written = first.stat().st_mtime_ns
    assert build_arrow_cache(uri, tmp_path / "cache") == first
    assert first.stat().st_mtime_ns == written
    record(tmp_path / "data", episodes=1, steps=12, seed=1)
    assert build_arrow_cache(uri, tmp_path / "cache") != first
    assert [file.name for file in (tmp_path / "cache").iterdir() if file.name.startswith(".")] == []


def test_a_flipped_bit_in_the_local_copy_is_named(tmp_path: Path) -> None:
    uri = record(tmp_path / "data", episodes=3, steps=40)
    path = build_arrow_cache(uri, tmp_path / "cache")
    clips = ClipDataset([uri], tmp_path / "cache", length=8, split=None)
    row, session = int(clips._rows_E[0]), clips.episodes[0].session_id
    whole = path.read_bytes()
    blob = bytes(clips._frames.read(row, 0, 0)[0])
    first = whole.index(blob)
    actions = whole.index(bytes(clips._actions[row]))
    for offset in (first, first + 4, first + len(blob) // 2, first + len(blob) - 1):
        flip(path, offset)
        with pytest.raises(InputError, match=f"session {session} of Counting.*delete it"):
            clips.batch(np.array([0]))
        path.write_bytes(whole)
    flip(path, actions)
    with pytest.raises(InputError, match="CRC-32 of actions"):
        ClipDataset([uri], tmp_path / "cache", length=8, split=None)


def flip(path: Path, offset: int) -> None:
    """Change one bit of a file in place."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))

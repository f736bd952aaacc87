"""Compressed frames: exact windows, threads, and detection of every flipped bit."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from envs.episodes.dataset import EpisodeReader, EpisodeWriter
from envs.episodes.frame_codec import decode_frames, encode_frames
from envs.utils.errors import InputError
from tests.fixtures.datasets import make_episode


def test_any_window_decodes_without_the_rest() -> None:
    frames = make_episode(steps=99).frames_THWC
    chunks = encode_frames(frames)
    assert len(chunks) == 4
    for start, stop in ((0, 100), (0, 1), (31, 33), (32, 64), (63, 97), (96, 100), (99, 100)):
        window = decode_frames(chunks, start, stop)
        assert np.array_equal(window, frames[start:stop])
        window[:] = 0  # is the caller's own
    only_second = [b"", chunks[1], b"", b""]
    assert np.array_equal(decode_frames(only_second, 40, 56), frames[40:56])
    for start, stop in ((5, 5), (-1, 3), (96, 101), (128, 130)):
        with pytest.raises(InputError):
            decode_frames(chunks, start, stop)
    with pytest.raises(InputError, match="more than"):
        decode_frames(chunks, 0, 5, height=32, width=32)


def test_threads_decode_the_same(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path) as writer:
        writer.add(make_episode())
    encoded = EpisodeReader(tmp_path).encoded(0)
    frames = encoded.decode().frames_THWC
    with ThreadPoolExecutor(4) as pool:
        windows = list(
            pool.map(
                lambda start: decode_frames(encoded.chunks, start, start + 16), [*range(55)] * 4
            )
        )
    assert all(
        np.array_equal(window, frames[i % 55 : i % 55 + 16]) for i, window in enumerate(windows)
    )


def test_a_flipped_bit_in_a_frame_chunk_is_noticed_by_itself() -> None:
    chunks = encode_frames(make_episode().frames_THWC)
    for position in range(0, len(chunks[0]), max(1, len(chunks[0]) // 150)):
        changed = bytearray(chunks[0])
        changed[position] ^= 1 << position % 8
        try:
            decoded = decode_frames([bytes(changed)], 0, 32)
        except InputError:
            continue
        assert np.array_equal(decoded, make_episode().frames_THWC[:32]), (
            "a bit without meaning, or a silent error"
        )

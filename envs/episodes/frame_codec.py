"""Lossless compression of frames: blobs of 32 consecutive frames, each with a zstd checksum.

A window of 16 frames needs one or two blobs, and a flipped bit is always detected.
"""

import threading
from collections.abc import Sequence

import numpy as np
import zstandard
from numpy.typing import NDArray

from envs.utils.errors import InputError

CHUNK = 32
ZSTD_LEVEL = 9
RECOMPRESS_LEVEL = 19
"""An eighth smaller and as fast to read as ZSTD_LEVEL, but forty times as slow to write."""


def encode_frames(frames_THWC: NDArray[np.uint8], level: int = ZSTD_LEVEL) -> tuple[bytes, ...]:
    """Compress frames uint8 (T, H, W, 3) into blobs of 32 frames.

    The result depends only on the frames and the zstd level.
    """
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
    chunks = (frames_THWC[start : start + CHUNK] for start in range(0, len(frames_THWC), CHUNK))
    return tuple(compressor.compress(chunk.tobytes()) for chunk in chunks)


def decode_frames(
    chunks: Sequence[bytes | memoryview],
    start: int,
    stop: int,
    *,
    height: int = 64,
    width: int = 64,
    chunk: int = CHUNK,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Return frames `start` to `stop` - 1, uint8 (stop - start, height, width, 3), writable.

    The frames are written into `out` if given. Only the blobs that hold them are decoded, without
    the GIL.

    Raises: InputError for a damaged blob and for frames that do not exist.
    """
    if not 0 <= start < stop:
        raise InputError(f"frames {start} to {stop} are not a range: give 0 <= start < stop")
    frames_THWC = np.empty((stop - start, height, width, 3), np.uint8) if out is None else out
    frame_bytes = height * width * 3
    for index in range(start // chunk, -(-stop // chunk)):
        first = index * chunk
        lo, hi = max(start, first), min(stop, first + chunk)
        raw = _decompress(chunks, index, chunk * frame_bytes)
        if len(raw) % frame_bytes or len(raw) < (hi - first) * frame_bytes:
            raise InputError(
                f"frame chunk {index} holds {len(raw)} bytes, not the frames {lo} to {hi - 1} of "
                f"{width}x{height}"
            )
        held = np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)
        frames_THWC[lo - start : hi - start] = held[lo - first : hi - first]
    return frames_THWC


_CHECKSUM_FLAG = 1 << 2
"""Bit of a blob's fifth byte, the frame descriptor (RFC 8878, 3.1.1.1.1): it ends with a checksum.
"""


def without_checksum(
    chunks: Sequence[bytes], frames: int, *, height: int = 64, width: int = 64, chunk: int = CHUNK
) -> list[bytes]:
    """Verify the blobs of an episode of `frames` frames and return them without their checksums.

    This halves the decoding time, because the checksum covers the decoded frames, eighty times as
    many bytes as the blob. The caller has to protect the blobs by another checksum.

    Raises: InputError for a damaged blob.
    """
    frame_bytes = height * width * 3
    blobs = []
    for index, blob in enumerate(chunks):
        held = min(chunk, frames - index * chunk)
        raw = _decompress(chunks, index, held * frame_bytes)
        if len(raw) != held * frame_bytes:
            raise InputError(f"frame chunk {index} holds {len(raw)} bytes, not {held} frames")
        if blob[4] & _CHECKSUM_FLAG:
            blob = blob[:4] + bytes([blob[4] & ~_CHECKSUM_FLAG]) + blob[5:-4]
        blobs.append(blob)
    return blobs


_threads = threading.local()


def _decompress(chunks: Sequence[bytes | memoryview], index: int, limit: int) -> bytes:
    """Return the content of blob `index`, at most `limit` bytes.

    A zstd decompressor must not be shared between threads, so each thread creates one.
    """
    if index >= len(chunks):
        raise InputError(f"frame chunk {index} does not exist: the episode has {len(chunks)}")
    if not hasattr(_threads, "decompressor"):
        _threads.decompressor = zstandard.ZstdDecompressor()
    try:
        if zstandard.frame_content_size(chunks[index]) > limit:
            raise InputError(f"the header of frame chunk {index} states more than {limit} bytes")
        return _threads.decompressor.decompress(chunks[index])
    except zstandard.ZstdError as error:
        raise InputError(f"frame chunk {index} is damaged ({error})") from error

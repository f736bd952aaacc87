"""The local copy that training reads: a data set's compressed episodes in one file, mapped into memory.

Parquet has to be unpacked to be read; an Arrow IPC file is read where it lies, which is twice as fast. Frames stay
compressed, so the copy is as small as the data set, and a window costs one or two decompressions.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from envs.episodes import EncodedEpisode, EpisodeReader
from envs.errors import InputError
from envs.files import sync_folder
from envs.runs import progress

STAGED_VERSION = 1
_SCHEMA = pa.schema(
    [
        ("session_id", pa.string()),
        ("game", pa.string()),
        ("validation", pa.bool_()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("chunk", pa.int32()),
        ("actions", pa.large_binary()),
        ("frames", pa.large_list(pa.large_binary())),
    ]
)
_BATCH_BYTES = 64 << 20


def stage(uri: str | Path, cache_dir: Path | str) -> Path:
    """Copy a data set's episodes, still compressed, into one Arrow IPC file on the local disk; return its path.

    The file is named after the manifest's hash and written once: another call, or another process on the machine, finds
    it there. Episodes of both splits are in it. Raises InputError where the data set is damaged or the disk full.
    """
    reader = EpisodeReader(uri)
    path = Path(cache_dir) / f"episodes-v{STAGED_VERSION}-{reader.manifest_hash[:32]}.arrow"
    if path.exists():
        return path
    held_out = set(EpisodeReader(uri, "val").session_ids)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file, progress("staging episodes", len(reader)) as bar:
            with pa.ipc.new_file(file, _SCHEMA) as writer:
                rows: list[dict[str, Any]] = []
                size = 0
                for episode in reader.iter_encoded():
                    rows.append(_row(episode, episode.session_id in held_out))
                    size += sum(map(len, episode.chunks))
                    if size > _BATCH_BYTES:
                        writer.write_batch(pa.RecordBatch.from_pylist(rows, _SCHEMA))
                        rows, size = [], 0
                    bar.advance()
                if rows:
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, _SCHEMA))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"cannot stage {uri} in {path.parent}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _row(episode: EncodedEpisode, validation: bool) -> dict[str, Any]:
    return {
        "session_id": episode.session_id,
        "game": episode.game,
        "validation": validation,
        "height": episode.height,
        "width": episode.width,
        "chunk": episode.chunk,
        "actions": episode.actions.tobytes(),
        "frames": list(episode.chunks),
    }


@dataclass(frozen=True)
class StagedFile:
    """One staged file, mapped into memory. Blob j of frames is bytes[boundaries[j] : boundaries[j + 1]]."""

    bytes: memoryview
    boundaries: np.ndarray


@dataclass(frozen=True)
class StagedEpisode:
    """What is known of a staged episode without touching its frames."""

    file: int
    session_id: str
    game: str
    num_frames: int
    actions_start: int
    """Byte offset in the file; there are num_frames - 1 of them."""
    first_blob: int
    height: int
    width: int
    chunk: int
    """Frames in a blob."""


def open_staged(path: Path, file: int, split: str | None) -> tuple[StagedFile, list[StagedEpisode]]:
    """Map a staged file and index the episodes of a split by byte offsets in the file; frames are not touched."""
    whole = pa.memory_map(str(path)).read_buffer()
    episodes: list[StagedEpisode] = []
    boundaries: list[np.ndarray] = []
    blobs_before = 0
    reader = pa.ipc.open_file(pa.BufferReader(whole))
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        frames = batch.column("frames")
        action_starts = _byte_offsets(batch.column("actions"), whole).tolist()
        first_blobs = (blobs_before + frames.offsets.to_numpy()).tolist()
        boundaries.append(_byte_offsets(frames.values, whole))
        blobs_before += len(frames.values) + 1  # a record batch has one boundary more than it has blobs
        names = ("session_id", "game", "height", "width", "chunk")
        columns = [batch.column(name).to_pylist() for name in names]
        validation = batch.column("validation").to_pylist()
        for row, (session_id, game, *shape) in enumerate(zip(*columns, strict=True)):
            if split is None or validation[row] == (split == "val"):
                frame_count = action_starts[row + 1] - action_starts[row] + 1
                place = (frame_count, action_starts[row], first_blobs[row])
                episodes.append(StagedEpisode(file, session_id, game, *place, *shape))
    return StagedFile(memoryview(whole), np.concatenate([*boundaries, np.zeros(0, np.int64)])), episodes


def _byte_offsets(array: pa.LargeBinaryArray, whole: pa.Buffer) -> np.ndarray:
    """(N + 1,): where each value of a binary array begins in the file it is mapped from, and where the last ends."""
    _, offsets, data = array.buffers()
    inside = np.frombuffer(offsets, np.int64, len(array) + 1, array.offset * 8)
    return inside + (data.address - whole.address)

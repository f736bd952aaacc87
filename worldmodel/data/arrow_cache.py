"""Local copy of a data set for training: compressed episodes in one memory-mapped Arrow file.

Reading Parquet unpacks it; an Arrow IPC file is read in place, which is twice as fast. Frames stay
compressed, so that the copy is as small as the data set.

Copying decodes every blob of frames once to verify the checksum over its frames, and replaces that
checksum by a CRC-32 of the compressed bytes. Every read verifies the CRC, which covers an eightieth
as many bytes.
"""

import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from envs.episodes.dataset import EpisodeReader
from envs.episodes.episode import EncodedEpisode
from envs.episodes.frame_codec import without_checksum
from envs.utils.atomic_io import sync_folder, temporary_path
from envs.utils.errors import InputError
from envs.utils.progress import console, progress

CACHE_VERSION = 2
MAX_DAMAGED = 0.05
"""Largest share of damaged shards or sessions that are left out; more of them are an error."""
SCHEMA = pa.schema(
    [
        ("session_id", pa.string()),
        ("game", pa.string()),
        ("validation", pa.bool_()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("chunk", pa.int32()),
        ("actions", pa.large_binary()),
        ("actions_crc", pa.uint32()),
        ("frames", pa.large_list(pa.large_binary())),
        ("frames_crc", pa.large_list(pa.uint32())),
    ]
)
_BATCH_BYTES = 64 << 20


def build_arrow_cache(uri: str | Path, cache_dir: Path | str) -> Path:
    """Copy a data set's compressed episodes of both splits into one local Arrow file.

    Return its path, which follows from the manifest's hash: a later call, or another process on the
    machine, finds the file there. Damaged shards, up to 5 % of all, are left out and listed on the
    console and in the file, whose name then says so. That file is used until one of them is intact
    again.

    Raises: InputError if more shards are damaged or the disk is full.
    """
    reader = EpisodeReader(uri)
    path = cache_path(cache_dir, reader.manifest_hash)
    if path.exists():
        return path
    shards: dict[str, list[int]] = {}
    for index, shard in enumerate(reader.shards):
        shards.setdefault(shard.path, []).append(index)
    incomplete = sorted(path.parent.glob(f"{path.stem}-without-*.arrow"))
    for copy in incomplete:
        skipped = read_skipped(copy)
        if all(_is_damaged(reader, shards[name]) for name in skipped):
            console.print(f"{uri}: its copy {copy.name} lacks {_describe(skipped, len(shards))}")
            return copy

    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            skipped = _copy_shards(reader, shards, file)
            file.flush()
            os.fsync(file.fileno())
        if skipped:
            console.print(f"{reader.root}: copied without {_describe(skipped, len(shards))}")
            digest = hashlib.sha256(json.dumps(sorted(skipped)).encode()).hexdigest()
            path = path.with_name(f"{path.stem}-without-{digest[:12]}.arrow")
        if not path.exists():  # another run may have been faster, and has mapped its file
            temporary.replace(path)
        for copy in incomplete:
            if copy != path:
                copy.unlink(missing_ok=True)  # processes that have mapped it keep it
        sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot copy {uri} to {path.parent}: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def cache_path(cache_dir: Path | str, manifest_hash: str) -> Path:
    """Return the path of the complete copy of a data set."""
    return Path(cache_dir) / f"episodes-v{CACHE_VERSION}-{manifest_hash[:32]}.arrow"


def open_arrow_cache(path: Path) -> pa.Table:
    """Map a copy into memory as a table of `SCHEMA`, without reading frames.

    Raises: InputError if its structure or an action is damaged.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)
    except pa.ArrowException as error:
        raise InputError(f"{path} is damaged ({error}): delete it, and it is made again") from error
    actions = BinaryColumn(table["actions"].chunks)
    for row, crc in enumerate(table["actions_crc"].to_pylist()):
        if zlib.crc32(actions[row]) != crc:
            raise InputError(
                f"{path} is damaged (CRC-32 of actions differs): delete it, and it is made again"
            )
    return table


class BinaryColumn:
    """Values of a column of type large_binary, as slices of the mapped file.

    With Arrow's own scalars clips load 7 to 30 % more slowly.
    """

    def __init__(self, chunks: Sequence[pa.LargeBinaryArray]) -> None:
        self._data: list[memoryview] = []
        empty = np.zeros(0, np.int64)
        numbers, starts, stops = [empty], [empty], [empty]
        for chunk in filter(len, chunks):
            _, offsets, data = chunk.buffers()
            edges = np.frombuffer(offsets, np.int64, len(chunk) + 1, chunk.offset * 8)
            numbers.append(np.full(len(chunk), len(self._data)))
            starts.append(edges[:-1])
            stops.append(edges[1:])
            self._data.append(memoryview(data or b""))
        self._chunk_N, self._start_N, self._stop_N = map(np.concatenate, (numbers, starts, stops))

    def __getitem__(self, index: int) -> memoryview:
        return self._data[self._chunk_N[index]][self._start_N[index] : self._stop_N[index]]


class FrameBlobs:
    """Compressed frames of the episodes of a table, verified when they are read."""

    def __init__(self, table: pa.Table) -> None:
        lists = table["frames"].chunks
        self._blobs = BinaryColumn([chunk.flatten() for chunk in lists])
        self._crc_X = np.concatenate([chunk.flatten() for chunk in table["frames_crc"].chunks])
        counts = np.concatenate([np.diff(chunk.offsets) for chunk in lists])
        self._first_E = counts.cumsum() - counts

    def read(self, row: int, first: int, last: int) -> list[memoryview]:
        """Return blobs `first` to `last` of an episode. Raises: InputError if one is damaged."""
        start = int(self._first_E[row])
        blobs = [self._blobs[index] for index in range(start + first, start + last + 1)]
        for index, blob in enumerate(blobs, start + first):
            if zlib.crc32(blob) != self._crc_X[index]:
                raise InputError("damaged (CRC-32 differs): delete it, and it is made again")
        return blobs


def read_skipped(path: Path) -> dict[str, str]:
    """Return the shards that a copy lacks, each with its error."""
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    _, metadata = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
    return dict(json.loads(metadata["skipped"]))


def verify_blobs(episode: EncodedEpisode) -> EncodedEpisode:
    """Verify the frames of an episode and return it with blobs without checksums."""
    size = {"height": episode.height, "width": episode.width, "chunk": episode.chunk}
    try:
        blobs = without_checksum(episode.chunks, episode.num_frames, **size)
    except InputError as error:
        raise InputError(f"session {episode.session_id} of {episode.game}: {error}") from error
    return dataclasses.replace(episode, chunks=tuple(blobs))


def leave_out(skipped: dict[str, str], name: str, error: str, total: int, unit: str) -> None:
    """Add a damaged shard or session to `skipped` and print its error.

    Raises: InputError if too many of `total` are damaged.
    """
    skipped[name] = error
    if len(skipped) > MAX_DAMAGED * total:
        first = next(iter(skipped.values()))
        raise InputError(
            f"{len(skipped)} or more of {total} {unit} are damaged, over {MAX_DAMAGED:.0%}, "
            f"collect them again; first: {first}"
        )
    console.print(f"left out, damaged: {error}")


def _copy_shards(
    reader: EpisodeReader, shards: dict[str, list[int]], file: BinaryIO
) -> dict[str, str]:
    """Write the episodes of all intact shards. Return the others, each with its error."""
    validation = set(EpisodeReader(reader.root, "val").session_ids)
    skipped: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    size = 0
    with pa.ipc.new_file(file, SCHEMA) as writer, progress("copying shards", len(shards)) as bar:
        for path, indices in sorted(shards.items()):
            bar.advance()
            try:
                episodes = [verify_blobs(reader.encoded(index)) for index in indices]
            except InputError as error:
                leave_out(skipped, path, str(error), len(shards), "shards")
                continue
            for episode in episodes:
                rows.append(_row(episode, episode.session_id in validation))
                size += sum(map(len, episode.chunks))
                if size > _BATCH_BYTES:
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, SCHEMA))
                    rows, size = [], 0
        # The skipped shards are complete only now, so the last record batch stores them.
        last = pa.RecordBatch.from_pylist(rows, SCHEMA)
        writer.write_batch(last, custom_metadata={"skipped": json.dumps(skipped)})
    return skipped


def _is_damaged(reader: EpisodeReader, indices: list[int]) -> bool:
    """Return True if one of the episodes cannot be read."""
    try:
        for index in indices:
            verify_blobs(reader.encoded(index))
    except InputError:
        return True
    return False


def _describe(skipped: dict[str, str], shards: int) -> str:
    return f"{len(skipped)} of {shards} shards, damaged: {', '.join(sorted(skipped))}"


def _row(episode: EncodedEpisode, validation: bool) -> dict[str, Any]:
    """Return an episode as the values of `SCHEMA`."""
    actions = episode.actions.tobytes()
    return {
        "session_id": episode.session_id,
        "game": episode.game,
        "validation": validation,
        "height": episode.height,
        "width": episode.width,
        "chunk": episode.chunk,
        "actions": actions,
        "actions_crc": zlib.crc32(actions),
        "frames": episode.chunks,
        "frames_crc": [zlib.crc32(blob) for blob in episode.chunks],
    }

"""Local copy of a data set for training: compressed episodes in one memory-mapped Arrow file.

Parquet has to be unpacked to be read; an Arrow IPC file is read where it lies, which is twice as
fast. Frames stay compressed, so the copy is as small as the data set, and a window costs one or two
decompressions.

Every blob is decoded once when it is copied, which checks the checksum over its frames. The copy
then holds the blob without it, with a CRC-32 of the compressed bytes: an eightieth as many bytes
to check at every read, and a flipped bit in the copy is still always noticed.
"""

import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from envs.episodes.dataset import EpisodeReader
from envs.episodes.episode import EncodedEpisode
from envs.episodes.frame_codec import without_checksum
from envs.utils.atomic_io import sync_folder
from envs.utils.errors import InputError
from envs.utils.progress import Bar, console, progress

STAGED_VERSION = 2
MAX_DAMAGED = 0.05
"""Share of a data set's shards that may be damaged; with more, the data set is no more the one that
was asked for."""
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
    """Copy a data set's compressed episodes into one Arrow IPC file on the local disk; return its
    path.

    The file is named after the manifest's hash and written once: another call, or another process
    on the machine, finds it there. Episodes of both splits are in it. Damaged shards, up to 5 % of
    all, are left out and named on the console and in the file, whose name then says so; it is used
    until one of them is whole again. Raise InputError where more are damaged or the disk is full.
    """
    reader = EpisodeReader(uri)
    path = staged_path(cache_dir, reader.manifest_hash)
    if path.exists():
        return path
    shards: dict[str, list[int]] = {}
    for index, shard in enumerate(reader.shards):
        shards.setdefault(shard.path, []).append(index)
    incomplete = sorted(path.parent.glob(f"{path.stem}-without-*.arrow"))
    for copy in incomplete:
        skipped = read_skipped(copy)
        if all(name in shards and isinstance(_read(reader, shards[name]), str) for name in skipped):
            console.print(f"{uri}: its copy {copy.name} is without {_named(skipped, len(shards))}")
            return copy
    held_out = set(EpisodeReader(uri, "val").session_ids)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file, progress("staging shards", len(shards)) as bar:
            skipped = _copy(reader, shards, held_out, file, bar)
            file.flush()
            os.fsync(file.fileno())
        if skipped:
            digest = hashlib.sha256(json.dumps(sorted(skipped)).encode()).hexdigest()
            path = path.with_name(f"{path.stem}-without-{digest[:12]}.arrow")
        temporary.replace(path)
        for copy in incomplete:
            if copy != path:
                copy.unlink(missing_ok=True)  # who has it mapped keeps it
        sync_folder(path.parent)
    except OSError as error:
        raise InputError(
            f"cannot stage {uri} in {path.parent}: {error.strerror or error}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def staged_path(cache_dir: Path | str, manifest_hash: str) -> Path:
    """Return the path of the complete copy of a data set."""
    return Path(cache_dir) / f"episodes-v{STAGED_VERSION}-{manifest_hash[:32]}.arrow"


def _copy(
    reader: EpisodeReader, shards: dict[str, list[int]], held_out: set[str], file: Any, bar: Bar
) -> dict[str, str]:
    """Write the episodes of all intact shards. Return the others with the reason, which is also
    stored in the file.
    """
    skipped: dict[str, str] = {}
    with pa.ipc.new_file(file, SCHEMA) as writer:
        rows: list[dict[str, Any]] = []
        size = 0
        for path, indexes in sorted(shards.items()):
            bar.advance()
            episodes = _read(reader, indexes)
            if isinstance(episodes, str):
                skipped[path] = episodes
                _check_share(reader, skipped, len(shards))
                console.print(f"left out, damaged: {episodes}")
                continue
            for episode, blobs in episodes:
                rows.append(_row(episode, blobs, episode.session_id in held_out))
                size += sum(map(len, blobs))
                if size > _BATCH_BYTES:
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, SCHEMA))
                    rows, size = [], 0
        # What was left out is known only now, so the last record batch carries it.
        last = pa.RecordBatch.from_pylist(rows, SCHEMA)
        writer.write_batch(last, custom_metadata={"skipped": json.dumps(skipped)})
    if skipped:
        console.print(f"{reader.root}: staged without {_named(skipped, len(shards))}")
    return skipped


def _read(
    reader: EpisodeReader, indexes: list[int]
) -> list[tuple[EncodedEpisode, list[bytes]]] | str:
    """Read the episodes of one shard and check their blobs; return the error as text if it is
    damaged.
    """
    try:
        return [(episode, checked_blobs(episode)) for episode in map(reader.encoded, indexes)]
    except InputError as error:
        return str(error)


def checked_blobs(episode: EncodedEpisode) -> list[bytes]:
    """Return the blobs of an episode without checksums, after checking them."""
    try:
        return without_checksum(
            episode.chunks,
            episode.num_frames,
            height=episode.height,
            width=episode.width,
            chunk=episode.chunk,
        )
    except InputError as error:
        raise InputError(f"session {episode.session_id} of {episode.game}: {error}") from error


def _check_share(reader: EpisodeReader, skipped: dict[str, str], shards: int) -> None:
    """Raise InputError where too many shards are damaged to go on without them."""
    if len(skipped) > MAX_DAMAGED * shards:
        first = next(iter(skipped.values()))
        count = f"{len(skipped)} or more of {shards} shards are damaged"
        raise InputError(
            f"{reader.root}: {count}, over {MAX_DAMAGED:.0%}, collect them again; first: {first}"
        )


def _named(skipped: dict[str, str], shards: int) -> str:
    return f"{len(skipped)} of {shards} shards, damaged: {', '.join(sorted(skipped))}"


def _row(episode: EncodedEpisode, blobs: list[bytes], validation: bool) -> dict[str, Any]:
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
        "frames": blobs,
        "frames_crc": [zlib.crc32(blob) for blob in blobs],
    }


OFFSET_DTYPE = np.dtype(
    [
        ("file", np.int32),
        ("game", np.int32),  # place numbered through all files
        ("num_frames", np.int64),
        ("actions_start", np.int64),  # byte offset in the file; there are num_frames - 1 of them
        ("first_blob", np.int64),
        ("height", np.int32),
        ("width", np.int32),
        ("chunk", np.int32),  # frames in a blob
    ]
)
"""Location and size of a copied episode; reading it touches no frames."""


@dataclass(frozen=True)
class StagedFile:
    """One memory-mapped copy, and its episodes of one split. Blob j is bytes[start_j : stop_j]."""

    bytes: memoryview
    boundaries: np.ndarray
    """int64: blob j lies between boundaries j and j + 1."""
    crcs: np.ndarray
    """uint32: of blob j."""
    places: np.ndarray
    """(E,) of dtype OFFSET_DTYPE"""
    session_ids: list[pa.StringArray]
    """E names in all."""
    skipped: dict[str, str]
    """Shard that was left out -> why."""

    def blobs(self, first: int, count: int) -> list[memoryview]:
        """Return blobs first to first + count - 1. Raise InputError where the copy is damaged."""
        edges = self.boundaries[first : first + count + 1].tolist()
        found = [self.bytes[start:stop] for start, stop in itertools.pairwise(edges)]
        for blob, crc in zip(found, self.crcs[first : first + count].tolist(), strict=True):
            if zlib.crc32(blob) != crc:
                raise InputError(
                    "the staged copy is damaged (CRC-32 differs): delete it, and it is made again"
                )
        return found


def open_staged(path: Path, file: int, split: str | None, games: dict[str, int]) -> StagedFile:
    """Map a copy into memory and index the episodes of a split by byte offsets; frames are not
    touched.

    `file` becomes the episodes' file number. Games that `games` does not know yet are numbered in
    it. Raise InputError where actions are not those that were staged.
    """
    whole = pa.memory_map(str(path)).read_buffer()
    reader = pa.ipc.open_file(pa.BufferReader(whole))
    places, boundaries, crcs, session_ids = (
        [],
        [np.zeros(0, np.int64)],
        [np.zeros(0, np.uint32)],
        [],
    )
    blobs_before = 0
    for batch in _batches(reader):
        frames, actions = batch.column("frames"), _byte_offsets(batch.column("actions"), whole)
        found = np.zeros(len(batch), OFFSET_DTYPE)
        for name in ("height", "width", "chunk"):
            found[name] = batch.column(name).to_numpy()
        names = batch.column("game").dictionary_encode()
        numbers = [games.setdefault(game, len(games)) for game in names.dictionary.to_pylist()]
        found["file"], found["game"] = file, np.array(numbers, np.int32)[names.indices.to_numpy()]
        found["actions_start"], found["num_frames"] = actions[:-1], np.diff(actions) + 1
        found["first_blob"] = blobs_before + frames.offsets.to_numpy()[:-1]
        _check_actions(path, whole, actions, batch.column("actions_crc"))
        boundaries.append(_byte_offsets(frames.values, whole))
        # A record batch has one boundary more than it has blobs, so one number of its blobs is not
        # used.
        crcs += [batch.column("frames_crc").values.to_numpy(), np.zeros(1, np.uint32)]
        blobs_before += len(frames.values) + 1
        wanted = np.ones(len(batch), bool)
        if split is not None:
            wanted = batch.column("validation").to_numpy(zero_copy_only=False) == (split == "val")
        places.append(found[wanted])
        session_ids.append(batch.column("session_id").filter(pa.array(wanted)))
    return StagedFile(
        memoryview(whole),
        np.concatenate(boundaries),
        np.concatenate(crcs),
        np.concatenate([np.zeros(0, OFFSET_DTYPE), *places]),
        session_ids,
        read_skipped(path),
    )


def one_size(places: np.ndarray) -> tuple[int, int]:
    """Return (height, width) of all frames. Raise InputError where there are several sizes."""
    sizes = np.unique(places[["height", "width"]]).tolist()
    if len(sizes) > 1:
        raise InputError(
            f"the data holds frames of several sizes, {sizes}: train on one size at a time"
        )
    return sizes[0] if sizes else (0, 0)


def read_skipped(path: Path) -> dict[str, str]:
    """Return the shards that a copy lacks, and why."""
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    _, metadata = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
    return dict(json.loads(metadata["skipped"]))


def _batches(reader: pa.RecordBatchFileReader) -> Iterator[pa.RecordBatch]:
    batches = map(reader.get_batch, range(reader.num_record_batches))
    return (batch for batch in batches if len(batch))


def _check_actions(path: Path, whole: pa.Buffer, edges: np.ndarray, crcs: pa.UInt32Array) -> None:
    """Compare all actions of a record batch with their checksums."""
    data = memoryview(whole)
    for (start, stop), crc in zip(
        itertools.pairwise(edges.tolist()), crcs.to_pylist(), strict=True
    ):
        if zlib.crc32(data[start:stop]) != crc:
            raise InputError(
                f"{path} is damaged (CRC-32 of actions differs): delete it, and it is made again"
            )


def _byte_offsets(array: pa.LargeBinaryArray, whole: pa.Buffer) -> np.ndarray:
    """Return (N + 1,) byte offsets in the mapped file at which the values of a binary array begin,
    and the end of the last.
    """
    _, offsets, data = array.buffers()
    inside = np.frombuffer(offsets, np.int64, len(array) + 1, array.offset * 8)
    return inside + (data.address - whole.address)

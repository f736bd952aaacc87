"""Merges the small files of a data set into few large ones, without changing a bit of any frame, action or reward.

A large file is written whole, read back, named in the manifest together with the small ones' removal (one rename), and
only then are the small ones deleted. So readers find every session at any moment, wherever the process is killed; files
that are left over are deleted by the next run, after their sessions were compared with the ones that the set holds.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from envs.episodes import manifest
from envs.episodes.dataset import EpisodeWriter
from envs.episodes.episode import EncodedEpisode
from envs.episodes.frame_codec import RECOMPRESS_LEVEL
from envs.episodes.manifest import Manifest
from envs.episodes.shards import Shard, check_shard, inspect_shard, read_row, write_shard
from envs.episodes.verify import stray_files
from envs.utils.errors import InputError
from envs.utils.progress import Bar, progress
from envs.utils.storage import StoragePath, lock, parse_uri

MEGABYTE = 1_000_000


@dataclass
class Compaction:
    """What `compact` did."""

    files_before: int = 0
    files_after: int = 0
    leftovers: int = 0
    """Files of an earlier, killed run that were deleted."""
    sessions: int = 0
    """That lie in another file now."""
    bytes: int = 0
    """Of the files that were written."""


def compact(uri: str, *, megabytes: int = 128, recompress: bool = False) -> Compaction:
    """Merge each game's files that are smaller than half of `megabytes` into files of at most `megabytes`.

    `recompress` compresses the frames of the merged files again, as small as they go, at a millisecond a frame.
    Which sessions are for validation stays as it is; the manifest's hash changes, because it names the files. Nobody
    else may write to the folder meanwhile, and readers that were opened before must be opened again.
    Raises InputError for a folder without episodes or one that is being written, a damaged file, or sizes below 1.
    """
    if megabytes < 1:
        raise InputError(f"--megabytes is at least 1, not {megabytes}")
    root = parse_uri(uri)
    manifest.load(root)  # raises where there is none: a writer would begin an empty set
    done = Compaction()
    held_lock = lock(root)
    try:
        done.leftovers = _sweep(root, manifest.load(root))
    finally:
        held_lock.release()
    with EpisodeWriter(uri) as writer:  # takes in what a killed collector left complete
        if writer.damaged:
            raise InputError(
                f"{root / writer.damaged[0]} is damaged or gone: `autoexplore data verify` lists such files"
            )
    held_lock = lock(root)
    try:
        held = manifest.load(root)
        done.files_before = len(held.shards)
        groups = list(_groups(held, megabytes * MEGABYTE))
        with progress("compact", sum(len(group) for group in groups)) as bar:
            for group in groups:
                merged = _merge(root, held, group, bar, recompress)
                done.sessions += len(merged.sessions)
                done.bytes += merged.bytes
        done.files_after = len(held.shards)
    finally:
        held_lock.release()
    return done


def _groups(held: Manifest, limit: int) -> Iterator[list[Shard]]:
    """The files to merge with each other: of one game, two or more, of `limit` bytes together."""
    group: list[Shard] = []
    for _, shard in sorted(held.shards.items()):
        if shard.bytes >= limit / 2:
            continue
        game = shard.sessions[0].game
        if group and (
            group[0].sessions[0].game != game or sum(s.bytes for s in group) + shard.bytes > limit
        ):
            if len(group) > 1:
                yield group
            group = []
        group.append(shard)
    if len(group) > 1:
        yield group


def _merge(
    root: StoragePath, held: Manifest, group: list[Shard], bar: Bar, recompress: bool
) -> Shard:
    """Replace `group` by one file, on disk and in the manifest."""
    episodes: list[EncodedEpisode] = []
    for shard in group:
        sessions = _sessions(root, shard)
        episodes += (
            [episode.decode().encode(RECOMPRESS_LEVEL) for episode in sessions]
            if recompress
            else sessions
        )
        bar.advance(1, shard.sessions[0].game)
    episodes.sort(key=lambda episode: episode.session_id)
    merged = write_shard(root, episodes, writer_name([episode.session_id for episode in episodes]))
    for row, original in enumerate(episodes):
        if not same(read_row(root / merged.path, row), original):
            (root / merged.path).unlink()
            raise InputError(
                f"{root / merged.path} did not come back as it was written: check the disk"
            )
    for shard in group:
        del held.shards[shard.path]
    held.shards[merged.path] = merged
    held.save(root)
    # Merged files first: were the manifest lost now, the next writer would adopt the rest after the merged one, and
    # find that it knows their sessions.
    for shard in sorted(group, key=lambda shard: shard.path):
        (root / shard.path).unlink()
    return merged


def writer_name(session_ids: list[str]) -> str:
    """The name of a merged file. Its leading "-" sorts it before the files of single sessions (see `_merge`)."""
    return "-" + hashlib.sha256("\n".join(session_ids).encode()).hexdigest()[:12]


def same(one: EncodedEpisode, other: EncodedEpisode) -> bool:
    """Whether two compressed episodes hold the same, bit for bit; their frames may be compressed otherwise."""
    for item in dataclasses.fields(EncodedEpisode):
        a, b = getattr(one, item.name), getattr(other, item.name)
        if isinstance(a, np.ndarray):
            if a.dtype != b.dtype or a.tobytes() != b.tobytes():
                return False
        elif a != b and item.name != "chunks":
            return False
    if one.chunks == other.chunks:
        return True
    return np.array_equal(one.decode().frames_THWC, other.decode().frames_THWC)


def _sessions(root: StoragePath, shard: Shard) -> list[EncodedEpisode]:
    """The sessions of a file that is as the manifest says."""
    check_shard(root, shard)
    return [read_row(root / shard.path, row) for row in range(len(shard.sessions))]


def _sweep(root: StoragePath, held: Manifest) -> int:
    """Delete unlisted files all of whose sessions the set holds, bit for bit, in listed files. Returns how many."""
    where = {
        record.session_id: (shard, row)
        for shard in held.shards.values()
        for row, record in enumerate(shard.sessions)
    }
    checked: set[str] = set()
    swept = 0
    for path in stray_files(root, held):
        if not path.endswith(".parquet"):
            continue
        try:
            stray = inspect_shard(root, path)
        except InputError:
            continue  # the writer that comes next reports it
        if not all(record.session_id in where for record in stray.sessions):
            continue
        kept = True
        for row, record in enumerate(stray.sessions):
            shard, listed_row = where[record.session_id]
            if shard.path not in checked:
                check_shard(root, shard)
                checked.add(shard.path)
            kept = kept and same(
                read_row(root / shard.path, listed_row), read_row(root / path, row)
            )
        if kept:
            (root / path).unlink()
            swept += 1
    return swept

"""Compaction: merge the small files of a data set into a few large ones without changing any
episode.

A large file is written completely, read back, and entered into the manifest while its small files
are removed from it (one rename). Only then are the small files deleted. Readers therefore find
every episode at any moment, wherever the process is killed. The next run deletes leftover files
after it has compared their episodes with those of the data set.
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
    """Result of `compact`."""

    files_before: int = 0
    files_after: int = 0
    leftovers: int = 0
    """Deleted files of an earlier, killed run."""
    sessions: int = 0
    """Episodes that moved to another file."""
    bytes: int = 0
    """Size of the written files."""


def compact(uri: str, *, megabytes: int = 128, recompress: bool = False) -> Compaction:
    """Merge each game's files smaller than half of `megabytes` into files of at most `megabytes`.

    `recompress` compresses the frames of the merged files again at the highest level, at a
    millisecond per frame. The validation split stays the same; the manifest's hash changes, because
    it covers the file names. There must be no other writer meanwhile, and readers must be opened
    again afterwards.

    Raises: InputError for a folder without episodes or with another writer, a damaged file, or
    sizes below 1.
    """
    if megabytes < 1:
        raise InputError(f"--megabytes is at least 1, not {megabytes}")
    root = parse_uri(uri)
    manifest.load(root)  # raises if there is none: a writer would start an empty data set
    done = Compaction()
    held_lock = lock(root)
    try:
        done.leftovers = _sweep(root, manifest.load(root))
    finally:
        held_lock.release()
    with EpisodeWriter(uri) as writer:  # adopts the complete files of a killed collector
        if writer.damaged:
            raise InputError(
                f"{root / writer.damaged[0]} is damaged or missing: `autoexplore data verify` "
                "lists such files"
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
    """Yield the files to merge with each other: two or more of one game, together at most `limit`
    bytes.
    """
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
            raise InputError(f"{root / merged.path} differs from what was written: check the disk")
    for shard in group:
        del held.shards[shard.path]
    held.shards[merged.path] = merged
    held.save(root)
    # In sorted order: if the manifest is lost now, the next writer adopts the merged file first and
    # skips the remaining small ones, whose episodes it then knows.
    for shard in sorted(group, key=lambda shard: shard.path):
        (root / shard.path).unlink()
    return merged


def writer_name(session_ids: list[str]) -> str:
    """Return the name of a merged file. Its leading "-" sorts it before unmerged files (see
    `_merge`).
    """
    return "-" + hashlib.sha256("\n".join(session_ids).encode()).hexdigest()[:12]


def same(one: EncodedEpisode, other: EncodedEpisode) -> bool:
    """Return True if two episodes are equal bit for bit; their frames may be compressed
    differently.
    """
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
    """Return the episodes of a file after comparing it with the manifest."""
    check_shard(root, shard)
    return [read_row(root / shard.path, row) for row in range(len(shard.sessions))]


def _sweep(root: StoragePath, held: Manifest) -> int:
    """Delete unlisted files if listed files hold all their episodes bit for bit; return their
    number.
    """
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
            continue  # reported by the next writer
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

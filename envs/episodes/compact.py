"""Compaction: small files of a data set are merged into large ones, without changing an episode.

A large file is written completely, read back, and entered into the manifest while its small files
are removed from it (one rename). Only then are the small files deleted. Readers therefore find
every episode at any moment, wherever the process is killed. The next run deletes leftover files
after it has compared their episodes with those of the data set.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.episodes.dataset import EpisodeWriter
from envs.episodes.episode import EncodedEpisode
from envs.episodes.frame_codec import RECOMPRESS_LEVEL
from envs.episodes.manifest import Manifest, load_manifest
from envs.episodes.shards import Shard, check_shard, inspect_shard, read_row, write_shard
from envs.episodes.verify import stray_files
from envs.utils.errors import InputError
from envs.utils.progress import Bar, progress
from envs.utils.storage import StoragePath, parse_uri

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
    load_manifest(root)  # raises if there is none: a writer would start an empty data set
    result = Compaction()
    with EpisodeWriter(uri) as writer:  # adopts the complete files of a killed collector
        if writer.damaged:
            raise InputError(
                f"{root / writer.damaged[0]} is damaged or missing: `autoexplore data verify` "
                "lists such files"
            )
        writer.commit()
        manifest = writer.manifest
        result.leftovers = _delete_leftovers(root, manifest)
        result.files_before = len(manifest.shards)
        groups = list(_groups(manifest, megabytes * MEGABYTE))
        with progress("compact", sum(len(group) for group in groups)) as bar:
            for group in groups:
                merged = _merge(root, manifest, group, bar, recompress)
                result.sessions += len(merged.sessions)
                result.bytes += merged.bytes
        result.files_after = len(manifest.shards)
    return result


def _groups(manifest: Manifest, limit: int) -> Iterator[list[Shard]]:
    """Yield two or more files of one game to merge with each other, of at most `limit` bytes."""
    group: list[Shard] = []
    for _, shard in sorted(manifest.shards.items()):
        if shard.bytes >= limit / 2:
            continue
        is_full = sum(other.bytes for other in group) + shard.bytes > limit
        if group and (is_full or group[0].sessions[0].game != shard.sessions[0].game):
            if len(group) > 1:
                yield group
            group = []
        group.append(shard)
    if len(group) > 1:
        yield group


def _merge(
    root: StoragePath, manifest: Manifest, group: list[Shard], bar: Bar, recompress: bool
) -> Shard:
    """Replace `group` by one file, on disk and in the manifest."""
    episodes: list[EncodedEpisode] = []
    for shard in group:
        check_shard(root, shard)
        rows = [read_row(root / shard.path, row) for row in range(len(shard.sessions))]
        if recompress:
            rows = [episode.decode().encode(RECOMPRESS_LEVEL) for episode in rows]
        episodes += rows
        bar.advance(1, shard.sessions[0].game)
    episodes.sort(key=lambda episode: episode.session_id)
    ids = "\n".join(episode.session_id for episode in episodes)
    # The leading "-" sorts merged files before the others, see below.
    name = "-" + hashlib.sha256(ids.encode()).hexdigest()[:12]
    merged = write_shard(root, episodes, name)
    for row, original in enumerate(episodes):
        if not equal_episodes(read_row(root / merged.path, row), original):
            (root / merged.path).unlink()
            raise InputError(f"{root / merged.path} differs from what was written: check the disk")
    for shard in group:
        del manifest.shards[shard.path]
    manifest.shards[merged.path] = merged
    manifest.save(root)
    # In sorted order: if the manifest is lost now, the next writer adopts the merged file first and
    # skips the remaining small ones, whose episodes it then knows.
    for path in sorted(shard.path for shard in group):
        (root / path).unlink()
    return merged


def equal_episodes(one: EncodedEpisode, other: EncodedEpisode) -> bool:
    """Return True if two episodes are equal bit for bit, however their frames are compressed."""
    if _content(one) != _content(other):
        return False
    return one.chunks == other.chunks or np.array_equal(
        one.decode().frames_THWC, other.decode().frames_THWC
    )


def _content(episode: EncodedEpisode) -> dict[str, Any]:
    """Return the fields of an episode without its frames; arrays as bytes."""
    return {
        name: value.tobytes() if isinstance(value, np.ndarray) else value
        for name, value in vars(episode).items()
        if name != "chunks"
    }


def _delete_leftovers(root: StoragePath, manifest: Manifest) -> int:
    """Delete unlisted files if listed files hold all their episodes bit for bit.

    Return the number of deleted files.
    """
    location = {
        record.session_id: (shard, row)
        for shard in manifest.shards.values()
        for row, record in enumerate(shard.sessions)
    }
    checked: set[str] = set()

    def is_listed(path: str, row: int, session_id: str) -> bool:
        shard, listed_row = location[session_id]
        if shard.path not in checked:
            check_shard(root, shard)
            checked.add(shard.path)
        listed = read_row(root / shard.path, listed_row)
        return equal_episodes(listed, read_row(root / path, row))

    deleted = 0
    for path in stray_files(root, manifest):
        try:
            ids = [record.session_id for record in inspect_shard(root, path).sessions]
        except InputError:
            continue  # not a complete file of episodes
        if all(session_id in location for session_id in ids) and all(
            is_listed(path, row, session_id) for row, session_id in enumerate(ids)
        ):
            (root / path).unlink()
            deleted += 1
    return deleted

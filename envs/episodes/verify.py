"""Verification of a data set: every byte, every frame and every entry of its manifest."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from envs.episodes.episode import EncodedEpisode
from envs.episodes.frame_codec import decode_frames
from envs.episodes.manifest import NAME, Manifest, load_manifest
from envs.episodes.shards import Shard, check_shard, inspect_shard, read_row, session_record
from envs.utils.errors import InputError
from envs.utils.progress import progress
from envs.utils.storage import StoragePath, parse_uri


@dataclass
class Verification:
    """Result of `verify`."""

    files: int = 0
    sessions: int = 0
    frames: int = 0
    bytes: int = 0
    """Size of the files that the manifest lists."""
    faults: dict[str, str] = field(default_factory=dict)
    """File, relative to the data set's folder -> its first fault."""


def verify(uri: str, *, workers: int = 2) -> Verification:
    """Check every file of a data set with `workers` threads.

    Per file: size, sha256 and page checksums, the episodes against the manifest, every frame, the
    range of the actions, finite rewards. For the whole data set: every episode is stored once, the
    split lists every episode under its game, and every file is in the manifest.

    Raises: InputError if there is no readable manifest or `workers` is below 1.
    """
    if workers < 1:
        raise InputError(f"--workers is at least 1, not {workers}")
    root = parse_uri(uri)
    manifest = load_manifest(root)
    shards = [shard for _, shard in sorted(manifest.shards.items())]
    records = [record for shard in shards for record in shard.sessions]
    faults: dict[str, str] = {}
    with progress("verify", len(shards)) as bar, ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(_shard_fault, root, shard): shard for shard in shards}
        for future in as_completed(futures):
            if fault := future.result():
                faults[futures[future].path] = fault
            bar.advance(1, f"{len(faults)} bad")
    # A contradiction in the manifest explains the fault of a file best.
    faults |= _manifest_faults(manifest)
    faults |= {path: _stray_fault(root, path, manifest) for path in stray_files(root, manifest)}
    return Verification(
        files=len(shards),
        sessions=len(records),
        frames=sum(record.num_frames for record in records),
        bytes=sum(shard.bytes for shard in shards),
        faults=dict(sorted(faults.items())),
    )


def stray_files(root: StoragePath, manifest: Manifest) -> Iterator[str]:
    """Yield the paths of data files that the manifest does not list and of temporary manifests."""
    files = [*root.glob("env=*/**/*"), *root.glob(f".{NAME}.*.tmp")]
    for file in sorted(item for item in files if not item.is_dir()):
        path = file.relative_to(root).as_posix()
        if path not in manifest.shards:
            yield path


def _shard_fault(root: StoragePath, shard: Shard) -> str:
    """Return the fault of a listed file, or an empty text."""
    try:
        check_shard(root, shard)
        for row, record in enumerate(shard.sessions):
            episode = read_row(root / shard.path, row)
            name = f"episode {episode.session_id} of {episode.game}"
            if session_record(episode) != record:
                return f"row {row} holds {name}, not the episode that the manifest lists"
            if shard.path.split("/")[0] != f"env={episode.game}":
                return f"{name} is in another game's folder"
            _check_content(episode)
        try:
            read_row(root / shard.path, len(shard.sessions))
        except InputError:
            return ""
        return f"it holds more than the {len(shard.sessions)} episodes that the manifest lists"
    except InputError as error:
        return str(error).replace(f"{root / shard.path}", "").lstrip(": ")


def _check_content(episode: EncodedEpisode) -> None:
    """Decode the frames, one chunk at a time to save memory, and check the rewards.

    Raises: InputError for a damaged chunk, a wrong length, or rewards that are not finite.
    """
    size: dict[str, Any] = {
        "height": episode.height,
        "width": episode.width,
        "chunk": episode.chunk,
    }
    for start in range(0, episode.num_frames, episode.chunk):
        stop = min(start + episode.chunk, episode.num_frames)
        decode_frames(episode.chunks, start, stop, **size)
    if not np.isfinite(episode.rewards).all():
        raise InputError(f"episode {episode.session_id} has a reward that is not finite")


def _manifest_faults(manifest: Manifest) -> dict[str, str]:
    """Return path -> contradiction in the manifest."""
    faults = {}
    path_of: dict[str, str] = {}
    for path, shard in sorted(manifest.shards.items()):
        for record in shard.sessions:
            name = f"episode {record.session_id}"
            if record.session_id in path_of:
                faults[path] = f"{name} is stored twice, also in {path_of[record.session_id]}"
            path_of[record.session_id] = path
            if record.session_id not in manifest.validation.get(record.game, {}):
                faults[path] = f"{name} is in no split of {NAME}"
    game_of: dict[str, str] = {}
    for game, split in manifest.validation.items():
        for session_id in split:
            if session_id in game_of:
                other = game_of[session_id]
                faults[NAME] = f"episode {session_id} is planned for {other} and for {game}"
            game_of[session_id] = game
        if len(split) > 1 and not any(split.values()):
            faults[NAME] = f"{game} has {len(split)} episodes and none for validation"
    return faults


def _stray_fault(root: StoragePath, path: str, manifest: Manifest) -> str:
    """Return a description of an unlisted file and its remedy."""
    if not path.endswith(".parquet"):
        return "left by a killed writer: the next collect or compact deletes it"
    try:
        shard = inspect_shard(root, path)
    except InputError:
        return "not in the manifest, and damaged: delete it"
    known = manifest.sessions()
    if all(record.session_id in known for record in shard.sessions):
        return "not in the manifest, and its episodes are in other files: compact deletes it"
    return "not in the manifest: the next collect or compact adopts it"

"""Parquet files of episodes: one row, and one row group, per episode. `SCHEMA` lists the columns.

Frames are already compressed, so Parquet stores them as they are. Every page has a checksum, and
the manifest adds one over the whole file.
"""

import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envs.episodes.episode import EncodedEpisode
from envs.utils.errors import InputError, one_line
from envs.utils.storage import StoragePath, replace_bytes

SCHEMA_VERSION = 1
_COLUMNS = {
    "session_id": pa.string(),
    "env": pa.string(),
    "console": pa.string(),
    "rom_sha1": pa.string(),
    "retro_version": pa.string(),
    "schema_version": pa.int32(),
    "policy_id": pa.string(),
    "seed": pa.int64(),
    "init_state": pa.string(),
    "frame_skip": pa.int32(),
    "buttons": pa.list_(pa.uint16()),
    "num_frames": pa.int32(),
    "chunk": pa.int32(),
    "height": pa.int32(),
    "width": pa.int32(),
    "resize": pa.string(),
    "frames": pa.list_(pa.binary()),
    "actions": pa.list_(pa.uint8()),
    "rewards": pa.list_(pa.float32()),
    "info": pa.string(),
    "terminated": pa.bool_(),
    "truncated": pa.bool_(),
}
SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _COLUMNS.items()])
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class SessionRecord:
    """Entry of an episode in the manifest."""

    session_id: str
    game: str
    policy_id: str
    num_frames: int


@dataclass(frozen=True)
class Shard:
    """Entry of a file in the manifest.

    `sessions` are its rows in order; `path` is relative to the folder of the data set.
    """

    path: str
    bytes: int
    sha256: str
    sessions: tuple[SessionRecord, ...]


def write_shard(root: StoragePath, episodes: Sequence[EncodedEpisode], writer: str) -> Shard:
    """Write episodes of one game into one file, completely or not at all, and return its entry.

    The content depends on the episodes alone. `writer` is part of the file's name; while
    collecting it is the id of the only episode.

    Raises: InputError for episodes of several games, or if the file cannot be written.
    """
    games = sorted({episode.game for episode in episodes})
    if len(games) != 1 or not re.fullmatch(r"[\w-]+", writer):
        raise InputError(
            f"a shard holds episodes of one game under a plain name, not of {games} as {writer!r}"
        )
    table = pa.Table.from_pylist([_to_row(episode) for episode in episodes], schema=SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        row_group_size=1,
        use_dictionary=[name for name, kind in _COLUMNS.items() if kind == pa.string()],
        compression={
            f"{name}.list.element" if pa.types.is_list(kind) else name: (
                "NONE" if name == "frames" else "ZSTD"
            )
            for name, kind in _COLUMNS.items()
        },
        write_page_checksum=True,
        write_statistics=False,
        store_schema=False,  # redundant with Parquet's types; halves the footer
    )
    data = buffer.getvalue()
    path = f"env={games[0]}/part-{writer}-0.parquet"
    replace_bytes(root / path, data)
    return _shard_entry(path, data, episodes)


def _shard_entry(path: str, data: bytes, episodes: Sequence[EncodedEpisode]) -> Shard:
    records = tuple(session_record(episode) for episode in episodes)
    return Shard(path, len(data), hashlib.sha256(data).hexdigest(), records)


def session_record(episode: EncodedEpisode) -> SessionRecord:
    """Return the manifest entry of an episode."""
    return SessionRecord(episode.session_id, episode.game, episode.policy_id, episode.num_frames)


def read_row(path: StoragePath, row: int) -> EncodedEpisode:
    """Return the compressed episode in row `row` of a shard.

    Raises: InputError naming the file if it is damaged or of another schema.
    """
    try:
        state = path.stat()
        footer = _footer(path, state.st_ino, state.st_size, state.st_mtime_ns)
        source = path if isinstance(path, Path) else path.open()
        file = pq.ParquetFile(
            source, metadata=footer, memory_map=True, page_checksum_verification=True
        )
        if not file.schema_arrow.equals(SCHEMA):
            raise InputError(f"columns of another version than schema {SCHEMA_VERSION}")
        return _from_row(file.read_row_group(row).to_pylist()[0])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        raise InputError(
            f"{path} is damaged or missing: {one_line(error)}: collect it again"
        ) from error


@lru_cache(maxsize=8)
def _footer(path: StoragePath, *state: int) -> pq.FileMetaData:
    """Return a file's cached footer; with a thousand rows it takes longer to parse than a row."""
    with path.open("rb") as file:
        return pq.read_metadata(file)


def inspect_shard(root: StoragePath, path: str) -> Shard:
    """Return the entry of a file that no manifest lists, after decoding all its frames.

    Raises: InputError if it is damaged.
    """
    file = root / path
    try:
        data = file.read_bytes()
        rows = pq.ParquetFile(io.BytesIO(data)).num_row_groups
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} is damaged: {one_line(error)}") from error
    episodes = [read_row(file, row) for row in range(rows)]
    for episode in episodes:
        try:
            episode.decode()
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
    return _shard_entry(path, data, episodes)


def check_shard(root: StoragePath, shard: Shard) -> None:
    """Compare a file with its size and hash in the manifest. Raises: InputError naming the file."""
    file = root / shard.path
    digest = hashlib.sha256()
    try:
        size = file.stat().st_size
        if size != shard.bytes:
            raise InputError(
                f"{file} is truncated: it has {size} bytes, not {shard.bytes}; collect again"
            )
        with file.open("rb") as opened:
            while block := opened.read(BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {one_line(error)}") from error
    if digest.hexdigest() != shard.sha256:
        raise InputError(
            f"{file} is not what was written (sha256 differs): delete it and collect again"
        )


def _to_row(episode: EncodedEpisode) -> dict[str, Any]:
    """Return an episode as the values of `SCHEMA`."""
    return {
        **{name: getattr(episode, name) for name in SCHEMA.names if hasattr(episode, name)},
        "env": episode.game,
        "schema_version": SCHEMA_VERSION,
        "frames": list(episode.chunks),
        "buttons": list(episode.buttons),
        "info": json.dumps(episode.info, sort_keys=True),
    }


def _from_row(row: dict[str, Any]) -> EncodedEpisode:
    """Return the episode in the values of a row."""
    if (version := row.pop("schema_version")) != SCHEMA_VERSION:
        raise InputError(f"schema {version}, this version reads schema {SCHEMA_VERSION}")
    num_frames = row.pop("num_frames")
    row |= {
        "game": row.pop("env"),
        "chunks": tuple(row.pop("frames")),
        "buttons": tuple(row["buttons"]),
        "actions": np.array(row["actions"], np.uint8),
        "rewards": np.array(row["rewards"], np.float32),
        "info": json.loads(row["info"]),
    }
    episode = EncodedEpisode(**row)
    if num_frames != episode.num_frames:
        raise InputError(
            f"episode {episode.session_id}: {num_frames} frames, {len(episode.actions)} actions"
        )
    return episode

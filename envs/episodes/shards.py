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
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envs.episodes.episode import EncodedEpisode
from envs.utils.errors import InputError
from envs.utils.storage import RemotePath, StoragePath, replace_bytes

SCHEMA_VERSION = 1
TEXT = (
    "session_id",
    "env",
    "console",
    "rom_sha1",
    "retro_version",
    "policy_id",
    "init_state",
    "resize",
    "info",
)

SCHEMA = pa.schema(
    [
        pa.field("session_id", pa.string(), nullable=False),
        pa.field("env", pa.string(), nullable=False),
        pa.field("console", pa.string(), nullable=False),
        pa.field("rom_sha1", pa.string(), nullable=False),
        pa.field("retro_version", pa.string(), nullable=False),
        pa.field("schema_version", pa.int32(), nullable=False),
        pa.field("policy_id", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("init_state", pa.string(), nullable=False),
        pa.field("frame_skip", pa.int32(), nullable=False),
        pa.field("buttons", pa.list_(pa.uint16()), nullable=False),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("chunk", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("resize", pa.string(), nullable=False),
        pa.field("frames", pa.list_(pa.binary()), nullable=False),
        pa.field("actions", pa.list_(pa.uint8()), nullable=False),
        pa.field("rewards", pa.list_(pa.float32()), nullable=False),
        pa.field("info", pa.string(), nullable=False),
        pa.field("terminated", pa.bool_(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
    ]
)
FRAMES = "frames.list.element"


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


def shard_path(game: str, writer: str, number: int = 0) -> str:
    """Return the path of a writer's `number`-th shard. While collecting, each episode is a writer
    of one shard.
    """
    return f"env={game}/part-{writer}-{number}.parquet"


def write_shard(
    root: StoragePath, episodes: Sequence[EncodedEpisode], writer: str, number: int = 0
) -> Shard:
    """Write episodes of one game into one file, completely or not at all, and return its entry.

    The content depends on the episodes alone.

    Raises: InputError for episodes of several games, or if the file cannot be written.
    """
    games = {episode.game for episode in episodes}
    if len(games) != 1 or not re.fullmatch(r"[\w-]+", writer):
        raise InputError(
            f"a shard holds episodes of one game under a plain name, not of {sorted(games)} as "
            f"{writer!r}"
        )
    table = pa.Table.from_pylist([_row(episode) for episode in episodes], schema=SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        row_group_size=1,
        use_dictionary=list(TEXT),
        compression={_leaf(item): "NONE" if _leaf(item) == FRAMES else "ZSTD" for item in SCHEMA},
        write_page_checksum=True,
        write_statistics=False,
        store_schema=False,  # redundant with Parquet's types; halves the footer
    )
    data = buffer.getvalue()
    path = shard_path(games.pop(), writer, number)
    try:
        replace_bytes(root / path, data)
    except OSError as error:
        raise InputError(f"cannot write {root / path}: {error.strerror or error}") from error
    return Shard(
        path,
        len(data),
        hashlib.sha256(data).hexdigest(),
        tuple(session_record(e) for e in episodes),
    )


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
        source = path.open("rb") if isinstance(path, RemotePath) else path
        file = pq.ParquetFile(
            source, metadata=footer, memory_map=True, page_checksum_verification=True
        )
        if not file.schema_arrow.equals(SCHEMA):
            raise InputError(
                f"{path} has other columns than this version reads (schema {SCHEMA_VERSION})"
            )
        values = file.read_row_group(row).to_pylist()[0]
        return _episode(values)
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        raise InputError(
            f"{path} is damaged or missing: {_first_line(error)}: collect it again"
        ) from error


@lru_cache(maxsize=8)
def _footer(path: StoragePath, *state: int) -> pq.FileMetaData:
    """Return a file's cached footer: with a thousand rows it takes longer to parse than a row to
    read.
    """
    if isinstance(path, RemotePath):
        with path.open() as file:
            return pq.read_metadata(file)
    return pq.read_metadata(path, memory_map=True)


def inspect_shard(root: StoragePath, path: str) -> Shard:
    """Return the entry of a file that no manifest lists, after decoding all its frames.

    Raises: InputError if it is damaged.
    """
    file = root / path
    try:
        data = file.read_bytes()
        rows = pq.ParquetFile(io.BytesIO(data)).num_row_groups
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} is damaged: {_first_line(error)}") from error
    records = []
    for row in range(rows):
        episode = read_row(file, row)
        try:
            episode.decode()
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
        records.append(session_record(episode))
    return Shard(path, len(data), hashlib.sha256(data).hexdigest(), tuple(records))


def check_shard(root: StoragePath, shard: Shard) -> None:
    """Compare a file with its size and hash in the manifest. Raises: InputError naming the file."""
    file = root / shard.path
    try:
        size = file.stat().st_size
        if size != shard.bytes:
            raise InputError(
                f"{file} has {size} bytes, not {shard.bytes}: it is truncated: collect again"
            )
        with file.open("rb") as opened:
            digest = hashlib.sha256()
            while block := opened.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    if digest.hexdigest() != shard.sha256:
        raise InputError(
            f"{file} is not what was written (sha256 differs): delete it and collect again"
        )


def _row(episode: EncodedEpisode) -> dict[str, Any]:
    """Return an episode as the values of `SCHEMA`."""
    values = {name: getattr(episode, name) for name in SCHEMA.names if hasattr(episode, name)}
    return {
        **values,
        "env": episode.game,
        "schema_version": SCHEMA_VERSION,
        "frames": list(episode.chunks),
        "buttons": list(episode.buttons),
        "info": json.dumps(episode.info, sort_keys=True),
    }


def _episode(values: dict[str, Any]) -> EncodedEpisode:
    """Return the episode in the values of a row."""
    if values["schema_version"] != SCHEMA_VERSION:
        raise InputError(
            f"schema {values['schema_version']}, this version reads schema {SCHEMA_VERSION}"
        )
    episode = EncodedEpisode(
        **{name: values[name] for name in TEXT if name not in ("env", "info")},
        game=values["env"],
        info=json.loads(values["info"]),
        seed=values["seed"],
        frame_skip=values["frame_skip"],
        buttons=tuple(values["buttons"]),
        chunk=values["chunk"],
        height=values["height"],
        width=values["width"],
        chunks=tuple(values["frames"]),
        actions=np.array(values["actions"], np.uint8),
        rewards=np.array(values["rewards"], np.float32),
        terminated=values["terminated"],
        truncated=values["truncated"],
    )
    if values["num_frames"] != episode.num_frames:
        raise InputError(
            f"episode {episode.session_id}: {values['num_frames']} frames, "
            f"{len(episode.actions)} actions"
        )
    return episode


def _leaf(item: pa.Field) -> str:
    """Return Parquet's name for a column's values."""
    return f"{item.name}.list.element" if pa.types.is_list(item.type) else item.name


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

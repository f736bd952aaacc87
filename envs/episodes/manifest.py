"""`manifest.json`: the files of a data set and its validation split.

Readers trust only the manifest; a file that is not in it is not part of the data set. A single
process writes it, under a lock.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from envs.episodes.shards import SCHEMA_VERSION, SessionRecord, Shard
from envs.utils.errors import InputError, one_line
from envs.utils.storage import StoragePath, replace_bytes

NAME = "manifest.json"
VALIDATION_SHARE = 0.01


@dataclass
class Manifest:
    """The content of `manifest.json`."""

    shards: dict[str, Shard] = field(default_factory=dict)
    """Path -> shard."""
    validation: dict[str, dict[str, bool]] = field(default_factory=dict)
    """Game -> session id -> True if it is for validation; includes planned episodes."""
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Series -> settings it was played with; it cannot be continued with other settings."""

    def plan(self, sessions: Iterable[tuple[str, str]]) -> None:
        """Decide once and for all which of the (game, session id) pairs are for validation.

        Per game these are the lowest-hash 1 % of the episodes, and at least one if there are two.
        Earlier decisions stay; when a data set grows, the new episodes of lowest hash fill up the
        share.
        """
        new: dict[str, set[str]] = {}
        for game, session_id in sessions:
            if session_id not in self.validation.get(game, {}):
                new.setdefault(game, set()).add(session_id)
        for game, ids in new.items():
            split = self.validation.setdefault(game, {})
            total = len(split) + len(ids)
            wanted = max(round(VALIDATION_SHARE * total), 1) if total > 1 else 0
            missing = wanted - sum(split.values())
            for position, session_id in enumerate(sorted(ids, key=_rank)):
                split[session_id] = position < missing

    def is_validation(self, game: str, session_id: str) -> bool:
        """Return True if a planned episode is for validation."""
        return self.validation.get(game, {}).get(session_id, False)

    def sessions(self) -> dict[str, SessionRecord]:
        """Return session id -> record of all episodes on disk."""
        return {
            record.session_id: record for shard in self.shards.values() for record in shard.sessions
        }

    def hash(self) -> str:
        """Return a sha256 of files and split; equal hashes mean equal frames and actions."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return JSON values that do not depend on the order in which episodes were played."""
        return {
            "schema_version": SCHEMA_VERSION,
            "recipes": dict(sorted(self.recipes.items())),
            # `dataclasses.asdict` would copy deeply: half a second for ten thousand shards.
            "shards": [
                {**vars(shard), "sessions": [vars(record) for record in shard.sessions]}
                for _, shard in sorted(self.shards.items())
            ],
            "validation": {
                game: dict(sorted(split.items())) for game, split in sorted(self.validation.items())
            },
        }

    def save(self, root: StoragePath) -> None:
        """Replace the manifest of the folder. Raises: InputError if it cannot be written."""
        replace_bytes(root / NAME, (json.dumps(self.to_json(), indent=2) + "\n").encode())


def load_manifest(root: StoragePath) -> Manifest:
    """Return the manifest of a folder.

    Raises: InputError if it is missing, damaged or of another schema version.
    """
    path = root / NAME
    try:
        content = json.loads(path.read_bytes())
        version = content["schema_version"]
        if version != SCHEMA_VERSION:
            raise InputError(
                f"{path} has schema {version}, this version reads schema {SCHEMA_VERSION}"
            )
        shards = [_shard(entry, path) for entry in content["shards"]]
        validation = {game: dict(split) for game, split in content["validation"].items()}
        return Manifest(
            {shard.path: shard for shard in shards}, validation, dict(content["recipes"])
        )
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(
            f"{root} holds no episodes ({NAME} is missing): record some with "
            f"`autoexplore collect --out {root}`"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged: delete it; the next collect rebuilds it from the shards"
        ) from error


def _shard(entry: dict[str, Any], path: StoragePath) -> Shard:
    """Return the shard of an entry in the manifest's list of files."""
    name = PurePosixPath(entry["path"])
    if name.is_absolute() or ".." in name.parts:
        raise InputError(f"{path} names a file outside its folder: {entry['path']}")
    sessions = tuple(SessionRecord(**record) for record in entry["sessions"])
    return Shard(**{**entry, "sessions": sessions})


def _rank(session_id: str) -> str:
    """Return a sort key that is independent of how the episode was recorded."""
    return hashlib.sha256(session_id.encode()).hexdigest()

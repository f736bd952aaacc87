"""`manifest.json`: the list of what belongs to a data set, and which sessions are for validation.

Readers trust only the manifest; a file that it does not name is not part of the data. One process writes it, under a
lock.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from envs.episodes.shards import SCHEMA_VERSION, SessionRecord, Shard
from envs.utils.errors import InputError
from envs.utils.storage import StoragePath, replace_bytes

NAME = "manifest.json"
VALIDATION_SHARE = 0.01


@dataclass
class Manifest:
    """The contents of `manifest.json`."""

    shards: dict[str, Shard] = field(default_factory=dict)
    """By path."""
    validation: dict[str, dict[str, bool]] = field(default_factory=dict)
    """Game -> session id -> is it for validation. Also knows sessions that are planned but not yet played."""
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each series of sessions was played with, so that nobody continues it with other settings."""

    def plan(self, sessions: Iterable[tuple[str, str]]) -> None:
        """Decide, once and for all, which of the (game, session id) pairs are for validation.

        Per game the lowest-hash 1 % of the sessions, and at least one where there are two. A session that was decided
        before stays what it is; when a set grows, the new sessions of lowest hash fill the share up.
        """
        new: dict[str, set[str]] = {}
        for game, session_id in sessions:
            if session_id not in self.validation.get(game, {}):
                new.setdefault(game, set()).add(session_id)
        for game, ids in new.items():
            split = self.validation.setdefault(game, {})
            total = len(split) + len(ids)
            wanted = max(round(VALIDATION_SHARE * total), 1) if total > 1 else 0
            missing = max(0, wanted - sum(split.values()))
            ranked = sorted(ids, key=_rank)
            split.update(
                {session_id: position < missing for position, session_id in enumerate(ranked)}
            )

    def sessions(self) -> dict[str, SessionRecord]:
        """Session id -> record of all sessions on disk."""
        return {
            record.session_id: record for shard in self.shards.values() for record in shard.sessions
        }

    def hash(self) -> str:
        """sha256 over sessions, files and split: two data sets with the same hash hold the same frames and actions."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """In sorted order, so that the same sessions give the same bytes however they were played."""
        return {
            "schema_version": SCHEMA_VERSION,
            "recipes": {key: self.recipes[key] for key in sorted(self.recipes)},
            "shards": [dataclasses.asdict(self.shards[path]) for path in sorted(self.shards)],
            "validation": {
                game: {
                    session_id: self.validation[game][session_id]
                    for session_id in sorted(self.validation[game])
                }
                for game in sorted(self.validation)
            },
        }

    def save(self, root: StoragePath) -> None:
        """Replace the folder's manifest. Raises InputError where nothing can be written."""
        try:
            replace_bytes(root / NAME, (json.dumps(self.to_json(), indent=2) + "\n").encode())
        except OSError as error:
            raise InputError(f"cannot write {root / NAME}: {error.strerror or error}") from error


def load(root: StoragePath) -> Manifest:
    """A folder's manifest. Raises InputError where there is none, or one that is damaged or of another schema."""
    path = root / NAME
    try:
        content = json.loads(path.read_text())
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
    except FileNotFoundError as error:
        raise InputError(
            f"{root} holds no episodes ({NAME} is missing): `autoexplore collect --out {root}` makes them"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged: delete it, and the next collect rebuilds it from the shards"
        ) from error


def _shard(entry: dict[str, Any], path: StoragePath) -> Shard:
    """One entry of the manifest's list of files."""
    name = PurePosixPath(entry["path"])
    if name.is_absolute() or ".." in name.parts:
        raise InputError(f"{path} names a file outside its folder: {entry['path']}")
    return Shard(
        **{**entry, "sessions": tuple(SessionRecord(**record) for record in entry["sessions"])}
    )


def _rank(session_id: str) -> str:
    """Sorts sessions in an order that has nothing to do with how they were made."""
    return hashlib.sha256(session_id.encode()).hexdigest()

"""The writer that creates a data set of episodes and the reader that serves it.

    <folder>/manifest.json                       the manifest (`envs.episodes.manifest`)
    <folder>/env=<game>/part-<writer>-0.parquet  the episodes (`envs.episodes.shards`)

A shard appears completely or not at all. If a killed writer left one that is not in the manifest,
the next writer adopts it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from envs import action_names
from envs.episodes.episode import EncodedEpisode, Episode
from envs.episodes.manifest import NAME, Manifest, load_manifest
from envs.episodes.shards import (
    SessionRecord,
    Shard,
    check_shard,
    inspect_shard,
    read_row,
    write_shard,
)
from envs.utils.errors import InputError
from envs.utils.storage import StoragePath, lock, parse_uri


class EpisodeWriter:
    """The only writer of a folder; it adopts the complete shards of an earlier writer.

    Each added episode is durable at once; `commit` makes the added ones part of the data set. Use
    it in a `with` block, which commits and releases the folder at its end.

    Raises: InputError if another writer has the folder or it cannot be written.
    """

    def __init__(self, uri: str | StoragePath) -> None:
        self.root = parse_uri(uri)
        self.damaged: list[str] = []
        """Damaged or missing files, which are no longer part of the data set."""
        self._lock = lock(self.root)
        try:
            exists = (self.root / NAME).exists()
            self.manifest = load_manifest(self.root) if exists else Manifest()
            self._drop_lost()
            self._adopt()
            self._ids = set(self.manifest.sessions())
        except BaseException:
            self._lock.close()
            raise

    def __contains__(self, session_id: str) -> bool:
        """Return True if the folder holds an episode."""
        return session_id in self._ids

    @property
    def sessions(self) -> dict[str, SessionRecord]:
        """Session id -> record of all episodes in the folder, including uncommitted ones."""
        return self.manifest.sessions()

    def plan(
        self,
        sessions: Iterable[tuple[str, str]],
        series: str = "",
        recipe: dict[str, Any] | None = None,
    ) -> None:
        """Decide which of the (game, session id) pairs are for validation, before they are played.

        `recipe` holds the settings of a `series` of episodes.

        Raises: InputError if the folder holds the series with other settings.
        """
        if recipe is not None:
            self._check_recipe(series, recipe)
        self.manifest.plan(sessions)
        self.manifest.save(self.root)

    def check_actions(self, games: Sequence[str], chosen: Sequence[str]) -> None:
        """Raise InputError if the folder holds episodes of the games with other actions.

        Those of the first episode of each game count.
        """
        paths = {
            shard.sessions[0].game: path for path, shard in reversed(self.manifest.shards.items())
        }
        for game in paths.keys() & {*games}:
            held = read_row(self.root / paths[game], 0).action_names
            if held != (names := action_names([game], chosen)):
                raise InputError(
                    f"{self.root} holds episodes of {game} with the actions {', '.join(held)}, "
                    f"not {', '.join(names)}: give another folder"
                )

    def copy_plan(self, source: "EpisodeReader", recipe: dict[str, Any]) -> None:
        """Copy the validation split of the data set from which `recipe` derives this one.

        Raises: InputError if the folder was derived differently.
        """
        self._check_recipe("copy", recipe)
        self.manifest.validation = source.validation
        self.manifest.save(self.root)

    def _check_recipe(self, series: str, recipe: dict[str, Any]) -> None:
        held = self.manifest.recipes.setdefault(series, recipe)
        if held != recipe:
            raise InputError(
                f"{self.root} holds {series!r} made with {held}, not {recipe}: give another folder"
            )

    def add(self, episode: Episode | EncodedEpisode) -> Shard:
        """Write one episode as a separate shard.

        Raises: InputError for an episode that the folder already holds.
        """
        self._check_new(episode.session_id)
        encoded = episode.encode() if isinstance(episode, Episode) else episode
        shard = write_shard(self.root, [encoded], encoded.session_id)
        self.record(shard)
        return shard

    def record(self, shard: Shard) -> None:
        """Register a shard that another process wrote into the folder."""
        for session in shard.sessions:
            self._check_new(session.session_id)
        self._ids.update(session.session_id for session in shard.sessions)
        self.manifest.shards[shard.path] = shard

    def _check_new(self, session_id: str) -> None:
        if session_id in self._ids:
            raise InputError(f"{self.root} already holds episode {session_id}")

    def commit(self) -> str:
        """Make everything added part of the data set and return the manifest's hash."""
        self._lock.check()
        self.manifest.plan((record.game, record.session_id) for record in self.sessions.values())
        self.manifest.save(self.root)
        return self.manifest.hash()

    def close(self) -> None:
        """Release the folder. The next writer adopts the shards added since the last commit."""
        self._lock.close()

    def __enter__(self) -> "EpisodeWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None:
            self.commit()
        self.close()

    def _drop_lost(self) -> None:
        """Remove missing and truncated shards, so that their episodes are played again."""
        for path, shard in list(self.manifest.shards.items()):
            file = self.root / path
            if not file.exists() or file.stat().st_size != shard.bytes:
                del self.manifest.shards[path]
                self.damaged.append(path)

    def _adopt(self) -> None:
        """Adopt complete shards without an entry and delete temporary files of a killed writer."""
        for pattern in ("env=*/.part-*.tmp", f".{NAME}.*.tmp"):
            for leftover in self.root.glob(pattern):
                leftover.unlink(missing_ok=True)
        known = self.manifest.sessions()
        files = self.root.glob("env=*/part-*.parquet")
        for path in sorted(file.relative_to(self.root).as_posix() for file in files):  # type: ignore[arg-type]
            if path in self.manifest.shards or path in self.damaged:
                continue
            try:
                shard = inspect_shard(self.root, path)
            except InputError:
                self.damaged.append(path)
                continue
            if not any(session.session_id in known for session in shard.sessions):
                self.manifest.shards[path] = shard
                known.update({session.session_id: session for session in shard.sessions})


class EpisodeReader:
    """A read-only view of a data set, or of its train or val split, ordered by game and session id.

    A shard is compared with the manifest's sha256 when it is first read.

    Raises: InputError for a folder without episodes, and naming the file if one is missing,
    truncated or changed by a single bit.
    """

    def __init__(self, uri: str | StoragePath, split: str | None = None) -> None:
        if split not in (None, "train", "val"):
            raise InputError(f"split is 'train', 'val' or None for all, not {split!r}")
        self.root = parse_uri(uri)
        self.split = split
        self._manifest = load_manifest(self.root)
        self.manifest_hash = self._manifest.hash()
        is_validation = self._manifest.is_validation
        self._rows = [
            (record, shard, row)
            for _, shard in sorted(self._manifest.shards.items())
            for row, record in enumerate(shard.sessions)
            if split is None or is_validation(record.game, record.session_id) == (split == "val")
        ]
        self._rows.sort(key=lambda item: (item[0].game, item[0].session_id))
        self._checked: set[str] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Episode:
        """Return episode `index` with decoded frames."""
        encoded = self.encoded(index)
        try:
            return encoded.decode()
        except InputError as error:
            raise InputError(f"{self.root / self._rows[index][1].path}: {error}") from error

    def encoded(self, index: int) -> EncodedEpisode:
        """Return episode `index` with compressed frames, for `decode_frames` of a few of them."""
        record, shard, row = self._rows[index]
        if shard.path not in self._checked:
            check_shard(self.root, shard)
            self._checked.add(shard.path)
        episode = read_row(self.root / shard.path, row)
        if (episode.session_id, episode.game) != (record.session_id, record.game):
            raise InputError(
                f"{self.root / shard.path} holds episode {episode.session_id}, not "
                f"{record.session_id}: collect it again"
            )
        return episode

    def action_names(self) -> dict[str, tuple[str, ...]]:
        """Return game -> names of the actions, those of its first episode."""
        names: dict[str, tuple[str, ...]] = {}
        for record, shard, row in self._rows:
            if record.game not in names:
                names[record.game] = read_row(self.root / shard.path, row).action_names
        return names

    @property
    def validation(self) -> dict[str, dict[str, bool]]:
        """Game -> session id -> True if it is for validation."""
        return {game: dict(split) for game, split in self._manifest.validation.items()}

    def num_frames(self, index: int) -> int:
        """Return the number of frames of episode `index`, from the manifest alone."""
        return self._rows[index][0].num_frames

    @property
    def records(self) -> list[SessionRecord]:
        """Manifest entry of each episode, in order."""
        return [record for record, _, _ in self._rows]

    @property
    def session_ids(self) -> list[str]:
        """Session id of each episode, in order."""
        return [record.session_id for record, _, _ in self._rows]

    @property
    def games(self) -> list[str]:
        """Game of each episode, in order."""
        return [record.game for record, _, _ in self._rows]

    @property
    def shards(self) -> list[Shard]:
        """Shard of each episode, in order."""
        return [shard for _, shard, _ in self._rows]


def recorded_actions(uris: Sequence[str | Path]) -> tuple[str, ...]:
    """Return the names of the actions of data sets, by the first episode of each game.

    Raises: InputError for games or data sets with different actions.
    """
    found: dict[tuple[str, ...], str] = {}
    for uri in uris:
        for game, names in EpisodeReader(str(uri)).action_names().items():
            found.setdefault(names, f"{game} in {uri}")
    if len(found) > 1:
        (one, first), (other, second), *_ = found.items()
        raise InputError(
            f"{first} has the actions {', '.join(one)}, {second} {', '.join(other)}: a model has "
            "the same actions in all its data"
        )
    return next(iter(found))

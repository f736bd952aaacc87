"""Export of a data set to another format, and import from one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from envs.episodes.dataset import EpisodeReader, EpisodeWriter
from envs.episodes.episode import Episode
from envs.episodes.formats import genieredux, lerobot, minari
from envs.utils.atomic_io import new_folder
from envs.utils.errors import InputError
from envs.utils.progress import Bar, progress

EXPORTS = ("genieredux", "minari", "lerobot")
IMPORTS = ("genieredux", "minari")


class Source(Protocol):
    """A data set in another format; episodes are read on demand."""

    sessions: list[tuple[str, str]]
    """(game, session id) of each episode."""

    def episode(self, index: int) -> Episode:
        """Return episode `index`. Raises: InputError naming the file if it cannot be read."""


def export_episodes(uri: str, to: Path, format: str) -> int:
    """Write all episodes of a data set as `format` into the new folder `to` and return their
    number.

    Raises: InputError for an unknown format, an existing target, or episodes that the format cannot
    hold.
    """
    if format not in EXPORTS:
        raise InputError(f"format {format!r} cannot be written: known are {', '.join(EXPORTS)}")
    if to.exists():
        raise InputError(f"{to} exists: give a new folder to export to")
    readers = [EpisodeReader(uri, "train"), EpisodeReader(uri, "val")]
    total = sum(len(reader) for reader in readers)
    if total == 0:
        raise InputError(f"{uri} holds no episodes to export")
    try:
        with progress(f"export {format}", total) as bar, new_folder(to) as folder:
            if format == "lerobot":
                lerobot.write(folder, _read_all(readers, bar), validation_from=len(readers[0]))
            elif format == "minari":
                minari.write(folder, _read_all([EpisodeReader(uri)], bar))
            else:
                genieredux.write(folder, _read_all([EpisodeReader(uri)], bar))
    except OSError as error:
        raise InputError(f"cannot write {to}: {error.strerror or error}") from error
    return total


def import_episodes(source: Path, out: str, format: str | None = None) -> tuple[int, int]:
    """Add the episodes of other software in the folder `source` to the data set `out`.

    `format` None detects it. Returns the number of added episodes and of those that the data set
    already held.

    Raises: InputError naming the file for content that is not of the format.
    """
    kind = format or detect(source)
    if kind not in IMPORTS:
        raise InputError(f"format {kind!r} cannot be read: known are {', '.join(IMPORTS)}")
    opened = _open(source, kind)
    with EpisodeWriter(out) as writer:
        writer.plan(opened.sessions)
        held = writer.sessions
        missing = [
            index for index, (_, session_id) in enumerate(opened.sessions) if session_id not in held
        ]
        with progress(
            f"import {kind}", len(opened.sessions), len(opened.sessions) - len(missing)
        ) as bar:
            for index in missing:
                writer.add(opened.episode(index))
                bar.advance(1, opened.sessions[index][0])
    return len(missing), len(opened.sessions) - len(missing)


def detect(source: Path) -> str:
    """Return the format of the files in `source`. Raises: InputError if it is none that can be
    read.
    """
    if not source.is_dir():
        raise InputError(
            f"{source} is not a folder: give the folder of a published or a Minari data set"
        )
    if genieredux.action_files(source):
        return "genieredux"
    if minari.homes(source):
        return "minari"
    raise InputError(
        f"{source} holds neither actions.json (genieredux) nor data/metadata.json (minari): give "
        "--format"
    )


def _open(source: Path, kind: str) -> Source:
    if kind == "minari":
        return minari.Source(source)
    return genieredux.Source(source)


def _read_all(readers: list[EpisodeReader], bar: Bar) -> Iterator[Episode]:
    """Yield all episodes and advance the progress bar."""
    for reader in readers:
        for index in range(len(reader)):
            episode = reader[index]
            yield episode
            bar.advance(1, episode.game)

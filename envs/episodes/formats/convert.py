"""Export of a data set to another format, and import from one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from envs.episodes.dataset import EpisodeReader, EpisodeWriter
from envs.episodes.episode import Episode
from envs.episodes.formats.genieredux import GenieReduxSource, action_files, write_genieredux
from envs.episodes.formats.lerobot import write_lerobot
from envs.episodes.formats.minari import MinariSource, dataset_folders, write_minari
from envs.utils.atomic_io import new_folder
from envs.utils.errors import InputError, one_line
from envs.utils.progress import progress


class ImportSource(Protocol):
    """A data set in another format; episodes are read on demand."""

    sessions: list[tuple[str, str]]
    """(game, session id) of each episode."""

    def __init__(self, folder: Path) -> None: ...

    def episode(self, index: int) -> Episode:
        """Return episode `index`. Raises: InputError naming the file if it cannot be read."""


EXPORTS: dict[str, Callable[[Path, Any], None]] = {
    "genieredux": write_genieredux,
    "minari": write_minari,
    "lerobot": write_lerobot,
}
"""Functions of the new folder and of a function that yields the episodes of a split."""
IMPORTS: dict[str, type[ImportSource]] = {"genieredux": GenieReduxSource, "minari": MinariSource}


def export_episodes(uri: str, to: Path, format: str) -> int:
    """Write a data set as `format` into the new folder `to` and return the number of episodes.

    Raises: InputError for an unknown format, an existing target, or episodes that the format cannot
    hold.
    """
    if format not in EXPORTS:
        raise InputError(f"format {format!r} cannot be written: known are {', '.join(EXPORTS)}")
    if to.exists():
        raise InputError(f"{to} exists: give a new folder to export to")
    total = len(EpisodeReader(uri))
    if total == 0:
        raise InputError(f"{uri} holds no episodes to export")
    try:
        with progress(f"export {format}", total) as bar, new_folder(to) as folder:

            def episodes(split: str | None = None) -> Iterator[Episode]:
                for episode in EpisodeReader(uri, split):  # type: ignore[attr-defined]
                    yield episode
                    bar.advance(1, episode.game)

            EXPORTS[format](folder, episodes)
    except OSError as error:
        raise InputError(f"cannot write {to}: {one_line(error)}") from error
    return total


def import_episodes(source: Path, out: str, format: str | None = None) -> tuple[int, int]:
    """Add the episodes of other software in the folder `source` to the data set `out`.

    `format` None detects it. Returns the number of added episodes and of those that the data set
    already held.

    Raises: InputError naming the file for content that is not of the format.
    """
    format = format or detect(source)
    if format not in IMPORTS:
        raise InputError(f"format {format!r} cannot be read: known are {', '.join(IMPORTS)}")
    opened = IMPORTS[format](source)
    total = len(opened.sessions)
    with EpisodeWriter(out) as writer:
        writer.plan(opened.sessions)
        held = writer.sessions
        missing = [i for i, (_, session_id) in enumerate(opened.sessions) if session_id not in held]
        with progress(f"import {format}", total, total - len(missing)) as bar:
            for index in missing:
                writer.add(opened.episode(index))
                bar.advance(1, opened.sessions[index][0])
    return len(missing), total - len(missing)


def detect(source: Path) -> str:
    """Return the format of the files in `source`.

    Raises: InputError if it is none that can be read.
    """
    if not source.is_dir():
        raise InputError(
            f"{source} is not a folder: give the folder of a published or a Minari data set"
        )
    if action_files(source):
        return "genieredux"
    if dataset_folders(source):
        return "minari"
    raise InputError(
        f"{source} holds neither actions.json (genieredux) nor data/metadata.json (minari): give "
        "--format"
    )

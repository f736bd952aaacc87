"""An episode's metadata as JSON, stored next to another format's own fields."""

import dataclasses
from pathlib import Path
from typing import Any

from envs.episodes.episode import EpisodeMetadata
from envs.utils.errors import InputError

KEY = "autoexplore"
"""Key of the metadata in other formats' JSON."""
_FIELDS = tuple(
    item.name
    for item in dataclasses.fields(EpisodeMetadata)
    if item.name not in ("actions", "rewards")
)


def episode_metadata(episode: EpisodeMetadata) -> dict[str, Any]:
    """Return an episode's fields without its arrays as JSON values."""
    return {name: getattr(episode, name) for name in _FIELDS} | {"buttons": list(episode.buttons)}


def metadata_fields(values: Any, where: Path) -> dict[str, Any]:
    """Return the fields of an EpisodeMetadata from the result of `episode_metadata`.

    Raises: InputError naming `where` for missing fields and wrong types.
    """
    if not isinstance(values, dict) or not set(_FIELDS) <= set(values):
        raise InputError(
            f"{where} does not describe its episodes: export it again, or delete its {KEY!r} "
            "entries"
        )
    numbers = ("seed", "frame_skip")
    texts = [
        name
        for name in _FIELDS
        if name not in (*numbers, "terminated", "truncated", "buttons", "info")
    ]
    fits = (
        all(isinstance(values[name], str) for name in texts)
        and all(isinstance(values[name], int) for name in numbers)
        and isinstance(values["info"], dict)
        and isinstance(values["buttons"], list)
    )
    if not fits:
        raise InputError(f"{where} has values of the wrong type for an episode: export it again")
    return {name: values[name] for name in _FIELDS} | {"buttons": tuple(values["buttons"])}

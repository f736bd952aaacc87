"""What is known of an episode beside its frames, actions and rewards, as JSON beside another format's own fields."""

import dataclasses
from pathlib import Path
from typing import Any

from envs.episodes.episode import EpisodeMetadata
from envs.utils.errors import InputError

KEY = "autoexplore"
"""Under which other formats' JSON holds the facts."""
_FIELDS = tuple(
    item.name
    for item in dataclasses.fields(EpisodeMetadata)
    if item.name not in ("actions", "rewards")
)


def episode_metadata(episode: EpisodeMetadata) -> dict[str, Any]:
    """JSON values of an episode's fields, less its arrays."""
    return {name: getattr(episode, name) for name in _FIELDS} | {"buttons": list(episode.buttons)}


def recording_fields(values: Any, where: Path) -> dict[str, Any]:
    """The fields of a Recording from what `episode_metadata` gave. Raises InputError that names `where` if some are missing."""
    if not isinstance(values, dict) or not set(_FIELDS) <= set(values):
        raise InputError(
            f"{where} does not describe its episodes: export it again, or delete its {KEY!r} entries"
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
        raise InputError(
            f"{where} describes an episode in values of the wrong type: export it again"
        )
    return {name: values[name] for name in _FIELDS} | {"buttons": tuple(values["buttons"])}

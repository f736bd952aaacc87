"""The parts that all formats share: an episode's metadata as JSON, and names of games."""

import dataclasses
from pathlib import Path
from typing import Any

from envs import COUNTING
from envs.episodes.episode import EpisodeMetadata
from envs.utils.errors import InputError

KEY = "autoexplore"
"""Key of the metadata in other formats' JSON."""
_NOT_TEXT: dict[str, type] = {
    "seed": int,
    "frame_skip": int,
    "terminated": bool,
    "truncated": bool,
    "buttons": list,
    "info": dict,
}
_TYPES = {
    field.name: _NOT_TEXT.get(field.name, str)
    for field in dataclasses.fields(EpisodeMetadata)
    if field.name not in ("actions", "rewards")
}
"""JSON type of each field but the arrays."""


def episode_metadata(episode: EpisodeMetadata) -> dict[str, Any]:
    """Return an episode's fields without its arrays as JSON values."""
    return {name: getattr(episode, name) for name in _TYPES} | {"buttons": list(episode.buttons)}


def metadata_fields(values: Any, where: Path) -> dict[str, Any]:
    """Return the fields of an EpisodeMetadata from the result of `episode_metadata`.

    Raises: InputError naming `where` for missing fields and wrong types.
    """
    if not isinstance(values, dict) or not set(_TYPES) <= set(values):
        raise InputError(
            f"{where} does not describe its episodes: export it again, or delete its {KEY!r} "
            "entries"
        )
    if not all(isinstance(values[name], kind) for name, kind in _TYPES.items()):
        raise InputError(f"{where} has values of the wrong type for an episode: export it again")
    return {name: values[name] for name in _TYPES} | {"buttons": tuple(values["buttons"])}


def known_game(name: str) -> str | None:
    """Return the catalogue's spelling of a game, whatever the case; None if it is not known."""
    from envs import catalog  # stable-retro is loaded only for data of others

    games = {game.casefold(): game for game in (COUNTING, *catalog.integrations())}
    return games.get(name.removesuffix("-v0").casefold())

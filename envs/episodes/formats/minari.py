r"""Minari 0.5 data sets (Farama Foundation), one per game: `autoexplore/<game>-v0`, lossless.

The folder is Minari's datasets path:

    MINARI_DATASETS_PATH=<folder> python -c \
        "import minari; minari.load_dataset('autoexplore/Kangaroo-Atari2600-v0')"

An episode has T + 1 observations. Fields that Minari lacks (savestate, buttons, ROM, ...) are
stored in each episode's metadata, so that an import returns the same episodes. Data sets of other
authors can be read if observations are RGB images and actions are discrete with the meaning of
ours.
"""

import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from envs import COUNTING
from envs.controls import ACTIONS
from envs.episodes.episode import Episode
from envs.episodes.formats.metadata import KEY, episode_metadata, metadata_fields
from envs.utils.errors import InputError

NAMESPACE = "autoexplore"


def write(folder: Path, episodes: Iterable[Episode]) -> None:
    """Write episodes, grouped by game, as data sets under `folder`.

    Raises: InputError if Minari is not installed or a game's frames have several sizes.
    """
    minari = _minari()
    with _datasets_path(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a missing link to the code
        for game, group in groupby(episodes, key=lambda episode: episode.game):
            stored: list[dict[str, str]] = []
            of_game = iter(group)
            first = next(of_game)
            dataset = minari.create_dataset_from_buffers(
                dataset_id=f"{NAMESPACE}/{game}-v0",
                buffer=_buffers(minari, chain([first], of_game), stored),
                observation_space=gymnasium.spaces.Box(
                    0, 255, first.frames_THWC.shape[1:], np.uint8
                ),
                action_space=gymnasium.spaces.Discrete(len(first.buttons) or len(ACTIONS)),
                algorithm_name=first.policy_id,
                author="AutoExplore",
                description=(
                    f"{game}, {60 / first.frame_skip:g} steps a second. "
                    f"Actions: {', '.join(ACTIONS)}."
                ),
                data_format="parquet",  # the default, HDF5, needs another package
                jpeg_encoding=False,  # the default is lossy
            )
            dataset.storage.update_episode_metadata(stored)


def _buffers(
    minari: Any, episodes: Iterable[Episode], stored: list[dict[str, str]]
) -> Iterator[Any]:
    """Yield episodes as Minari takes them and append their metadata to `stored`.

    Raises: InputError for frames of another size than the first one's.
    """
    shape: tuple[int, ...] = ()
    for episode in episodes:
        shape = shape or episode.frames_THWC.shape[1:]
        if episode.frames_THWC.shape[1:] != shape:
            raise InputError(
                f"{episode.game} has frames of {shape} and {episode.frames_THWC.shape[1:]}: "
                "a Minari data set has one size, so export them from separate data sets"
            )
        stored.append({KEY: json.dumps(episode_metadata(episode))})
        yield _buffer(minari, episode)


def _buffer(minari: Any, episode: Episode) -> Any:
    """Return an episode as Minari's buffer."""
    last = len(episode.actions) - 1
    return minari.data_collector.EpisodeBuffer(
        seed=episode.seed,
        observations=episode.frames_THWC,
        actions=episode.actions.astype(np.int64),
        rewards=episode.rewards,
        terminations=[episode.terminated and step == last for step in range(last + 1)],
        truncations=[episode.truncated and step == last for step in range(last + 1)],
    )


def homes(folder: Path) -> list[Path]:
    """Return the folders of the data sets: `folder` itself, folders below it, or its parent if it
    is a "data" folder.
    """
    if folder.name == "data" and (folder / "metadata.json").exists():
        return [folder.parent]
    return sorted(
        file.parents[1]
        for depth in range(5)
        for file in folder.glob("*/" * depth + "data/metadata.json")
    )


class Source:
    """Minari data sets: a datasets path, or the folder of one data set.

    Raises: InputError naming the folder for data that cannot be read as episodes of games.
    """

    def __init__(self, folder: Path) -> None:
        self._minari = _minari()
        folders = homes(folder)
        if not folders:
            raise InputError(f"{folder} holds no Minari data set (<name>/data/metadata.json)")
        self._found = [
            (home, number) for home in folders for number in range(self._open(home).total_episodes)
        ]
        self._metadata = [
            _stored_metadata(home, self._open(home), number) for home, number in self._found
        ]
        self.sessions = [(known["game"], known["session_id"]) for known in self._metadata]

    def _open(self, home: Path) -> Any:
        """Return one data set; the newest stays open."""
        if getattr(self, "_opened", (None,))[0] != home:
            try:
                dataset = self._minari.MinariDataset(home / "data")
            except Exception as error:  # Minari raises assertions and errors of its dependencies
                raise InputError(
                    f"{home} is not a readable Minari data set ({_line(error)})"
                ) from error
            self._opened = (home, dataset)
        return self._opened[1]

    def episode(self, index: int) -> Episode:
        """Return episode `index`."""
        home, number = self._found[index]
        dataset = self._open(home)
        try:
            read = next(iter(dataset.iterate_episodes([number])))
        except Exception as error:
            raise InputError(
                f"{home}: episode {number} is damaged or missing ({_line(error)})"
            ) from error
        frames, actions = np.asarray(read.observations), np.asarray(read.actions)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise InputError(
                f"{home}: observations are {frames.dtype} {frames.shape}, not RGB images uint8 "
                "(H, W, 3)"
            )
        if (
            actions.ndim != 1
            or not np.issubdtype(actions.dtype, np.integer)
            or actions.min(initial=0) < 0
        ):
            raise InputError(
                f"{home}: actions are {actions.dtype} {actions.shape}, not integers from 0"
            )
        if actions.max(initial=0) > 255:
            raise InputError(
                f"{home}: action {actions.max()} does not exist, actions are at most 255"
            )
        known = self._metadata[index]
        fields = known if "policy_id" in known else _foreign(known, dataset, read)
        try:
            return Episode(
                **fields,
                frames_THWC=frames,
                actions=actions.astype(np.uint8),
                rewards=np.asarray(read.rewards, np.float32),
            )
        except InputError as error:
            raise InputError(f"{home}: {error}") from error


def _stored_metadata(home: Path, dataset: Any, number: int) -> dict[str, Any]:
    """Return the metadata stored by our export; for other data sets only game and session id."""
    file = home / "data" / str(number) / "metadata.json"
    try:
        values = next(iter(dataset.storage.get_episode_metadata([number])))
        stored = json.loads(values[KEY]) if KEY in values else None
    except Exception as error:
        raise InputError(f"{file} is damaged or missing ({_line(error)})") from error
    if stored is not None:
        return metadata_fields(stored, file)
    return {
        "game": _game(home, dataset.id),
        "session_id": re.sub(r"[^\w-]", "-", f"{dataset.id}-{number}"),
    }


def _foreign(known: dict[str, Any], dataset: Any, read: Any) -> dict[str, Any]:
    """Return the fields of an episode from another author's data set."""
    return {
        **known,
        "policy_id": str(dataset.storage.metadata.get("algorithm_name") or "unknown"),
        "seed": 0,
        "terminated": bool(np.any(read.terminations)),
        "truncated": bool(np.any(read.truncations)),
        "console": known["game"].rsplit("-", 1)[-1],
        "resize": "jpeg" if dataset.storage.jpeg_encoding else "",
        "info": {
            "imported": {
                "format": "minari",
                "lossy": bool(dataset.storage.jpeg_encoding),
                "dataset": dataset.id,
            }
        },
    }


def _game(home: Path, dataset_id: str) -> str:
    """Return the catalogue's game in a data set's name."""
    from envs import catalog

    games = {game.casefold(): game for game in (COUNTING, *catalog.integrations())}
    for part in reversed(str(dataset_id).split("/")):
        name = re.sub(r"-v\d+$", "", part).casefold()
        if name in games:
            return games[name]
    raise InputError(
        f"{home}: the name {dataset_id} contains no known game: rename the data set after its game"
    )


def _minari() -> Any:
    """Import Minari, which only this format needs."""
    try:
        import minari
        import minari.data_collector
    except ImportError as error:
        raise InputError("Minari is not installed: run pip install 'minari>=0.5.4'") from error
    return minari


@contextmanager
def _datasets_path(folder: Path) -> Iterator[None]:
    """Let Minari write below `folder`; it reads the path from the environment."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    # Absolute: Minari would prepend the folder twice to a relative path.
    os.environ["MINARI_DATASETS_PATH"] = str(folder.absolute())
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

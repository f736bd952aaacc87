"""Minari 0.5 data sets (Farama Foundation), one a game: `autoexplore/<game>-v0`, T + 1 observations, lossless.

The folder is what Minari calls its datasets path:

    MINARI_DATASETS_PATH=<folder> python -c "import minari; minari.load_dataset('autoexplore/Kangaroo-Atari2600-v0')"

What Minari has no field for (savestate, buttons, ROM, ...) stands in each episode's metadata, so that an import gives
back the same episodes. Data sets that others made are read too, where observations are RGB images and actions are
discrete with the meaning of ours.
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
from envs.episodes.formats.metadata import KEY, episode_metadata, recording_fields
from envs.utils.errors import InputError

NAMESPACE = "autoexplore"


def write(folder: Path, episodes: Iterable[Episode]) -> None:
    """Write episodes, those of a game one after the other, as data sets under `folder`.

    Raises InputError where Minari is not installed or a game's frames have several sizes.
    """
    minari = _minari()
    with _datasets_path(folder), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # it misses an author and a link to the code that made the data
        for game, group in groupby(episodes, key=lambda episode: episode.game):
            told: list[dict[str, str]] = []
            of_game = iter(group)
            first = next(of_game)
            dataset = minari.create_dataset_from_buffers(
                dataset_id=f"{NAMESPACE}/{game}-v0",
                buffer=_buffers(minari, chain([first], of_game), told),
                observation_space=gymnasium.spaces.Box(
                    0, 255, first.frames_THWC.shape[1:], np.uint8
                ),
                action_space=gymnasium.spaces.Discrete(len(first.buttons) or len(ACTIONS)),
                algorithm_name=first.policy_id,
                author="AutoExplore",
                description=f"{game}, {60 / first.frame_skip:g} steps a second. Actions: {', '.join(ACTIONS)}.",
                data_format="parquet",  # the default, HDF5, needs one package more
                jpeg_encoding=False,  # the default is lossy
            )
            dataset.storage.update_episode_metadata(told)


def _buffers(minari: Any, episodes: Iterable[Episode], told: list[dict[str, str]]) -> Iterator[Any]:
    """Episodes as Minari takes them, one at a time; `told` is filled with what goes into their metadata.

    Raises InputError for frames of another size than the first one's.
    """
    shape: tuple[int, ...] = ()
    for episode in episodes:
        shape = shape or episode.frames_THWC.shape[1:]
        if episode.frames_THWC.shape[1:] != shape:
            raise InputError(
                f"{episode.game} has frames of {shape} and {episode.frames_THWC.shape[1:]}: "
                "a Minari data set has one size, export them from separate data sets"
            )
        told.append({KEY: json.dumps(episode_metadata(episode))})
        yield _buffer(minari, episode)


def _buffer(minari: Any, episode: Episode) -> Any:
    """An episode as Minari takes it."""
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
    """The folders of the data sets: `folder` itself or below it, or above it where it is the "data" of one."""
    if folder.name == "data" and (folder / "metadata.json").exists():
        return [folder.parent]
    return sorted(
        file.parents[1]
        for depth in range(5)
        for file in folder.glob("*/" * depth + "data/metadata.json")
    )


class Source:
    """Minari data sets: a datasets path, or one data set's folder.

    Raises InputError that names the folder for data that cannot be read as episodes of games.
    """

    def __init__(self, folder: Path) -> None:
        self._minari = _minari()
        places = homes(folder)
        if not places:
            raise InputError(f"{folder} holds no Minari data set (<name>/data/metadata.json)")
        self._found = [
            (home, number) for home in places for number in range(self._open(home).total_episodes)
        ]
        self._facts = [
            _episode_facts(home, self._open(home), number) for home, number in self._found
        ]
        self.sessions = [(known["game"], known["session_id"]) for known in self._facts]

    def _open(self, home: Path) -> Any:
        """One data set; the newest stays open."""
        if getattr(self, "_opened", (None,))[0] != home:
            try:
                dataset = self._minari.MinariDataset(home / "data")
            except Exception as error:  # Minari raises assertions and whatever its parts raise
                raise InputError(
                    f"{home} is no readable Minari data set ({_line(error)})"
                ) from error
            self._opened = (home, dataset)
        return self._opened[1]

    def episode(self, index: int) -> Episode:
        """Episode `index`."""
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
                f"{home}: observations are {frames.dtype} {frames.shape}, not RGB images uint8 (H, W, 3)"
            )
        if (
            actions.ndim != 1
            or not np.issubdtype(actions.dtype, np.integer)
            or actions.min(initial=0) < 0
        ):
            raise InputError(
                f"{home}: actions are {actions.dtype} {actions.shape}, not whole numbers from 0"
            )
        if actions.max(initial=0) > 255:
            raise InputError(
                f"{home}: action {actions.max()} does not exist, actions are at most 255"
            )
        known = self._facts[index]
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


def _episode_facts(home: Path, dataset: Any, number: int) -> dict[str, Any]:
    """What our export tells of an episode; of another's only game and session id."""
    file = home / "data" / str(number) / "metadata.json"
    try:
        values = next(iter(dataset.storage.get_episode_metadata([number])))
        told = json.loads(values[KEY]) if KEY in values else None
    except Exception as error:
        raise InputError(f"{file} is damaged or missing ({_line(error)})") from error
    if told is not None:
        return recording_fields(told, file)
    return {
        "game": _game(home, dataset.id),
        "session_id": re.sub(r"[^\w-]", "-", f"{dataset.id}-{number}"),
    }


def _foreign(known: dict[str, Any], dataset: Any, read: Any) -> dict[str, Any]:
    """The fields of an episode that somebody else recorded."""
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
    """The catalogue's game in a data set's name."""
    from envs import catalog

    games = {game.casefold(): game for game in (COUNTING, *catalog.integrations())}
    for part in reversed(str(dataset_id).split("/")):
        name = re.sub(r"-v\d+$", "", part).casefold()
        if name in games:
            return games[name]
    raise InputError(
        f"{home}: no game that is known stands in the name {dataset_id}: rename the data set after its game"
    )


def _minari() -> Any:
    """The library, which only this format needs."""
    try:
        import minari
        import minari.data_collector
    except ImportError as error:
        raise InputError("Minari is not installed: pip install 'minari>=0.5.4'") from error
    return minari


@contextmanager
def _datasets_path(folder: Path) -> Iterator[None]:
    """Let Minari write below `folder`; it takes the place from the environment."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    # Absolute: Minari joins the paths of its files to the data set's folder, twice the folder for a relative one.
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

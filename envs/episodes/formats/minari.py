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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from envs.episodes.episode import Episode
from envs.episodes.formats.metadata import KEY, episode_metadata, known_game, metadata_fields
from envs.utils.errors import InputError, one_line

NAMESPACE = "autoexplore"


def write_minari(folder: Path, episodes: Callable[[], Iterator[Episode]]) -> None:
    """Write episodes, sorted by game, as data sets under `folder`.

    Raises: InputError if Minari is not installed or a game's frames have several sizes.
    """
    minari = _import_minari()
    with _datasets_path(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a missing link to the code
        for game, group in groupby(episodes(), key=lambda episode: episode.game):
            of_game = iter(group)
            first = next(of_game)
            metadata: list[dict[str, str]] = []
            shape = first.frames_THWC.shape[1:]
            rate, names = 60 / first.frame_skip, ", ".join(first.action_names)
            dataset = minari.create_dataset_from_buffers(
                dataset_id=f"{NAMESPACE}/{game}-v0",
                buffer=_buffers(minari, chain([first], of_game), metadata),
                observation_space=gymnasium.spaces.Box(0, 255, shape, np.uint8),
                action_space=gymnasium.spaces.Discrete(len(first.action_names)),
                algorithm_name=first.policy_id,
                author="AutoExplore",
                description=f"{game}, {rate:g} steps a second. Actions: {names}.",
                data_format="parquet",  # the default, HDF5, needs another package
                jpeg_encoding=False,  # the default is lossy
            )
            dataset.storage.update_episode_metadata(metadata)


def _buffers(
    minari: Any, episodes: Iterable[Episode], metadata: list[dict[str, str]]
) -> Iterator[Any]:
    """Yield episodes as Minari's buffers and append their metadata to `metadata`.

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
        metadata.append({KEY: json.dumps(episode_metadata(episode))})
        last = np.arange(len(episode.actions)) == len(episode.actions) - 1
        yield minari.data_collector.EpisodeBuffer(
            seed=episode.seed,
            observations=episode.frames_THWC,
            actions=episode.actions.astype(np.int64),
            rewards=episode.rewards,
            terminations=(last & episode.terminated).tolist(),
            truncations=(last & episode.truncated).tolist(),
        )


def dataset_folders(folder: Path) -> list[Path]:
    """Return the folders of the data sets in `folder`, which may also be the "data" of one."""
    if folder.name == "data" and (folder / "metadata.json").exists():
        return [folder.parent]
    return sorted(
        file.parents[1]
        for depth in range(5)
        for file in folder.glob("*/" * depth + "data/metadata.json")
    )


class MinariSource:
    """Minari data sets: a datasets path, or the folder of one data set.

    Raises: InputError naming the folder for data that cannot be read as episodes of games.
    """

    def __init__(self, folder: Path) -> None:
        self._minari = _import_minari()
        self._opened: tuple[Path, Any] | None = None
        homes = dataset_folders(folder)
        if not homes:
            raise InputError(f"{folder} holds no Minari data set (<name>/data/metadata.json)")
        self._episodes = [
            (home, number) for home in homes for number in range(self._open(home).total_episodes)
        ]
        self._metadata = [
            _stored_metadata(home, self._open(home), number) for home, number in self._episodes
        ]
        self.sessions = [(fields["game"], fields["session_id"]) for fields in self._metadata]

    def _open(self, home: Path) -> Any:
        """Return one data set; the newest stays open."""
        if self._opened is None or self._opened[0] != home:
            try:
                self._opened = home, self._minari.MinariDataset(home / "data")
            except Exception as error:  # Minari raises assertions and errors of its dependencies
                raise InputError(
                    f"{home} is not a readable Minari data set ({one_line(error)})"
                ) from error
        return self._opened[1]

    def episode(self, index: int) -> Episode:
        """Return episode `index`."""
        home, number = self._episodes[index]
        dataset = self._open(home)
        try:
            data = next(iter(dataset.iterate_episodes([number])))
        except Exception as error:
            raise InputError(
                f"{home}: episode {number} is damaged or missing ({one_line(error)})"
            ) from error
        frames, actions = np.asarray(data.observations), np.asarray(data.actions)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise InputError(
                f"{home}: observations are {frames.dtype} {frames.shape}, not RGB images uint8 "
                "(H, W, 3)"
            )
        integers = actions.ndim == 1 and np.issubdtype(actions.dtype, np.integer)
        if not integers or actions.min(initial=0) < 0 or actions.max(initial=0) > 255:
            raise InputError(
                f"{home}: actions are {actions.dtype} {actions.shape}, not integers from 0 to 255"
            )
        fields = self._metadata[index]
        if "policy_id" not in fields:
            fields = _foreign_metadata(fields, dataset, data)
        try:
            return Episode(
                **fields,
                frames_THWC=frames,
                actions=actions.astype(np.uint8),
                rewards=np.asarray(data.rewards, np.float32),
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
        raise InputError(f"{file} is damaged or missing ({one_line(error)})") from error
    if stored is not None:
        return metadata_fields(stored, file)
    session_id = re.sub(r"[^\w-]", "-", f"{dataset.id}-{number}")
    return {"game": _game(home, dataset.id), "session_id": session_id}


def _foreign_metadata(fields: dict[str, Any], dataset: Any, data: Any) -> dict[str, Any]:
    """Return the fields of an episode from another author's data set."""
    lossy = bool(dataset.storage.jpeg_encoding)
    return {
        **fields,
        "policy_id": str(dataset.storage.metadata.get("algorithm_name") or "unknown"),
        "seed": 0,
        "terminated": bool(np.any(data.terminations)),
        "truncated": bool(np.any(data.truncations)),
        "console": fields["game"].rsplit("-", 1)[-1],
        "resize": "jpeg" if lossy else "",
        "info": {"imported": {"format": "minari", "lossy": lossy, "dataset": dataset.id}},
    }


def _game(home: Path, dataset_id: str) -> str:
    """Return the catalogue's game in a data set's name."""
    for part in reversed(str(dataset_id).split("/")):
        if (game := known_game(re.sub(r"-v\d+$", "", part))) is not None:
            return game
    raise InputError(
        f"{home}: the name {dataset_id} contains no known game: rename the data set after its game"
    )


def _import_minari() -> Any:
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
    name = "MINARI_DATASETS_PATH"
    before = os.environ.get(name)
    os.environ[name] = str(folder.absolute())  # Minari would prepend a relative path twice
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before

"""The layout of the paper's published data.

    <folder>/retro_<game>_v0.0.0/info.json                        game, actions, generator settings
    <folder>/retro_<game>_v0.0.0/000000/<session>/frames/<i>.jpg  or frames.mp4 next to actions.json
    <folder>/retro_<game>_v0.0.0/000000/<session>/actions.json    src_id, tgt_id, one-hot action

Frame i is the one *after* action i, so the frame before the first action is missing, and JPEG is
lossy. An export omits the first frame; an import drops the first action, which has no frame before
it. Imported episodes get new session ids and are marked in `resize` and `info`. They start from no
savestate, so they cannot be re-rendered.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from envs import COUNTING
from envs.controls import ACTIONS
from envs.episodes.episode import Episode
from envs.episodes.formats.metadata import KEY, episode_metadata, metadata_fields
from envs.utils.errors import InputError
from envs.utils.progress import console

VERSION = "0.0.0"
CAPTIONS = ("RIGHT", "LEFT", "UP", "DOWN", "ACTION_JUMP")
"""Published names of the actions, in the order of `ACTIONS`."""
JPEG = (
    cv2.IMWRITE_JPEG_QUALITY,
    95,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
)


def write(folder: Path, episodes: Iterable[Episode]) -> None:
    """Write episodes, grouped by game, into `folder`. Raises: OSError if the disk fails."""
    for game, group in groupby(episodes, key=lambda episode: episode.game):
        home = folder / f"retro_{game.lower()}_v{VERSION}"
        sessions = []
        for number, episode in enumerate(group):
            _write_session(home / "000000" / f"{number:06d}", episode)
            sessions.append(episode_metadata(episode))
            shape = episode.frames_THWC.shape[1:]
        info = _info(game, sessions, shape, _choices(episode))
        (home / "info.json").write_text(json.dumps(info, indent=2) + "\n")


def _info(
    game: str, sessions: list[dict[str, Any]], shape: tuple[int, ...], choices: int
) -> dict[str, Any]:
    """Return the published generator's description of a game, plus the metadata of each episode
    under `KEY`.
    """
    captions = (
        [[name] for name in CAPTIONS]
        if choices == len(CAPTIONS)
        else [[f"ACTION_{i}"] for i in range(choices)]
    )
    return {
        "info": {
            "game": game,
            "config": {
                "name": "retro_act",
                "version": VERSION,
                "game": game,
                "n_skip_frames": sessions[0]["frame_skip"],
                "n_skip_start_frames": 0,
                "image_size": [shape[1], shape[0]],
                "valid_action_combos": captions,
            },
            "metadata": {},
            "action_space": [choices],
            "observation_space": list(shape),
            "action_captions": captions,
        },
        "name": f"retro_{game.lower()}",
        "generator_version": "1.0.0",
        "version": VERSION,
        "generator_config": {"n_instances": 1, "n_sessions": len(sessions), "output_mode": "frame"},
        KEY: {"sessions": sessions},
    }


def _choices(episode: Episode) -> int:
    """Return the number of actions to choose from."""
    return len(episode.buttons) or len(ACTIONS)


def _write_session(folder: Path, episode: Episode) -> None:
    """Write one session: T frames and T actions."""
    (folder / "frames").mkdir(parents=True)
    steps = []
    rewards = episode.rewards.tolist()
    for step, action in enumerate(episode.actions.tolist()):
        frame_HWC = episode.frames_THWC[step + 1]
        _, encoded = cv2.imencode(".jpg", cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2BGR), JPEG)
        (folder / "frames" / f"{step:06d}.jpg").write_bytes(encoded.tobytes())
        one_hot = [int(index == action) for index in range(_choices(episode))]
        steps.append(
            {
                "src_id": step - 1,
                "tgt_id": step,
                "action": one_hot,
                "extras": {"reward": rewards[step]},
            }
        )
    (folder / "actions.json").write_text(json.dumps({"actions": steps}))


def action_files(folder: Path) -> list[Path]:
    """Return every session's `actions.json`; `folder` is a game, a data set or a folder of data
    sets.
    """
    for depth in (2, 3, 4):  # no deeper search, which would visit millions of frames
        files = list(folder.glob("*/" * depth + "actions.json"))
        if files:
            return files
    return []


class Source:
    """Data in the published layout: a folder of games, or one game's folder.

    Raises: InputError naming the file that does not fit the layout.
    """

    def __init__(self, folder: Path) -> None:
        homes = sorted({file.parents[2] for file in action_files(folder)})
        if not homes:
            raise InputError(
                f"{folder} holds no <game>/<instance>/<session>/actions.json: give a folder in "
                "the published layout"
            )
        found = []
        for home in homes:
            info = _read_info(home)
            found += [
                _Session(home, info, file.parent) for file in sorted(home.glob("*/*/actions.json"))
            ]
        for session in found:
            if session.length < 1:
                console.print(f"{session.folder} is skipped: it has fewer than two frames")
        self._found = [session for session in found if session.length > 0]
        self.sessions = [(session.game, session.session_id) for session in self._found]

    def episode(self, index: int) -> Episode:
        """Return episode `index`, without its first action."""
        return self._found[index].read()


class _Session:
    """The folder of one session."""

    def __init__(self, home: Path, info: dict[str, Any], folder: Path) -> None:
        self._home, self._info, self.folder = home, info, folder
        self._metadata = self._exported_metadata()
        published = self._info.get("info")
        published = published if isinstance(published, dict) else {}
        self._captions = published.get("action_captions")
        config = published.get("config")
        self._frame_skip = config.get("n_skip_frames", 4) if isinstance(config, dict) else 4
        self.game = (
            str(self._metadata["game"]) if self._metadata else _game(home, published.get("game"))
        )
        content = _bytes(folder / "actions.json")
        identity = [self.game, folder.parent.name, folder.name, hashlib.sha256(content).hexdigest()]
        self.session_id = hashlib.sha256(
            json.dumps(["genieredux", *identity]).encode()
        ).hexdigest()[:16]
        first_source, actions, _, _ = self._steps()
        self.length = len(actions) - (first_source < 0)
        """Number of steps that lead from a frame to a frame."""

    def _exported_metadata(self) -> dict[str, Any]:
        """Return the metadata that our export stored for the session, or an empty dict."""
        own = self._info.get(KEY)
        if own is None:
            return {}
        try:
            values = own["sessions"][int(self.folder.name)]
        except (TypeError, KeyError, IndexError, ValueError) as error:
            raise InputError(
                f"{self._home / 'info.json'} does not describe session {self.folder.name}"
            ) from error
        return metadata_fields(values, self._home / "info.json")

    @cached_property
    def _action_of(self) -> list[int]:
        """Our action for each published one."""
        if self._metadata or self._captions is None:
            return list(range(len(self._metadata.get("buttons", ())) or len(ACTIONS)))
        names = [
            " ".join(caption) if isinstance(caption, list) else str(caption)
            for caption in self._captions
        ]
        unknown = [name for name in names if name.upper() not in CAPTIONS]
        if unknown:
            raise InputError(
                f"{self._home / 'info.json'}: action {unknown[0]!r} is none of "
                f"{', '.join(CAPTIONS)}: remove it"
            )
        return [CAPTIONS.index(name.upper()) for name in names]

    def read(self) -> Episode:
        """Return the episode: T - 1 of its T actions, and T frames."""
        first_source, actions, rewards, ids = self._steps()
        dropped = None
        if first_source < 0:
            dropped, actions, rewards = actions[0], actions[1:], rewards[1:]
        else:
            ids = [first_source, *ids]
        frames_THWC = _read_frames(self.folder, ids)
        origin = {
            "format": "genieredux",
            "lossy": True,
            "session": self._metadata.get("session_id", self.folder.name),
        }
        fields = self._metadata or {
            "policy_id": "unknown",
            "seed": 0,
            "terminated": False,
            "truncated": True,
            "console": self.game.rsplit("-", 1)[-1],
            "frame_skip": self._frame_skip,
        }
        return Episode(
            **{
                **fields,
                "session_id": self.session_id,
                "game": self.game,
                "init_state": "",
                "resize": f"{fields.get('resize', '')} jpeg".strip(),
                "info": {
                    **fields.get("info", {}),
                    "imported": {
                        **origin,
                        "first_action": dropped,
                        "init_state": fields.get("init_state", ""),
                    },
                },
            },
            frames_THWC=frames_THWC,
            actions=np.array(actions, np.uint8),
            rewards=np.array(rewards, np.float32),
        )

    def _steps(self) -> tuple[int, list[int], list[float], list[int]]:
        """Return the frame before the first action (-1: none), and the actions, rewards and next
        frames.
        """
        file = self.folder / "actions.json"
        try:
            content = json.loads(_bytes(file))
            rows = content["actions"] if isinstance(content, dict) else content
            steps = sorted(
                (
                    int(row.get("tgt_id", row.get("tgt_frame_id"))),
                    int(row.get("src_id", row.get("src_frame_id"))),
                    row,
                )
                for row in rows
            )
            ids = [target for target, _, _ in steps]
            actions = [self._action_of[_chosen(row["action"])] for _, _, row in steps]
            rewards = [float((row.get("extras") or {}).get("reward", 0.0)) for _, _, row in steps]
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise InputError(
                f"{file} is not a list of steps with src_id, tgt_id and one-hot action ({error})"
            ) from error
        if (
            not ids
            or ids != list(range(ids[0], ids[0] + len(ids)))
            or any(src != tgt - 1 for tgt, src, _ in steps)
        ):
            raise InputError(
                f"{file} misses frames: each step must lead from frame i - 1 to frame i"
            )
        return steps[0][1], actions, rewards, ids


def _chosen(action: Any) -> int:
    """Return the index in a one-hot vector, in a vector of one index, or a plain index."""
    values = action if isinstance(action, list) else [action]
    if len(values) == 1:
        index = int(values[0])
    elif sorted(values) == [0] * (len(values) - 1) + [1]:
        index = values.index(1)
    else:
        raise InputError(
            f"action {values} holds several buttons: only one action per step is supported"
        )
    if index < 0:
        raise InputError(f"action {index} is negative")
    return index


def _read_frames(folder: Path, ids: list[int]) -> NDArray[np.uint8]:
    """Return frames uint8 (T, H, W, 3) of the given numbers, from JPEG files or a video."""
    video = folder / "frames.mp4"
    frames = (
        _video_frames(video, ids)
        if video.exists()
        else [_image(folder / "frames" / f"{i:06d}.jpg") for i in ids]
    )
    shapes = {frame.shape for frame in frames}
    if len(shapes) > 1:
        raise InputError(f"{folder} has frames of several sizes: {sorted(shapes)}")
    return np.stack(frames)


def _image(file: Path) -> NDArray[np.uint8]:
    content = _bytes(file)
    # OpenCV fills the missing part of a truncated file with grey, without an error.
    image = (
        cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if content[-2:] == b"\xff\xd9"
        else None
    )
    if image is None:
        raise InputError(f"{file} is not a complete JPEG image")
    return _rgb(image)


def _video_frames(file: Path, ids: list[int]) -> list[NDArray[np.uint8]]:
    video = cv2.VideoCapture(str(file))
    frames: list[NDArray[np.uint8]] = []
    try:
        for _ in range(ids[-1] + 1):
            read, image = video.read()
            if not read:
                raise InputError(
                    f"{file} holds {len(frames)} frames, its actions.json names {ids[-1] + 1}"
                )
            frames.append(_rgb(image))
    finally:
        video.release()
    return frames[ids[0] :]


def _rgb(image: Any) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _read_info(home: Path) -> dict[str, Any]:
    """Return a game's `info.json`, empty if missing; the published reader allows that, too."""
    file = home / "info.json"
    if not file.exists():
        return {}
    try:
        content = json.loads(_bytes(file))
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is not a JSON object")
    return content


def _game(home: Path, told: Any) -> str:
    """Return the catalogue's name of the game in `info.json` or, in lower case, the folder name."""
    from envs import catalog

    match = re.fullmatch(r"retro_(.+?)_v[\d.]+.*", home.name)
    name = str(told) if told else match.group(1) if match else ""
    known = {game.casefold(): game for game in (COUNTING, *catalog.integrations())}
    if name.removesuffix("-v0").casefold() not in known:
        raise InputError(
            f"{home} names no known game ({name or 'info.json is missing'}): correct its info.json"
        )
    return known[name.removesuffix("-v0").casefold()]


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error

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
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from envs.controls import ACTIONS
from envs.episodes.episode import Episode
from envs.episodes.formats.metadata import KEY, episode_metadata, known_game, metadata_fields
from envs.utils.errors import InputError, one_line
from envs.utils.progress import console

VERSION = "0.0.0"
CAPTIONS = ("RIGHT", "LEFT", "UP", "DOWN", "ACTION_JUMP")
"""Published names of the actions, in the order of `ACTIONS`."""
JPEG_444 = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
JPEG = (cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, JPEG_444)


def write_genieredux(folder: Path, episodes: Callable[[], Iterator[Episode]]) -> None:
    """Write episodes, sorted by game, into `folder`. Raises: OSError if the disk fails."""
    for game, group in groupby(episodes(), key=lambda episode: episode.game):
        home = folder / f"retro_{game.lower()}_v{VERSION}"
        metadata = []
        for number, episode in enumerate(group):
            _write_session(home / "000000" / f"{number:06d}", episode)
            metadata.append(episode_metadata(episode))
        info = _info(episode, metadata)
        (home / "info.json").write_text(json.dumps(info, indent=2) + "\n")


def _info(episode: Episode, metadata: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the published generator's description of the game of `episode`.

    The metadata of each episode is added under `KEY`.
    """
    game, shape = episode.game, episode.frames_THWC.shape[1:]
    names: tuple[str, ...] = CAPTIONS
    if episode.action_names != ACTIONS:
        names = tuple(name.upper().replace(" ", "_") for name in episode.action_names)
    captions = [[name] for name in names]
    config = {
        "name": "retro_act",
        "version": VERSION,
        "game": game,
        "n_skip_frames": metadata[0]["frame_skip"],
        "n_skip_start_frames": 0,
        "image_size": [shape[1], shape[0]],
        "valid_action_combos": captions,
    }
    return {
        "info": {
            "game": game,
            "config": config,
            "metadata": {},
            "action_space": [len(names)],
            "observation_space": list(shape),
            "action_captions": captions,
        },
        "name": f"retro_{game.lower()}",
        "generator_version": "1.0.0",
        "version": VERSION,
        "generator_config": {"n_instances": 1, "n_sessions": len(metadata), "output_mode": "frame"},
        KEY: {"sessions": metadata},
    }


def _write_session(folder: Path, episode: Episode) -> None:
    """Write one session: T frames and T actions."""
    (folder / "frames").mkdir(parents=True)
    one_hot = np.eye(len(episode.action_names), dtype=int)[episode.actions].tolist()
    steps = []
    for step, reward in enumerate(episode.rewards.tolist()):
        frame_HWC = cv2.cvtColor(episode.frames_THWC[step + 1], cv2.COLOR_RGB2BGR)
        _, encoded = cv2.imencode(".jpg", frame_HWC, JPEG)
        (folder / "frames" / f"{step:06d}.jpg").write_bytes(encoded.tobytes())
        extras = {"reward": reward}
        steps.append(
            {"src_id": step - 1, "tgt_id": step, "action": one_hot[step], "extras": extras}
        )
    (folder / "actions.json").write_text(json.dumps({"actions": steps}))


def action_files(folder: Path) -> list[Path]:
    """Return every session's `actions.json` in a game, a data set or a folder of data sets."""
    for depth in (2, 3, 4):  # no deeper search, which would visit millions of frames
        if files := list(folder.glob("*/" * depth + "actions.json")):
            return files
    return []


class GenieReduxSource:
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
        self._sessions: list[_Session] = []
        for home in homes:
            info = _read_info(home)
            for file in sorted(home.glob("*/*/actions.json")):
                session = _Session(home, info, file.parent)
                if session.length > 0:
                    self._sessions.append(session)
                else:
                    console.print(f"{file.parent} is skipped: it has fewer than two frames")
        self.sessions = [(session.game, session.session_id) for session in self._sessions]

    def episode(self, index: int) -> Episode:
        """Return episode `index`, without its first action."""
        return self._sessions[index].read()


class _Session:
    """The folder of one session."""

    def __init__(self, home: Path, info: dict[str, Any], folder: Path) -> None:
        self._folder, self._info_file = folder, home / "info.json"
        published = _as_dict(info.get("info"))
        self._metadata = self._exported_metadata(info)
        self._frame_skip = _as_dict(published.get("config")).get("n_skip_frames", 4)
        self.game = self._metadata.get("game") or _game(home, published.get("game"))
        self._action_of = self._action_table(published.get("action_captions"))
        """Our action for each published one."""
        digest = hashlib.sha256(_read_bytes(folder / "actions.json")).hexdigest()
        identity = ["genieredux", self.game, folder.parent.name, folder.name, digest]
        self.session_id = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        source, actions, _, _ = self._steps()
        self.length = len(actions) - (source < 0)
        """Number of steps that lead from a frame to a frame."""

    def _exported_metadata(self, info: dict[str, Any]) -> dict[str, Any]:
        """Return the metadata that our export stored for the session, or an empty dict."""
        if info.get(KEY) is None:
            return {}
        try:
            values = info[KEY]["sessions"][int(self._folder.name)]
        except (TypeError, KeyError, IndexError, ValueError) as error:
            raise InputError(
                f"{self._info_file} does not describe session {self._folder.name}"
            ) from error
        return metadata_fields(values, self._info_file)

    def _action_table(self, captions: Any) -> list[int]:
        if self._metadata or captions is None:
            return list(range(len(self._metadata.get("buttons", ())) or len(ACTIONS)))
        names = [" ".join(name) if isinstance(name, list) else str(name) for name in captions]
        if unknown := [name for name in names if name.upper() not in CAPTIONS]:
            raise InputError(
                f"{self._info_file}: action {unknown[0]!r} is none of {', '.join(CAPTIONS)}: "
                "remove it"
            )
        return [CAPTIONS.index(name.upper()) for name in names]

    def read(self) -> Episode:
        """Return the episode: T - 1 of its T actions, and T frames."""
        source, actions, rewards, ids = self._steps()
        dropped = None
        if source < 0:
            dropped, actions, rewards = actions[0], actions[1:], rewards[1:]
        else:
            ids = [source, *ids]
        fields = self._metadata or {
            "policy_id": "unknown",
            "seed": 0,
            "terminated": False,
            "truncated": True,
            "console": self.game.rsplit("-", 1)[-1],
            "frame_skip": self._frame_skip,
        }
        origin = {
            "format": "genieredux",
            "lossy": True,
            "session": fields.get("session_id", self._folder.name),
            "first_action": dropped,
            "init_state": fields.get("init_state", ""),
        }
        changed = {
            "session_id": self.session_id,
            "game": self.game,
            "init_state": "",
            "resize": f"{fields.get('resize', '')} jpeg".strip(),
            "info": {**fields.get("info", {}), "imported": origin},
        }
        return Episode(
            **{**fields, **changed},
            frames_THWC=_read_frames(self._folder, ids),
            actions=np.array(actions, np.uint8),
            rewards=np.array(rewards, np.float32),
        )

    def _steps(self) -> tuple[int, list[int], list[float], list[int]]:
        """Return the frame before the first action (-1: none), actions, rewards and next frames."""
        file = self._folder / "actions.json"
        try:
            content = json.loads(_read_bytes(file))
            rows = content["actions"] if isinstance(content, dict) else content
            steps = sorted(
                (
                    int(row.get("tgt_id", row.get("tgt_frame_id"))),
                    int(row.get("src_id", row.get("src_frame_id"))),
                    self._action_of[_action_index(row["action"])],
                    float((row.get("extras") or {}).get("reward", 0.0)),
                )
                for row in rows
            )
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise InputError(
                f"{file} is not a list of steps with src_id, tgt_id and one-hot action ({error})"
            ) from error
        targets = [target for target, _, _, _ in steps]
        contiguous = bool(steps) and targets == list(range(targets[0], targets[0] + len(steps)))
        if not contiguous or any(source != target - 1 for target, source, _, _ in steps):
            raise InputError(
                f"{file} misses frames: each step must lead from frame i - 1 to frame i"
            )
        actions, rewards = [step[2] for step in steps], [step[3] for step in steps]
        return steps[0][1], actions, rewards, targets


def _action_index(action: Any) -> int:
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
    if video.exists():
        frames = _video_frames(video, ids)
    else:
        frames = [_image(folder / "frames" / f"{i:06d}.jpg") for i in ids]
    shapes = {frame.shape for frame in frames}
    if len(shapes) > 1:
        raise InputError(f"{folder} has frames of several sizes: {sorted(shapes)}")
    return np.stack(frames)


def _image(file: Path) -> NDArray[np.uint8]:
    content = _read_bytes(file)
    # OpenCV fills the missing part of a truncated file with grey, without an error.
    complete = content.endswith(b"\xff\xd9")
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if complete else None
    if image is None:
        raise InputError(f"{file} is not a complete JPEG image")
    return _to_rgb(image)


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
            frames.append(_to_rgb(image))
    finally:
        video.release()
    return frames[ids[0] :]


def _to_rgb(image: Any) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _read_info(home: Path) -> dict[str, Any]:
    """Return a game's `info.json`, empty if missing, which the published reader allows, too."""
    file = home / "info.json"
    if not file.exists():
        return {}
    try:
        content = json.loads(_read_bytes(file))
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is not a JSON object")
    return content


def _game(home: Path, published: Any) -> str:
    """Return the catalogue's name of the game in `info.json`, or else in the folder name."""
    match = re.fullmatch(r"retro_(.+?)_v[\d.]+.*", home.name)
    name = str(published) if published else match.group(1) if match else ""
    game = known_game(name)
    if game is None:
        raise InputError(
            f"{home} names no known game ({name or 'info.json is missing'}): correct its info.json"
        )
    return game


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {one_line(error)}") from error


def _as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}

"""The published layout: readable by its own rules; imports are aligned, marked and checked."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from envs.episodes.dataset import EpisodeReader
from envs.episodes.formats.convert import import_episodes
from envs.episodes.verify import verify
from envs.games.counting import read_step_and_action
from envs.utils.errors import InputError
from tests.fixtures.datasets import TWO_GAMES, read_all


@pytest.fixture
def spoiled(published: Path, tmp_path: Path) -> Path:
    """A copy of one published game to spoil."""
    return Path(
        shutil.copytree(
            published / "retro_counting_v0.0.0", tmp_path / "set" / "retro_counting_v0.0.0"
        )
    )


def test_the_published_layout_as_its_own_reader_takes_it(data: str, published: Path) -> None:
    assert sorted(item.name for item in published.iterdir()) == [
        f"retro_{game.lower()}_v0.0.0" for game in TWO_GAMES
    ]
    for home in published.iterdir():
        info = json.loads((home / "info.json").read_text())
        assert info["info"]["game"] in TWO_GAMES
        assert info["name"] == home.name.removesuffix("_v0.0.0")
        assert (info["version"], info["generator_config"]["output_mode"]) == ("0.0.0", "frame")
        assert info["info"]["action_captions"] == [
            ["RIGHT"],
            ["LEFT"],
            ["UP"],
            ["DOWN"],
            ["ACTION_JUMP"],
        ]
        assert [item.name for item in home.iterdir() if item.is_dir()] == ["000000"]
        for session in (home / "000000").iterdir():
            steps = json.loads((session / "actions.json").read_text())["actions"]
            assert [(step["src_id"], step["tgt_id"]) for step in steps] == [
                (i - 1, i) for i in range(len(steps))
            ]
            assert all(sorted(step["action"]) == [0, 0, 0, 0, 1] for step in steps)
            images = sorted((session / "frames").iterdir())
            assert [image.name for image in images] == [
                f"{index:06d}.jpg" for index in range(len(steps))
            ]
            assert Image.open(images[0]).size == (64, 64)
            if "counting" in home.name:  # frame i shows the action that made it
                shown = [read_step_and_action(np.asarray(Image.open(image))) for image in images]
                assert shown == [
                    (index + 1, step["action"].index(1)) for index, step in enumerate(steps)
                ]


def test_the_published_layout_comes_back_aligned_and_marked(
    data: str, published: Path, tmp_path: Path
) -> None:
    assert import_episodes(published, str(tmp_path / "back")) == (6, 0)
    originals = {episode.session_id: episode for episode in read_all(data)}
    back = read_all(tmp_path / "back")
    assert sorted(episode.game for episode in back) == sorted(
        episode.game for episode in originals.values()
    )
    for episode in back:
        origin = episode.info["imported"]
        original = originals.pop(origin["session"])
        assert (origin["format"], origin["lossy"], episode.resize) == (
            "genieredux",
            True,
            f"{original.resize} jpeg".strip(),
        )
        assert episode.session_id != original.session_id, "it is another recording"
        assert episode.init_state == ""
        assert origin["init_state"] == original.init_state
        assert origin["first_action"] == original.actions[0]
        assert np.array_equal(episode.actions, original.actions[1:])
        assert np.array_equal(episode.rewards, original.rewards[1:])
        assert (episode.game, episode.buttons, episode.seed) == (
            original.game,
            original.buttons,
            original.seed,
        )
        difference = episode.frames_THWC.astype(int) - original.frames_THWC[1:]
        assert 10 * np.log10(255**2 / np.mean(difference**2)) > 35
        if episode.game == "Counting":
            shown = [read_step_and_action(frame)[1] for frame in episode.frames_THWC[1:]]
            assert shown == episode.actions.tolist()
    assert not originals
    assert verify(str(tmp_path / "back")).faults == {}
    assert import_episodes(published, str(tmp_path / "back")) == (0, 6)


def test_data_that_the_published_code_made(spoiled: Path, tmp_path: Path) -> None:
    """Without our metadata: names from info.json, actions by captions, a video for images."""
    file = spoiled / "info.json"
    info = json.loads(file.read_text())
    del info["autoexplore"]
    info["info"]["action_captions"] = [["LEFT"], ["RIGHT"], ["UP"], ["DOWN"], ["ACTION_JUMP"]]
    info["info"]["config"]["n_skip_frames"] = 2
    file.write_text(json.dumps(info))
    session = spoiled / "000000" / "000000"
    video = cv2.VideoWriter(
        str(session / "frames.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 15, (64, 64)
    )
    for image in sorted((session / "frames").iterdir()):
        video.write(np.asarray(Image.open(image))[:, :, ::-1])
    video.release()
    steps = json.loads((session / "actions.json").read_text())["actions"]
    shutil.rmtree(session / "frames")
    import_episodes(spoiled, str(tmp_path / "back"), "genieredux")
    swap = {0: 1, 1: 0}
    back = read_all(tmp_path / "back")
    read = next(episode for episode in back if episode.info["imported"]["session"] == "000000")
    assert {episode.game for episode in back} == {"Counting"}
    assert (read.policy_id, read.frame_skip, read.console) == ("unknown", 2, "Counting")
    chosen = [step["action"].index(1) for step in steps[1:]]
    assert read.actions.tolist() == [swap.get(action, action) for action in chosen]
    assert [read_step_and_action(frame) for frame in read.frames_THWC[1:]] == list(
        enumerate(chosen, start=2)
    )


def test_a_game_is_known_by_its_folder_alone(published: Path, tmp_path: Path) -> None:
    home = Path(
        shutil.copytree(
            published / "retro_kangaroo-atari2600_v0.0.0",
            tmp_path / "retro_kangaroo-atari2600_v0.1.0",
        )
    )
    (home / "info.json").unlink()
    import_episodes(tmp_path, str(tmp_path / "back"))
    assert set(EpisodeReader(tmp_path / "back").games) == {"Kangaroo-Atari2600"}
    (tmp_path / "back2").mkdir()
    home.rename(tmp_path / "back2" / "retro_nothing_v0")
    with pytest.raises(InputError, match=r"retro_nothing_v0 names no known game \(nothing\)"):
        import_episodes(tmp_path / "back2", str(tmp_path / "back3"))


def _edit(file: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "harm", "reason"),
    [
        ("000000/000001/actions.json", lambda file: file.write_text("{"), "is not a list of steps"),
        (
            "000000/000001/actions.json",
            lambda file: _edit(file, lambda c: c["actions"].pop(3)),
            "misses frames",
        ),
        (
            "000000/000001/actions.json",
            lambda file: _edit(file, lambda c: c["actions"][3].update(action=[1, 1, 0, 0, 0])),
            "holds several buttons",
        ),
        (
            "000000/000001/actions.json",
            lambda file: _edit(file, lambda c: c["actions"][3].update(action=[0, 0, 0, 0, 0, 1])),
            "is not a list of steps",
        ),
        ("000000/000001/frames/000004.jpg", lambda file: file.unlink(), "cannot be read"),
        (
            "000000/000001/frames/000004.jpg",
            lambda file: file.write_bytes(file.read_bytes()[:-40]),
            "not a complete JPEG",
        ),
        ("info.json", lambda file: file.write_text("[]"), "is not a JSON object"),
        (
            "info.json",
            lambda file: _edit(file, lambda c: c["autoexplore"]["sessions"].pop()),
            "does not describe session",
        ),
        (
            "info.json",
            lambda file: _edit(file, lambda c: c["autoexplore"]["sessions"][0].pop("seed")),
            "does not describe its episodes",
        ),
    ],
)
def test_a_malformed_published_file_is_named(
    spoiled: Path, tmp_path: Path, name: str, harm: Callable[[Path], Any], reason: str
) -> None:
    harm(spoiled / name)
    with pytest.raises(InputError) as error:
        import_episodes(spoiled.parent, str(tmp_path / "back"))
    assert str(spoiled / name) in str(error.value)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_session_of_one_frame_is_left_out(
    spoiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _edit(
        spoiled / "000000" / "000001" / "actions.json",
        lambda content: content.update(actions=content["actions"][:1]),
    )
    assert import_episodes(spoiled, str(tmp_path / "back")) == (2, 0)
    assert f"{spoiled}/000000/000001 is skipped" in capsys.readouterr().out


def test_unknown_actions_are_refused(spoiled: Path, tmp_path: Path) -> None:
    def change(info: dict[str, Any]) -> None:
        del info["autoexplore"]
        info["info"]["action_captions"][2] = ["NOOP"]

    _edit(spoiled / "info.json", change)
    with pytest.raises(InputError, match=r"info\.json: action 'NOOP' is none of RIGHT, LEFT"):
        import_episodes(spoiled, str(tmp_path / "back"))

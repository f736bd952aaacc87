"""Other formats: what is written can be read by their own rules, and what is read is aligned, marked and checked."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import minari
import numpy as np
import pytest
from PIL import Image

import envs
from envs.collect.policies import RandomPolicy
from envs.collect.worker import EpisodeKey, play_episode
from envs.episodes.compact import same
from envs.episodes.dataset import EpisodeReader, EpisodeWriter
from envs.episodes.episode import Episode
from envs.episodes.formats.convert import detect, export_episodes, import_episodes
from envs.episodes.verify import verify
from envs.games.counting import read_frame
from envs.utils.errors import InputError
from experiments.__main__ import execute
from tests.fixtures.datasets import record

GAMES = ("Counting", "Kangaroo-Atari2600")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three episodes of 30 to 32 steps of two games."""
    return record(tmp_path_factory.mktemp("recorded") / "data", games=GAMES, episodes=3, steps=30)


@pytest.fixture(scope="module")
def published(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set in the published layout. Nobody may change it."""
    folder = tmp_path_factory.mktemp("published") / "set"
    assert export_episodes(data, folder, "genieredux") == 6
    return folder


@pytest.fixture
def spoiled(published: Path, tmp_path: Path) -> Path:
    """A copy of one published game to spoil."""
    return Path(
        shutil.copytree(
            published / "retro_counting_v0.0.0", tmp_path / "set" / "retro_counting_v0.0.0"
        )
    )


def episodes(uri: Any) -> list[Episode]:
    reader = EpisodeReader(uri)
    return [reader[index] for index in range(len(reader))]


# The published layout


def test_the_published_layout_as_its_own_reader_takes_it(data: str, published: Path) -> None:
    assert sorted(item.name for item in published.iterdir()) == [
        f"retro_{game.lower()}_v0.0.0" for game in GAMES
    ]
    for home in published.iterdir():
        info = json.loads((home / "info.json").read_text())
        assert info["info"]["game"] in GAMES
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
                shown = [read_frame(np.asarray(Image.open(image))) for image in images]
                assert shown == [
                    (index + 1, step["action"].index(1)) for index, step in enumerate(steps)
                ]


def test_the_published_layout_comes_back_aligned_and_marked(
    data: str, published: Path, tmp_path: Path
) -> None:
    assert import_episodes(published, str(tmp_path / "back")) == (6, 0)
    originals = {episode.session_id: episode for episode in episodes(data)}
    back = episodes(tmp_path / "back")
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
            shown = [read_frame(frame)[1] for frame in episode.frames_THWC[1:]]
            assert shown == episode.actions.tolist()
    assert not originals
    assert verify(str(tmp_path / "back")).faults == {}
    assert import_episodes(published, str(tmp_path / "back")) == (0, 6)


def test_data_that_the_published_code_made(spoiled: Path, tmp_path: Path) -> None:
    """Without our notes: names from info.json, actions by their captions, a video in place of images."""
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
    back = episodes(tmp_path / "back")
    read = next(episode for episode in back if episode.info["imported"]["session"] == "000000")
    assert {episode.game for episode in back} == {"Counting"}
    assert (read.policy_id, read.frame_skip, read.console) == ("unknown", 2, "Counting")
    chosen = [step["action"].index(1) for step in steps[1:]]
    assert read.actions.tolist() == [swap.get(action, action) for action in chosen]
    assert [read_frame(frame) for frame in read.frames_THWC[1:]] == list(enumerate(chosen, start=2))


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
    with pytest.raises(
        InputError, match=r"retro_nothing_v0 names no known game \(nothing\)"
    ):
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


# Minari


def test_minari_loads_what_was_written(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_episodes(data, tmp_path / "minari", "minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    for game in GAMES:
        dataset = minari.load_dataset(f"autoexplore/{game}-v0")
        originals = [episode for episode in episodes(data) if episode.game == game]
        assert (dataset.total_episodes, dataset.total_steps) == (
            3,
            sum(len(o.actions) for o in originals),
        )
        for original, read in zip(originals, dataset.iterate_episodes(), strict=True):
            assert np.array_equal(read.observations, original.frames_THWC)
            assert np.array_equal(read.actions, original.actions)
            assert np.array_equal(read.rewards, original.rewards)
            assert read.terminations.tolist() == [False] * (len(read) - 1) + [original.terminated]
            assert read.truncations.tolist() == [False] * (len(read) - 1) + [original.truncated]
            assert dataset.observation_space.contains(read.observations[-1])
            assert all(dataset.action_space.contains(action) for action in read.actions)


def test_minari_gives_identical_episodes_back(data: str, tmp_path: Path) -> None:
    export_episodes(data, tmp_path / "minari", "minari")
    assert import_episodes(tmp_path / "minari", str(tmp_path / "back")) == (6, 0)
    pairs = zip(
        EpisodeReader(data).iter_encoded(),
        EpisodeReader(tmp_path / "back").iter_encoded(),
        strict=True,
    )
    assert all(same(original, back) for original, back in pairs)
    for split in ("train", "val"):
        assert (
            EpisodeReader(tmp_path / "back", split).session_ids
            == EpisodeReader(data, split).session_ids
        )
    one = tmp_path / "minari" / "autoexplore" / "Counting-v0"
    assert import_episodes(one / "data", str(tmp_path / "one")) == (3, 0)


def test_minari_in_a_relative_folder(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert execute(["data", "export", data, "--to", "minari", "--format", "minari"]) == 0
    assert execute(["data", "import", "minari", "--out", "back"]) == 0
    assert sorted(item.name for item in tmp_path.iterdir()) == ["back", "minari"]
    pairs = zip(
        EpisodeReader(data).iter_encoded(), EpisodeReader("back").iter_encoded(), strict=True
    )
    assert all(same(original, back) for original, back in pairs)


@pytest.mark.filterwarnings("ignore::UserWarning")  # it misses an author, a link and more
def test_minari_data_of_others(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "theirs"))
    original = episodes(data)[0]
    space = minari_spaces(original)
    buffer = minari_buffer(original)
    minari.create_dataset_from_buffers(
        "lab/counting/expert-v3", [buffer], data_format="arrow", **space
    )
    import_episodes(tmp_path / "theirs", str(tmp_path / "back"))
    (read,) = episodes(tmp_path / "back")
    assert (read.game, read.session_id) == ("Counting", "lab-counting-expert-v3-0")
    assert (read.resize, read.info["imported"]["lossy"]) == ("jpeg", True)
    assert np.array_equal(read.actions, original.actions)
    assert [read_frame(frame)[1] for frame in read.frames_THWC[1:]] == read.actions.tolist()
    minari.create_dataset_from_buffers("lab/unheardof-v0", [buffer], data_format="arrow", **space)
    with pytest.raises(InputError, match=r"unheardof-v0: the name .* contains no known game"):
        import_episodes(tmp_path / "theirs", str(tmp_path / "back2"))


def minari_spaces(episode: Episode) -> dict[str, Any]:
    env = envs.make(episode.game)
    return {"observation_space": env.observation_space, "action_space": env.action_space}


def minari_buffer(episode: Episode) -> Any:
    ends = [False] * (len(episode.actions) - 1) + [True]
    return minari.data_collector.EpisodeBuffer(
        observations=list(episode.frames_THWC),
        actions=episode.actions.tolist(),
        rewards=episode.rewards.tolist(),
        terminations=ends,
        truncations=[False] * len(ends),
    )


def test_a_damaged_minari_set_is_named(data: str, tmp_path: Path) -> None:
    export_episodes(data, tmp_path / "minari", "minari")
    home = tmp_path / "minari" / "autoexplore" / "Kangaroo-Atari2600-v0"
    part = next((home / "data" / "1").glob("*.parquet"))
    whole = part.read_bytes()
    part.write_bytes(whole[:-50])
    with pytest.raises(InputError, match="Kangaroo-Atari2600-v0: episode 1 is damaged"):
        import_episodes(tmp_path / "minari", str(tmp_path / "back"))
    part.write_bytes(whole)
    assert import_episodes(tmp_path / "minari", str(tmp_path / "back")) == (2, 4), (
        "it goes on where it stopped"
    )
    (home / "data" / "2" / "metadata.json").unlink()
    with pytest.raises(InputError, match=r"data/2/metadata\.json is damaged or missing"):
        import_episodes(tmp_path / "minari", str(tmp_path / "back2"))
    (home / "data" / "metadata.json").write_text("{}")
    with pytest.raises(InputError, match="Kangaroo-Atari2600-v0 is not a readable Minari data set"):
        import_episodes(tmp_path / "minari", str(tmp_path / "back2"))


# All of them


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One game in frames of two sizes."""
    folder = tmp_path_factory.mktemp("mixed") / "data"
    with EpisodeWriter(folder) as writer:
        for episode, size in enumerate((32, 64)):
            env = envs.make("Counting", size=size)
            writer.add(
                play_episode(
                    env, RandomPolicy(), EpisodeKey("Counting", "random", 0, episode), steps=5
                )
            )
    return str(folder)


@pytest.mark.parametrize("name", ["minari", "lerobot"])
def test_a_failed_export_leaves_nothing(mixed: str, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"32, 32|64, 64"):
        export_episodes(mixed, tmp_path / "out", name)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target_is_refused(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for name in ("genieredux", "minari", "lerobot"):
        assert execute(["data", "export", data, "--to", str(tmp_path), "--format", name]) == 2
        assert (
            capsys.readouterr().err
            == f"autoexplore: {tmp_path} exists: give a new folder to export to\n"
        )
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_format_is_found_out(data: str, published: Path, tmp_path: Path) -> None:
    export_episodes(data, tmp_path / "minari", "minari")
    assert detect(tmp_path / "minari") == "minari"
    assert detect(published) == "genieredux"
    assert (
        execute(
            [
                "data",
                "import",
                str(published),
                "--out",
                str(tmp_path / "back"),
                "--format",
                "genieredux",
            ]
        )
        == 0
    )
    (tmp_path / "empty").mkdir()
    for folder, reason in (
        (tmp_path / "empty", "holds neither"),
        (tmp_path / "gone", "is not a folder"),
    ):
        with pytest.raises(InputError, match=reason):
            detect(folder)
    for name in ("genieredux", "minari"):
        with pytest.raises(InputError, match=f"{tmp_path}/empty holds no"):
            import_episodes(tmp_path / "empty", str(tmp_path / "back2"), name)
    with pytest.raises(InputError, match="format 'zip' cannot be written"):
        export_episodes(data, tmp_path / "out", "zip")
    with pytest.raises(InputError, match="format 'lerobot' cannot be read"):
        import_episodes(published, str(tmp_path / "back2"), "lerobot")

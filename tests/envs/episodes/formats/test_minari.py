"""Minari: readable by its own library, and lossless both ways."""

from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest

import envs
from envs.episodes.compact import equal_episodes
from envs.episodes.dataset import EpisodeReader
from envs.episodes.episode import Episode
from envs.episodes.formats.convert import export_episodes, import_episodes
from envs.games.counting import read_step_and_action
from envs.utils.errors import InputError
from experiments.__main__ import execute
from tests.fixtures.datasets import TWO_GAMES, read_all, read_encoded


def test_minari_loads_what_was_written(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_episodes(data, tmp_path / "minari", "minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    for game in TWO_GAMES:
        dataset = minari.load_dataset(f"autoexplore/{game}-v0")
        originals = [episode for episode in read_all(data) if episode.game == game]
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
    pairs = zip(read_encoded(data), read_encoded(tmp_path / "back"), strict=True)
    assert all(equal_episodes(original, back) for original, back in pairs)
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
    pairs = zip(read_encoded(data), read_encoded("back"), strict=True)
    assert all(equal_episodes(original, back) for original, back in pairs)


@pytest.mark.filterwarnings("ignore::UserWarning")  # it misses an author, a link and more
def test_minari_data_of_others(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "theirs"))
    original = read_all(data)[0]
    space = minari_spaces(original)
    buffer = minari_buffer(original)
    minari.create_dataset_from_buffers(
        "lab/counting/expert-v3", [buffer], data_format="arrow", **space
    )
    import_episodes(tmp_path / "theirs", str(tmp_path / "back"))
    (read,) = read_all(tmp_path / "back")
    assert (read.game, read.session_id) == ("Counting", "lab-counting-expert-v3-0")
    assert (read.resize, read.info["imported"]["lossy"]) == ("jpeg", True)
    assert np.array_equal(read.actions, original.actions)
    assert [
        read_step_and_action(frame)[1] for frame in read.frames_THWC[1:]
    ] == read.actions.tolist()
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

"""Choice of a format, and exports that appear completely or not at all."""

from pathlib import Path

import pytest

import envs
from envs.collect.policies import RandomPolicy
from envs.collect.worker import EpisodeKey, play_episode
from envs.episodes.dataset import EpisodeWriter
from envs.episodes.formats.convert import detect, export_episodes, import_episodes
from envs.utils.errors import InputError
from experiments.__main__ import execute


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

"""Film strips of recorded, of held and of mid-air actions, with untrained models."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from envs.controls import ACTIONS, COINRUN_ACTIONS
from envs.episodes.dataset import EpisodeReader, EpisodeWriter
from experiments.__main__ import execute
from experiments.commands.generate import model_labels
from experiments.reports.images import labelled_panels, labelled_strip, predict
from experiments.studies.mid_air import jump_actions, mid_air_frames
from tests.fixtures.datasets import make_episode, record
from tests.fixtures.worlds import save_untrained_world
from worldmodel import load_world_model

SCALE, SIZE, GAP = 2, 64 * 2, 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return record(tmp_path_factory.mktemp("generate") / "data", episodes=2, steps=60)


def generate(model: Path, data: str, out: Path, *flags: str) -> int:
    """Run the command on little data; return its exit code."""
    argv = ["generate", str(model), "--data", data, "--out", str(out), "--scale", str(SCALE)]
    return execute([*argv, "--horizon", "3", "--sampling-steps", "1", *flags])


def rows_of(strip: Path, frames: int) -> NDArray[np.uint8]:
    """Return the frames of a labelled strip, (rows, T, 64, 64, 3)."""
    pixels = np.asarray(Image.open(strip))[:, -(frames * (SIZE + GAP) - GAP) :, :3]
    padded = np.pad(pixels, [(0, GAP), (0, GAP), (0, 0)])
    cells = padded.reshape(-1, SIZE + GAP, frames, SIZE + GAP, 3).swapaxes(1, 2)
    return cells[:, :, :SIZE:SCALE, :SIZE:SCALE]


def test_recorded_actions_give_a_real_and_a_predicted_row(
    tiny_world: Path, data: str, tmp_path: Path
) -> None:
    assert generate(tiny_world, data, tmp_path, "--start", "3") == 0
    (strip,), (video,) = tmp_path.glob("*-00003.png"), tmp_path.glob("*-00003.gif")
    assert Image.open(strip).size == (5 * (SIZE + GAP) - GAP, 2 * (SIZE + GAP) - GAP)
    assert Image.open(video).n_frames == 5  # type: ignore[attr-defined]
    real, predicted = rows_of(strip, 5)
    assert (real == EpisodeReader(data)[0].frames_THWC[3:8]).all()
    assert (predicted[:2] == real[:2]).all()


def test_each_action_is_held_in_a_row_of_its_own(
    tiny_world: Path, data: str, tmp_path: Path
) -> None:
    assert generate(tiny_world, data, tmp_path, "--each-action", "--start", "7", "--seed", "5") == 0
    (strip,), (video,) = tmp_path.glob("*-00007-actions.png"), tmp_path.glob("*-actions.gif")
    rows = rows_of(strip, 5)
    assert len(rows) == len(ACTIONS)
    episode, model = EpisodeReader(data)[0], load_world_model(tiny_world)
    for action, row in enumerate(rows):
        actions = np.array([episode.actions[7], action, action, action])
        given = episode.frames_THWC[7:9]
        assert (row == predict(model, given, actions, steps=1, seed=5, mode="autoregressive")).all()
    film = Image.open(video)
    assert film.n_frames == 5  # type: ignore[attr-defined]
    assert film.size[0] == 5 * SIZE + 4 * 2


def test_coinrun_has_seven_rows_and_other_models_numbers(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_untrained_world(tmp_path / "seven", 0, COINRUN_ACTIONS)
    with EpisodeWriter(tmp_path / "coinrun") as writer:
        writer.add(make_episode(game="CoinRun", buttons=(0,) * 7))
    assert generate(model, str(tmp_path / "coinrun"), tmp_path / "out", "--each-action") == 0
    assert "; ".join(COINRUN_ACTIONS) in " ".join(capsys.readouterr().out.split())
    (strip,) = (tmp_path / "out").glob("*.png")
    assert len(rows_of(strip, 5)) == 7
    assert generate(model, data, tmp_path / "other", "--each-action") == 0  # five were recorded
    assert "action 0; action 1; " in " ".join(capsys.readouterr().out.split())


def test_two_models_start_from_one_frame_in_mid_air(
    tiny_world: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_untrained_world(tmp_path / "explored" / "model", 1, ACTIONS)
    flags = ["--mid-air", "--most-motion", "1", "--beside", str(other), "--start", "10"]
    assert generate(tiny_world, data, tmp_path, *flags) == 0
    assert "; explored" in capsys.readouterr().out
    episode = EpisodeReader(data)[0]
    jumps = jump_actions(episode.action_names)
    found = mid_air_frames(episode.actions, jumps, episode.frames_THWC, most_motion=1).tolist()
    start = next(frame for frame in found if frame >= 10)
    (strip,) = tmp_path.glob(f"*-{start:05d}-beside.png")
    real, *predicted = rows_of(strip, 4)
    assert (real == episode.frames_THWC[start : start + 4]).all()
    for model, row in zip((tiny_world, other), predicted, strict=True):
        assert (row[0] == real[0]).all()  # a single frame is given
        actions = episode.actions[start : start + 3]
        options = {"steps": 1, "mode": "autoregressive"}
        assert (row == predict(load_world_model(model), real[:1], actions, **options)).all()
    assert generate(tiny_world, data, tmp_path, *flags, "--each-action") == 0
    (strip,) = tmp_path.glob("*-actions-beside.png")
    assert len(rows_of(strip, 4)) == 2 * len(ACTIONS)


def test_starts_that_do_not_exist_and_models_that_do_not_fit_are_refused(
    tiny_world: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def complaint_of(model: Path, *flags: str, source: str = data) -> str:
        assert generate(model, source, tmp_path / "out", *flags) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    def complaint(*flags: str, source: str = data) -> str:
        return complaint_of(tiny_world, *flags, source=source)

    actions = np.zeros(70, np.uint8)
    walk = {"actions": ["right", "left", "none"]}
    with EpisodeWriter(tmp_path / "still") as writer:  # in the order of the names of the games
        writer.add(make_episode(actions=actions))
        writer.add(
            make_episode("b0", game="Corridor", actions=actions, info=walk, buttons=(1, 2, 0))
        )
    still = str(tmp_path / "still")
    assert "actions right, left, none is a jump" in complaint("--mid-air", source=still)
    line = complaint("--mid-air", "--episodes", "1", source=still)
    assert "episode 1 has no frame in mid-air between 0 and 67" in line
    assert "too few for --start 61" in complaint("--each-action", "--start", "61")
    gone = str(tmp_path / "gone")
    assert gone in complaint("--beside", gone)
    two = save_untrained_world(tmp_path / "two", 0, ("right", "jump+right"))
    assert "other actions" in complaint("--each-action", "--beside", str(two))
    odd = save_untrained_world(tmp_path / "odd", 0, ("right", "left", "up", "down", "jump+right"))
    assert "the episode has right, left, up, down, jump" in complaint_of(odd, "--each-action")
    assert "--context 0" in complaint("--each-action", "--context", "0")


def test_models_are_named_after_their_folders(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert model_labels([run / "models/base"]) == ["base"]
    assert model_labels([run / "model", tmp_path / "other"]) == ["run", "other"]
    assert model_labels([run / "base", tmp_path / "base"]) == ["model", "beside"]
    assert model_labels([tmp_path / "real"]) == ["model"]


def test_labels_are_drawn_beside_rows_and_above_panels() -> None:
    films = {name: np.full((3, 64, 64, 3), 200, np.uint8) for name in ("right", "jump right")}
    strip = labelled_strip(films, 2)
    assert (strip[:, -128:, :3][:128] == 200).all()
    column = strip[:, : strip.shape[1] - 3 * SIZE - 2 * GAP]
    for top in (0, SIZE + GAP):  # a name beside each row, dark around it, and a gap between
        label = column[top : top + SIZE, :-GAP, :3]
        assert label.max() > 200
        assert (label[0] == 24).all()
    assert (column[SIZE : SIZE + GAP, :, 3] == 0).all()
    panels = labelled_panels(films, 2)
    assert {panel.shape for panel in panels} == {(3, 64 * 2 + 32, 64 * 2, 3)}
    assert (panels[0][:, 32:] == 200).all()
    assert panels[0][0, :32].max() > 200
    (small,) = labelled_panels({"a name far too long for it": films["right"]}, 1)
    assert small.shape == (3, 64 + 18, 64, 3)

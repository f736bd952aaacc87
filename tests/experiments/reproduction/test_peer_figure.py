"""Figure 20: the window for another model, its predictions and what is wrong with bad ones.

The other model is a small one of this project, whose predictions are written as pictures.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from envs.controls import ACTIONS
from envs.episodes.dataset import EpisodeReader
from envs.utils.errors import InputError
from envs.utils.images import Frames
from experiments.__main__ import execute
from experiments.pipeline.runner import StageContext
from experiments.reports.images import predict
from experiments.reproduction.arguments import reproduction_preset
from experiments.reproduction.figures import PREDICTED, most_moving
from experiments.reproduction.make import item_stages
from experiments.reproduction.peer_figure import export_strip_window
from tests.envs.games.test_coinrun import needs_game
from tests.fixtures.datasets import record
from tests.fixtures.worlds import save_untrained_world
from worldmodel import GenieReduxG
from worldmodel.config import CONTEXT
from worldmodel.models.genie import load_world_model

CONFIG = replace(reproduction_preset("debug", ("CoinRun",)), games=("Counting",))


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    """Return the context of figure 20 with a recorded test set."""
    stages = {stage.name: stage for stage in item_stages("figure20", CONFIG, "deep")}
    record(tmp_path / stages["data-basic-Counting"].output, episodes=2, steps=30)
    figure = stages["figure20"]
    context = StageContext(tmp_path, CONFIG, out=tmp_path / figure.output, resume=False)
    context.stages = stages
    return context


def read_pictures(window: Path, kind: str, count: int) -> Frames:
    """Return the numbered pictures of a window as frames."""
    files = [window / f"{kind}-{k:03d}.png" for k in range(count)]
    return np.stack([np.asarray(Image.open(file)) for file in files])


def write_pictures(window: Path, frames_FHWC: Frames) -> None:
    """Write predicted frames into the folder of a window."""
    window.mkdir(parents=True, exist_ok=True)
    for k, frame in enumerate(frames_FHWC):
        Image.fromarray(frame).save(window / f"frame-{k:03d}.png")


def predict_window(window: Path, model: GenieReduxG) -> Frames:
    """Do what another project has to: predict the frames of a window from what is in its folder."""
    described = json.loads((window / "window.json").read_text())
    given = read_pictures(window, "given", described["context"])
    made = predict(model, given, np.array(described["actions"]), steps=1)[len(given) :]
    write_pictures(window, made)
    return made


def draw(context: StageContext, *peers: Path) -> list[str]:
    """Draw the figure of folders of predictions, and return its lines."""
    stage = item_stages("figure20", CONFIG, "deep", peers)[-1]
    return list(stage.run(context)["lines"])


def test_the_predictions_of_another_model_are_drawn(context: StageContext, tmp_path: Path) -> None:
    windows = tmp_path / "windows"
    window = export_strip_window(windows, context, CONFIG)
    shown = most_moving(EpisodeReader(context.path("data-basic-Counting")), "Counting")
    real = shown.frames_THWC
    assert window == windows / shown.episode.session_id / str(shown.start)
    assert np.array_equal(read_pictures(window, "given", CONTEXT), real[:CONTEXT])
    assert np.array_equal(read_pictures(window, "truth", PREDICTED), real[CONTEXT:])
    actions = json.loads((window / "window.json").read_text())["actions"]
    assert actions == shown.actions.tolist()

    model = load_world_model(save_untrained_world(tmp_path / "model"))
    assert isinstance(model, GenieReduxG)
    made = predict_window(window, model)
    (line,) = draw(context, windows)
    error = (made.astype(float) - real[CONTEXT:]) / 255
    expected = (-10 * np.log10((error**2).mean((1, 2, 3)))).mean()
    assert f"from above real, Jafar; PSNR: Jafar {expected:.2f} dB" in line
    assert (context.out / "motion.gif").exists()

    # A second folder, without the window's description: what is made with the real frames at hand.
    write_pictures(tmp_path / "given" / window.relative_to(windows), real[CONTEXT:])
    (line,) = draw(context, windows, tmp_path / "given")
    assert "from above real, Jafar, Jafar, real frames given;" in line
    with Image.open(context.out / "motion.png") as picture:
        assert picture.height > 3 * 64 * 3


def test_other_predictions_make_another_figure(context: StageContext, tmp_path: Path) -> None:
    window = export_strip_window(tmp_path / "windows", context, CONFIG)
    settings = []
    for grey in (10, 20):
        write_pictures(window, np.full((PREDICTED, 64, 64, 3), grey, np.uint8))
        settings.append(item_stages("figure20", CONFIG, "deep", (tmp_path / "windows",))[-1])
    assert settings[0].settings != settings[1].settings


def test_bad_predictions_are_refused(context: StageContext, tmp_path: Path) -> None:
    windows = tmp_path / "windows"
    window = export_strip_window(windows, context, CONFIG)
    black = np.zeros((PREDICTED, 64, 64, 3), np.uint8)

    write_pictures(window, black[:-1])
    with pytest.raises(InputError, match=r"frame-009.png is missing"):
        draw(context, windows)
    write_pictures(window, black)
    assert draw(context, windows)
    Image.new("RGB", (32, 32)).save(window / "frame-004.png")
    with pytest.raises(InputError, match=r"frame-004.png: expected 64x64 pixels, got 32x32"):
        draw(context, windows)
    (window / "frame-004.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"frame-004.png: no picture"):
        draw(context, windows)

    # Predictions of other windows alone, and of a window of the same name in other data.
    write_pictures(tmp_path / "others" / window.parent.name / "999", black)
    with pytest.raises(InputError, match=r"frame-000.png is missing"):
        draw(context, tmp_path / "others")
    write_pictures(window, black)
    described = json.loads((window / "window.json").read_text())
    described["actions"][0] = (described["actions"][0] + 1) % len(ACTIONS)
    (window / "window.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=r"window.json: was written for other given frames or"):
        draw(context, windows)
    for broken in ("{", "[]", '{"context": 2}'):
        (window / "window.json").write_text(broken)
        with pytest.raises(InputError, match=r"window.json: describes no window"):
            draw(context, windows)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["figure20"], "figure20 needs --peer DIR, which holds frame-000.png to frame-009.png"),
        (["figure20"], "--preset debug --out OUT --export-windows DIR` writes"),
        (["figure20", "--peer", "nothing"], "--peer nothing: no such folder"),
        (["figure20", "--peer", ".", "--export-windows", "windows"], "or one or two folders"),
        (["figure20", "--peer", ".", ".", "."], "one or two folders"),
        (["figure20", "--peer", ".", "--seeds", "0", "1"], "give one to --seeds"),
        (["figure21", "--peer", "."], "figure21 needs no --peer"),
        (["table7", "--export-windows", "windows"], "table7 needs no --peer"),
    ],
)
def test_bad_flags_of_predictions_are_refused(
    argv: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "OUT"
    assert execute(["reproduce", *argv, "--preset", "debug", "--out", str(out)]) == 2
    printed = capsys.readouterr().err.replace(str(out), "OUT")
    assert words in " ".join(printed.split())
    assert not out.exists()


@needs_game
@pytest.mark.slow
def test_from_the_game_to_the_picture(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--preset", "debug", "--out", str(tmp_path / "out")]
    windows = tmp_path / "windows"
    assert execute(["reproduce", "figure20", *out, "--export-windows", str(windows)]) == 0
    assert "written:" in capsys.readouterr().out
    (described,) = windows.glob("*/*/window.json")
    truth = read_pictures(described.parent, "truth", PREDICTED)
    write_pictures(described.parent, 255 - truth)
    assert execute(["reproduce", "figure20", *out, "--peer", str(windows)]) == 0
    assert "from above real, Jafar; PSNR: Jafar" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "out/seed-0/figures/figure20/motion.png").exists()

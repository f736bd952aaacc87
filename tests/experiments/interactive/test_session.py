"""Playing in a learned world: keys through the real window and loop, GIFs, actions, bad input.

SDL's driver `dummy` replaces the screen; events and pictures are real.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pygame
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from envs.controls import ACTIONS
from envs.episodes.dataset import EpisodeReader
from envs.utils.errors import InputError
from experiments.__main__ import execute
from experiments.interactive.session import World, parse_actions
from experiments.interactive.window import display
from experiments.interactive.window import play as show
from experiments.reports.images import at_scale
from tests.fixtures.datasets import record
from worldmodel import (
    ActionMap,
    Dynamics,
    GenieRedux,
    LatentActionModel,
    Tokenizer,
    WorldModelEnv,
    load_world_model,
    preset,
)
from worldmodel.models.upscaler import Upscaler, upscaler_config

RIGHT, LEFT, UP, DOWN, JUMP = range(5)
HELD = 4
"""Number of frames for which the test holds a key."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two Counting episodes, of 13 and 14 frames in either order."""
    return record(tmp_path_factory.mktemp("play") / "data", episodes=2, steps=12)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record the calls of the env: "reset", or an action."""
    happened: list[Any] = []
    reset, step = WorldModelEnv.reset, WorldModelEnv.step

    def watched_reset(env: WorldModelEnv, **options: Any) -> Any:
        happened.append("reset")
        return reset(env, **options)

    def watched_step(env: WorldModelEnv, action: np.int64) -> Any:
        happened.append(int(action))
        return step(env, action)

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(WorldModelEnv, "reset", watched_reset)
    monkeypatch.setattr(WorldModelEnv, "step", watched_step)
    return happened


def press(*keys: int, release: bool = True) -> None:
    for key in keys:
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key))
        if release:
            pygame.event.post(pygame.event.Event(pygame.KEYUP, key=key))


def when(monkeypatch: pytest.MonkeyPatch, frames: dict[int, Any]) -> list[NDArray[np.uint8]]:
    """Call frames[n] when the window has been drawn n times; return its pictures, (H, W, 3)."""
    flip, shown = pygame.display.flip, []

    def drawn() -> None:
        flip()
        shown.append(pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1))
        frames.get(len(shown), lambda: None)()

    monkeypatch.setattr(pygame.display, "flip", drawn)
    return shown


def play(model: Path, data: str, out: Path, *flags: str) -> int:
    paths = [str(model), "--data", data, "--out", str(out)]
    return execute(["play", *paths, "--fps", "240", "--scale", "4", *flags])


def test_each_key_is_an_action_and_backspace_starts_again(
    tiny_world: Path, data: str, tmp_path: Path, seen: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys() -> None:
        press(pygame.K_RIGHT, pygame.K_LEFT, pygame.K_UP, pygame.K_DOWN)
        press(pygame.K_SPACE, pygame.K_x, pygame.K_q)
        press(pygame.K_BACKSPACE, pygame.K_LEFT, pygame.K_ESCAPE, pygame.K_UP)

    shown = when(monkeypatch, {1: keys})
    assert play(tiny_world, data, tmp_path / "out", "--episode", "1", "--start", "5") == 0
    assert seen == ["reset", RIGHT, LEFT, UP, DOWN, JUMP, JUMP, "reset", LEFT]
    given = EpisodeReader(data)[1].frames_THWC[6].repeat(4, 0).repeat(4, 1)
    assert np.array_equal(shown[0][:256], given)  # squares, nothing smoothed
    # One picture before the keys, and one after each, also after a key without a meaning.
    again = seen.index("reset", 1)
    assert np.array_equal(shown[again + 1][:256], given)
    assert not np.array_equal(shown[again + 2][:256], given)
    assert not (tmp_path / "out").exists()


def test_a_held_key_goes_on_the_newest_counts_and_without_one_the_world_waits(
    tiny_world: Path, data: str, tmp_path: Path, seen: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def let_go(key: int) -> None:
        pygame.event.post(pygame.event.Event(pygame.KEYUP, key=key))

    def stop() -> None:
        pygame.event.post(pygame.event.Event(pygame.QUIT))

    moments = {
        3: lambda: press(pygame.K_RIGHT, release=False),
        3 + HELD: lambda: press(pygame.K_SPACE, release=False),
        3 + 2 * HELD: lambda: let_go(pygame.K_SPACE),
        3 + 3 * HELD: lambda: let_go(pygame.K_RIGHT),
        3 + 5 * HELD: stop,
    }
    when(monkeypatch, moments)
    assert play(tiny_world, data, tmp_path) == 0
    assert seen == ["reset", *[RIGHT] * HELD, *[JUMP] * HELD, *[RIGHT] * HELD]


def test_idle_goes_on_without_a_key(
    tiny_world: Path, data: str, tmp_path: Path, seen: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    when(monkeypatch, {3: lambda: press(pygame.K_ESCAPE)})
    assert play(tiny_world, data, tmp_path, "--default-action", "up") == 0
    assert seen == ["reset", UP, UP, UP]


def test_recordings_and_the_map_of_uncertainty(
    tiny_world: Path, data: str, tmp_path: Path, seen: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys() -> None:
        press(pygame.K_RIGHT, pygame.K_r, pygame.K_RIGHT, pygame.K_UP, pygame.K_r)
        press(pygame.K_u, pygame.K_u, pygame.K_r, pygame.K_DOWN, pygame.K_ESCAPE)

    shown = when(monkeypatch, {1: keys})
    assert play(tiny_world, data, tmp_path) == 0
    first, second = sorted(tmp_path.iterdir())  # the second ended with the window
    assert first.name == f"Counting-{EpisodeReader(data).session_ids[0]}-00000-0.gif"
    counts = [Image.open(path).n_frames for path in (first, second)]  # type: ignore[attr-defined]
    assert counts == [3, 2]
    before, uncertainty, after = (picture[:256] for picture in shown[5:8])
    assert np.array_equal(before, after)
    assert not np.array_equal(before, uncertainty)


def test_uncertainty_is_computed_only_of_frames_under_its_map(
    tiny_world: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model scores one window for each frame while the map is shown, and none before."""
    model = load_world_model(tiny_world)
    scored: list[int] = []
    query = type(model).future_token_entropy

    def counted(model: Any, frames: Any, *given: Any, **options: Any) -> Any:
        scored.append(len(frames))
        return query(model, frames, *given, **options)

    monkeypatch.setattr(type(model), "future_token_entropy", counted)
    episode = EpisodeReader(data)[0]
    given, actions = episode.frames_THWC[:2], episode.actions[:1]
    world = World(model, given, actions, game="Counting", name=tmp_path / "film")
    world.start_recording()
    for _ in range(3):
        world.step(RIGHT)
        world.picture()
    world.restart()
    assert scored == []
    world.uncertainty = True
    assert np.array_equal(world.picture(), world.frame), "a given frame has none"
    for steps in (1, 2):
        world.step(RIGHT)
        world.picture()  # as often as it is drawn
        world.picture()
        assert scored == [1] * steps
    world.uncertainty = False
    world.step(RIGHT)
    world.picture()
    world.end_recording()
    assert scored == [1, 1]


def test_a_script_needs_no_window(
    tiny_world: Path, data: str, tmp_path: Path, seen: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    assert play(tiny_world, data, tmp_path, "--actions", "r3 jl", "--uncertainty") == 0
    assert seen == ["reset", RIGHT, RIGHT, RIGHT, JUMP, LEFT]
    (path,) = tmp_path.glob("*.gif")
    assert Image.open(path).n_frames == 6  # type: ignore[attr-defined]
    assert play(tiny_world, data, tmp_path, "--actions", "u") == 0
    assert len(list(tmp_path.glob("*.gif"))) == 2  # no GIF is overwritten


def test_a_genie_redux_is_played_through_its_action_map(
    data: str, tmp_path: Path, seen: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = preset("debug").with_latent_actions()
    model = GenieRedux(Tokenizer(cfg), LatentActionModel(cfg), Dynamics(cfg))
    model.save(tmp_path / "unmapped")
    assert play(tmp_path / "unmapped", data, tmp_path / "out", "--actions", "r") == 2
    assert "fit one with `autoexplore export`" in capsys.readouterr().err
    model.action_map = ActionMap({"Counting": np.eye(5, cfg.actions, dtype=np.int64)})
    model.save(tmp_path / "mapped")
    assert play(tmp_path / "mapped", data, tmp_path / "out", "--actions", "rj") == 0
    assert seen == ["reset", RIGHT, JUMP]


def test_an_upscaler_draws_frames_four_times_as_large(
    tiny_world: Path, tmp_path: Path, seen: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = np.random.default_rng(0).integers(256, size=(2, 64, 64, 3), dtype=np.uint8)
    torch.manual_seed(0)
    upscaler = Upscaler(upscaler_config("debug")).eval()
    world = World(
        load_world_model(tiny_world),
        given,
        np.array([RIGHT]),
        game="A",
        name=tmp_path / "a",
        upscaler=upscaler,
    )
    shown = when(
        monkeypatch, {1: lambda: press(pygame.K_r, pygame.K_UP, pygame.K_u, pygame.K_ESCAPE)}
    )
    with display() as opened:
        show(opened, world, scale=4, fps=240, default_action=None)
    assert world.picture().shape == (256, 256, 3)
    (first,) = at_scale(given[1:], upscaler, 4)[0]
    assert np.array_equal(shown[0][:256], first)
    assert not np.array_equal(first, given[1].repeat(4, 0).repeat(4, 1))
    assert Image.open(tmp_path / "a-0.gif").size == (256, 256 + 4)


def test_scripts() -> None:
    names = [ACTIONS[action] for action in parse_actions("R2 u dJ")]
    assert names == ["right", "right", "up", "down", "jump"]
    for bad in ("", "r0", "3r", "x", "r1000"):
        with pytest.raises(InputError, match="--actions"):
            parse_actions(bad)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--episode", "2"], "holds episodes 0 to 1"),
        (["--start", "13"], "frames, so choose 0 to 1"),
        (["--start", "-1"], "--start -1"),
        (["--fps", "0"], "--fps 0: expected 1 to 240"),
        (["--temperature", "-1"], "--temperature"),
        (["--upscaler", "gone"], "upscaler gone does not exist"),
        (["--actions", "r r z"], "e.g. r8jr4"),
    ],
)
def test_bad_flags_are_one_line(
    tiny_world: Path,
    data: str,
    tmp_path: Path,
    seen: list[Any],
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    assert play(tiny_world, data, tmp_path, *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not seen


def test_no_model_no_pygame_no_screen_are_one_line(
    tiny_world: Path,
    data: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def complaint(model: Path) -> str:
        assert play(model, data, tmp_path) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    assert "not a saved model" in complaint(Path(data))
    assert "does not exist" in complaint(tmp_path / "gone")
    monkeypatch.setenv("SDL_VIDEODRIVER", "none-such")
    assert "no display to open a window on" in complaint(tiny_world)
    monkeypatch.setitem(sys.modules, "pygame", None)
    assert 'pip install "autoexplore[play]"' in complaint(tiny_world)

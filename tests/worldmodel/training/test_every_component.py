"""Training of each component on each kind of codebook, and of each recipe of preset `paper`."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import envs
from envs.collect.policies import RandomPolicy
from envs.collect.worker import EpisodeKey, play_episode
from envs.episodes.dataset import EpisodeWriter
from envs.utils.run_dir import read_metrics
from worldmodel import checkpoint
from worldmodel.config import preset
from worldmodel.loading import load_dynamics, load_lam, load_tokenizer, load_upscaler
from worldmodel.models.upscaler import SHAPES
from worldmodel.training.config import RECIPES, train_preset
from worldmodel.training.train import TrainingRun, train

LOADERS: dict[str, Callable[[Path], Any]] = {
    "tokenizer": load_tokenizer,
    "lam": load_lam,
    "dynamics": load_dynamics,
    "upscaler": load_upscaler,
}

DEBUG, PAPER = preset("debug"), preset("paper")
THREE_STEPS: dict[str, Any] = {"iterations": 3, "log_every": 1}
TWO_STEPS: dict[str, Any] = {
    "iterations": 2,
    "log_every": 1,
    "batch_size": 1,
    "validation_clips": 1,
}

SIZE = 16
"""Frame size in the runs of preset `paper` instead of 64: 16 patches instead of 256. On processors
without bf16 products a step of one block at 64 pixels takes half a minute."""
ONE_BLOCK = dataclasses.replace(
    PAPER,
    size=SIZE,
    tokenizer=dataclasses.replace(PAPER.tokenizer, encoder_blocks=1, decoder_blocks=1),
    lam=dataclasses.replace(PAPER.lam, encoder_blocks=1, decoder_blocks=1),
    dynamics=dataclasses.replace(PAPER.dynamics, blocks=1),
)


def record(folder: Path, size: int) -> str:
    """Record the same random episodes at a frame size and return the folder."""
    with EpisodeWriter(folder) as writer:
        env = envs.make("Counting", size=size)
        for episode in range(3):
            session = EpisodeKey("Counting", "random", 0, episode)
            writer.add(play_episode(env, RandomPolicy(), session, steps=10))
        env.close()
    return str(folder)


def check_run(run: Path, steps: int, *components: str) -> None:
    """Check that the metrics of each step are finite and that the last checkpoint loads."""
    lines = read_metrics(run)
    trained = [line["step"] for line in lines if "train/loss" in line]
    assert trained == list(range(1, steps + 1))
    assert any("validation/loss" in line for line in lines)
    for line in lines:
        assert all(math.isfinite(value) for value in line.values()), line
    assert checkpoint.open_checkpoint(run).step == steps
    for component in components:
        LOADERS[component](run)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return record(tmp_path_factory.mktemp("debug") / "data", DEBUG.size)


@pytest.fixture(scope="module", params=["ema", "gradient"])
def debug_run(request: pytest.FixtureRequest, data: str) -> Callable[[str, str], Path]:
    """Function that trains a component of preset `debug` for three steps with a codebook type."""
    codebook = request.param
    config = dataclasses.replace(
        DEBUG,
        tokenizer=dataclasses.replace(DEBUG.tokenizer, codebook=codebook),
        lam=dataclasses.replace(DEBUG.lam, codebook=codebook),
    )

    @functools.cache
    def run(component: str, actions: str) -> Path:
        out = Path(data).parent / f"{component}-{actions}-{codebook}"
        train(
            TrainingRun(
                component,
                config,
                train_preset(component, "debug", **THREE_STEPS),
                [data],
                out,
                tokenizer=run("tokenizer", "recorded") if component == "dynamics" else None,
                lam=run("lam", "recorded") if actions == "frozen" else None,
                joint_lam=actions == "joint",
            )
        )
        return out

    return run


@pytest.mark.parametrize(
    ("component", "actions"),
    [
        ("tokenizer", "recorded"),
        ("lam", "recorded"),
        ("dynamics", "recorded"),
        ("dynamics", "frozen"),
        ("dynamics", "joint"),
    ],
)
def test_a_component_trains_on_each_kind_of_codebook(
    component: str, actions: str, debug_run: Callable[[str, str], Path]
) -> None:
    """`actions` of the dynamics: recorded, or those of a frozen or jointly trained LAM."""
    loaded = [component, "lam"] if actions == "joint" else [component]
    check_run(debug_run(component, actions), 3, *loaded)


def test_an_upscaler_trains(data: str, tmp_path: Path) -> None:
    train(
        TrainingRun(
            "upscaler",
            DEBUG,
            train_preset("upscaler", "debug", **THREE_STEPS),
            [data],
            tmp_path / "run",
            pairs=record(tmp_path / "pairs", 4 * DEBUG.size),
        )
    )
    check_run(tmp_path / "run", 3, "upscaler")


@pytest.fixture(scope="module")
def paper_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Function that trains a recipe of preset `paper`, and those it starts from, for two steps."""
    folder = tmp_path_factory.mktemp("paper")
    data, pairs = record(folder / "data", SIZE), record(folder / "pairs", 4 * SIZE)

    @functools.cache
    def run(component: str, name: str) -> Path:
        recipe = RECIPES[component][name]
        out = folder / f"{component}-{name}"
        length = 1 if component == "upscaler" else 2
        train(
            TrainingRun(
                component,
                ONE_BLOCK,
                train_preset(component, "paper", name, clip_length=length, **TWO_STEPS),
                [data],
                out,
                init=run(component, next(iter(RECIPES[component]))) if recipe.needs_init else None,
                tokenizer=run("tokenizer", "base") if component == "dynamics" else None,
                decoder_only=recipe.decoder_only,
                pairs=pairs if component == "upscaler" else None,
            )
        )
        return out

    return run


@pytest.mark.parametrize(
    ("component", "name"),
    [(component, name) for component in RECIPES for name in RECIPES[component]],
)
def test_a_recipe_of_the_paper_trains(
    component: str,
    name: str,
    paper_run: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Published sizes, objective and precision, but one block per stack and two frames per clip."""
    for shape in ("small", "large"):
        # All levels with an eighth of the channels: the full large net takes almost a minute per
        # bf16 step even at this size, and its checkpoint has 1.5 GB.
        widths = tuple(width // 8 for width in SHAPES[shape].widths)
        shrunk = dataclasses.replace(SHAPES[shape], size=SIZE, widths=widths)
        monkeypatch.setitem(SHAPES, shape, shrunk)
    check_run(paper_run(component, name), 2, component)

"""Checks of all that runs on a GPU, made on the stand-in device: nothing mixes devices, and results
are the CPU's.

`test_stand_in_device.py` runs this file in a process of its own.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from recordings import record
from torch.testing import assert_close

from envs.episodes import EpisodeReader, EpisodeWriter
from envs.runs import read_metrics
from exploration.scorers import LocalScorer
from stand_in_device import register
from worldmodel import (
    ActionMap,
    Dynamics,
    GenieRedux,
    GenieReduxG,
    LatentActionModel,
    Tokenizer,
    WorldModel,
    WorldModelConfig,
    WorldModelEnv,
    load_world_model,
    preset,
)
from worldmodel.checkpoint import open_checkpoint
from worldmodel.clips import Clips
from worldmodel.evaluate import evaluate
from worldmodel.job import Job
from worldmodel.metrics import delta_psnr, estimate
from worldmodel.train import build_objective, open_data, recipe
from worldmodel.trainer import Trainer
from worldmodel.transformer import Stack
from worldmodel.uncertainty import score_windows
from worldmodel.upscaler import SHAPES, Upscaler

CPU, DEVICE = DEVICES = torch.device("cpu"), register()
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
"""Attention is written by hand for the CPU, and torch's elsewhere: they round differently."""
DEBUG = preset("debug")
LATENT = DEBUG.with_latent_actions()
Models = dict[str, Path]


def loud(module: Any) -> Any:
    """Give a module weights whose outputs depend on everything, and return it."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return record(tmp_path_factory.mktemp("data") / "small", episodes=3, steps=14)


@pytest.fixture(scope="module")
def large(data: str) -> str:
    """The same episodes, each pixel as four by four."""
    folder, episodes = Path(data).with_name("large"), EpisodeReader(data)
    with EpisodeWriter(folder) as writer:
        writer.copy_plan(episodes, {"size": 256})
        for episode in episodes:
            frames = episode.frames_THWC.repeat(4, axis=1).repeat(4, axis=2)
            writer.add(dataclasses.replace(episode, frames_THWC=frames))
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Folders of untrained world models: on real actions, and on latent ones."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tokenizer, lam = Tokenizer(DEBUG), loud(LatentActionModel(DEBUG))
    action_map = ActionMap({"Counting": np.random.default_rng(0).integers(9, size=(5, 7))})
    GenieReduxG(tokenizer, loud(Dynamics(DEBUG))).save(folder / "real")
    GenieRedux(tokenizer, lam, loud(Dynamics(LATENT)), action_map).save(folder / "latent")
    return {name: folder / name for name in ("real", "latent")}


@pytest.fixture(params=["real", "latent"])
def pair(request: pytest.FixtureRequest, models: Models) -> tuple[WorldModel, WorldModel]:
    """One model on both devices, driven by buttons."""
    folder = models[request.param]
    here, there = (load_world_model(folder, device).for_game("Counting") for device in DEVICES)
    assert {parameter.device for parameter in there.parameters()} == {DEVICE}
    return here, there


def clips(batch: int, frames: int, actions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw frames and actions."""
    noise = torch.Generator().manual_seed(0)
    frames_BTCHW = torch.rand(batch, frames, 3, 64, 64, generator=noise)
    return frames_BTCHW, torch.randint(5, (batch, actions), generator=noise)


def stored(frames_BTCHW: torch.Tensor) -> NDArray[np.uint8]:
    """Return frames in the form in which they are recorded."""
    return (frames_BTCHW * 255).byte().movedim(2, -1).numpy()


# The device itself


def test_it_refuses_what_a_gpu_refuses() -> None:
    here, there = torch.arange(3.0), torch.arange(3.0, device=DEVICE)
    for mix in (
        lambda: there + here,
        lambda: there.dot(here),
        lambda: torch.stack([there[0], here[0]]),
        lambda: there.index_add(0, torch.arange(3), there),
        lambda: torch.rand(3, generator=torch.Generator(), device=DEVICE),
        lambda: torch.rand(3, generator=torch.Generator(DEVICE)),
    ):
        with pytest.raises(RuntimeError, match="device"):
            mix()
    with pytest.raises(TypeError, match="to numpy"):
        there.numpy()


def test_it_takes_what_a_gpu_takes() -> None:
    """Numbers and places of the CPU. Its noise is that of a CPU generator with the same seed."""
    there = torch.arange(3.0, device=DEVICE)
    assert (there * torch.tensor(2.0))[torch.tensor([2, 0])].tolist() == [4, 0]
    noise = [torch.Generator(device).manual_seed(1) for device in DEVICES]
    drawn = [torch.rand(3, generator=generator, device=generator.device) for generator in noise]
    assert drawn[0].tolist() == drawn[1].tolist()


# Training


@dataclass(frozen=True)
class Run:
    """A training run: changes to its recipe, its job's own options, and its configuration."""

    component: str
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)
    job: dict[str, str] = dataclasses.field(default_factory=dict)
    config: WorldModelConfig = DEBUG


def with_codes(**changes: Any) -> WorldModelConfig:
    """Return the configuration with changes to the tokenizer's codebook."""
    return dataclasses.replace(DEBUG, tokenizer=dataclasses.replace(DEBUG.tokenizer, **changes))


def published_objective() -> WorldModelConfig:
    """Return the configuration with the published way to mask tokens."""
    dynamics = dataclasses.replace(DEBUG.dynamics, objective="masked")
    return dataclasses.replace(DEBUG, dynamics=dynamics)


UNCACHED = {"token_cache": False}
FROZEN = {"tokenizer": "latent", "lam": "latent"}
JOINT = {"tokenizer": "latent", "joint_lam": "yes"}
RUNS = {
    "tokenizer": Run("tokenizer"),
    "dead codes": Run("tokenizer", config=with_codes(reseed_below=1.0)),
    "learnt codes": Run("tokenizer", config=with_codes(reseed_below=1.0, codebook="gradient")),
    "decoder alone": Run("tokenizer", {}, {"init": "real", "decoder_only": "yes"}),
    "lam": Run("lam"),
    "labelled lam": Run("lam", {"labels": 0.5}),
    "dynamics": Run("dynamics", UNCACHED, {"tokenizer": "real"}),
    "cached dynamics": Run("dynamics", {}, {"tokenizer": "real"}, published_objective()),
    "dynamics with frozen lam": Run("dynamics", UNCACHED, FROZEN, LATENT),
    "cached dynamics with frozen lam": Run("dynamics", {}, FROZEN, LATENT),
    "dynamics and lam": Run("dynamics", {}, JOINT, LATENT),
    "upscaler": Run("upscaler", {}, {"pairs": "large"}),
}


class Training:
    """Runs of a few steps, each with metrics and validation, an EMA and checkpoints."""

    USUAL: ClassVar = {
        "iterations": 3,
        "warmup": 1,
        "clip_stride": 8,
        "log_every": 1,
        "validate_every": 1,
        "ema": 0.5,
    }

    def __init__(self, data: str, large: str, models: Models, folder: Path) -> None:
        self.data, self.folder = data, folder
        self.values = {"yes": True, "large": large, **models}

    def train(
        self,
        run: Run,
        device: torch.device,
        stops: tuple[int, ...] = (3,),
        **changes: Any,
    ) -> Path:
        """Train to step 3, in parts that end after `stops`, and return the run's folder."""
        plan = recipe(run.component, "debug", **{**self.USUAL, **run.recipe, **changes})
        out, cache = self.folder / f"on {device.type}", self.folder / f"cache of {device.type}"
        options: dict[str, Any] = {key: self.values[value] for key, value in run.job.items()}
        job = Job(run.component, run.config, plan, (self.data,), out, cache, **options)
        for step in stops:
            self._train_to(step, job, device)
        assert open_checkpoint(out).step == 3
        assert bool([*cache.glob("tokens-*")]) == ("tokenizer" in options and plan.token_cache)
        return out

    @staticmethod
    def _train_to(step: int, job: Job, device: torch.device) -> None:
        """Go on from the newest checkpoint, where there is one, to a checkpoint of `step`."""
        objective = build_objective(job, device)
        for module in objective.model.modules():
            if isinstance(module, Stack):
                module.recompute = job.recipe.recompute
        data = open_data(job, objective, device)

        def stop() -> bool:
            return trainer.step + 1 == step

        trainer = Trainer(job, objective, *data, device=device, stop=stop)
        trainer.train()


@pytest.fixture
def training(data: str, large: str, models: Models, tmp_path: Path) -> Training:
    return Training(data, large, models, tmp_path)


@pytest.mark.parametrize("name", RUNS)
def test_training_and_resuming_give_what_the_cpu_gives(name: str, training: Training) -> None:
    run = RUNS[name]
    here, there = training.train(run, CPU), training.train(run, DEVICE, stops=(1, 3))
    for kind in ("weights", "average", "optimizer_tensors"):
        wanted, made = (getattr(open_checkpoint(out), kind)() for out in (here, there))
        assert_close(made, wanted, **CLOSE)
    rows = [[without_speed(row) for row in read_metrics(out)] for out in (here, there)]
    assert {"train/lr", "train/loss", "validation/loss"} <= set().union(*rows[0])
    for wanted, made in zip(*rows, strict=True):
        assert made == pytest.approx(wanted, rel=1e-3, abs=1e-3)


def test_training_in_half_precision_that_computes_parts_again(training: Training) -> None:
    run = RUNS["dynamics and lam"]
    here = training.train(run, CPU)
    there = training.train(run, DEVICE, precision="bf16", recompute=True)
    rows = ([row for row in read_metrics(out) if "train/loss" in row] for out in (here, there))
    exact, half = ([row["train/loss"] for row in of_run] for of_run in rows)
    assert half == pytest.approx(exact, rel=0.01)
    assert half != exact


def without_speed(row: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a line of metrics that do not depend on the clock."""
    speed = ("time", "seconds_left", "_per_second", "data_wait", "utilisation")
    return {name: value for name, value in row.items() if not name.endswith(speed)}


# Models


@pytest.mark.parametrize("mode", ["one_pass", "autoregressive"])
def test_generation_past_the_window(pair: tuple[WorldModel, WorldModel], mode: str) -> None:
    given, actions = clips(2, 2, 11)
    made = []
    for model, device in zip(pair, DEVICES, strict=True):
        noise = torch.Generator(device).manual_seed(3)
        inputs = given.to(device), actions.to(device)
        made.append(model.generate(*inputs, steps=3, mode=mode, generator=noise))
    assert made[1].device == DEVICE
    assert_close(made[1].cpu(), made[0], **CLOSE)


@pytest.mark.parametrize("steps", [1, 3])
def test_uncertainty(pair: tuple[WorldModel, WorldModel], steps: int) -> None:
    frames, actions = clips(3, 5, 4)
    here, there = (
        model.token_entropy(frames.to(device), actions.to(device), steps=steps)
        for model, device in zip(pair, DEVICES, strict=True)
    )
    assert_close(there.cpu(), here, **CLOSE)
    windows = stored(frames), actions.numpy()
    scores = [score_windows(model, *windows, steps=steps, batch=2) for model in pair]
    np.testing.assert_allclose(scores[1], scores[0], **CLOSE)


def test_the_local_scorer(models: Models) -> None:
    frames, actions = clips(2, 5, 4)
    scorers = [LocalScorer(models["real"], device=str(device)) for device in DEVICES]
    here, there = (scorer.entropies(stored(frames), actions.numpy()) for scorer in scorers)
    np.testing.assert_allclose(there, here, **CLOSE)


def test_a_model_is_saved_from_the_device_and_loaded_onto_it(
    models: Models,
    tmp_path: Path,
) -> None:
    for name, folder in models.items():
        load_world_model(folder, DEVICE).save(tmp_path / name)
        again = load_world_model(tmp_path / name, DEVICE).state_dict()
        for key, value in load_world_model(folder).state_dict().items():
            assert again[key].device == DEVICE
            assert torch.equal(again[key].cpu(), value)


def test_playing(pair: tuple[WorldModel, WorldModel]) -> None:
    draw = np.random.default_rng(0)
    start = draw.integers(256, size=(3, 2, 64, 64, 3), dtype=np.uint8)
    films = []
    for model in pair:
        env = WorldModelEnv(model, start, steps=2, temperature=1.0)
        film = [env.reset(seed=0)[0], *(env.step(np.int64(action))[0] for action in range(5))]
        films.append(np.stack(film).astype(int))
    np.testing.assert_allclose(*films, atol=1)  # one grey level, by rounding


def test_statistics() -> None:
    values, groups = torch.arange(6.0), torch.arange(6) // 2
    for given in ((values,), (values, groups)):
        here, there = (estimate(*(value.to(device) for value in given)) for device in DEVICES)
        assert (there.mean, there.low, there.high) == (here.mean, here.low, here.high)


def test_controllability(pair: tuple[WorldModel, WorldModel]) -> None:
    given = (*clips(3, 6, 5), torch.tensor([0, 0, 1]))
    found = []
    for model, device in zip(pair, DEVICES, strict=True):
        frames, actions, groups = (value.to(device) for value in given)
        delta = delta_psnr(model, frames, actions, steps=2, groups_B=groups)
        found.append((delta.mean, delta.low, delta.high))
    assert all(found[0])
    assert found[1] == pytest.approx(found[0], abs=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation(models: Models, data: str, tmp_path: Path, precision: str) -> None:
    """Every figure, the Frechet distance among them."""
    options = {"horizon": 4, "steps": 2, "limit": 2, "precision": precision, "cache_dir": tmp_path}
    loaded = [load_world_model(models["real"], device) for device in DEVICES]
    here, there = (numbers(evaluate(model, [data], **options)) for model in loaded)
    assert there.keys() == here.keys()
    if precision == "fp32":
        assert there == pytest.approx(here, rel=1e-3, abs=1e-3)


def numbers(tree: Any, path: str = "") -> dict[str, float]:
    """Return the numbers in JSON data by their paths."""
    if not isinstance(tree, dict | list):
        return {path: tree} if isinstance(tree, int | float) else {}
    found: dict[str, float] = {}
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        found |= numbers(value, f"{path}/{key}")
    return found


def test_latent_actions_are_read_and_mapped(models: Models, data: str, tmp_path: Path) -> None:
    windows = Clips([data], tmp_path, length=4, stride=3)
    frames, actions = clips(2, 4, 4)
    read, maps = [], []
    for device in DEVICES:
        model: Any = load_world_model(models["latent"], device)
        made = model.lam.predict(frames.to(device), actions.to(device))
        read.append((model.infer(frames.to(device)).cpu(), made.cpu()))
        maps.append(ActionMap.fit(model.lam, windows).measure(model.lam, windows).to_dict())
    assert_close(read[1], read[0], **CLOSE)
    assert maps[1] == maps[0]


def test_upscaling() -> None:
    torch.manual_seed(0)
    here, there = Upscaler(SHAPES["debug"]), Upscaler(SHAPES["debug"]).to(DEVICE)
    there.load_state_dict(here.state_dict())
    frames, _ = clips(1, 3, 0)
    for given in (frames, frames.to(DEVICE)):  # frames come back to where they were
        made = there.upscale(given)
        assert made.device == given.device
        assert_close(made.cpu(), here.upscale(frames), **CLOSE)

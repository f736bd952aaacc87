"""Ways to hold and run the model - shared among ranks, compiled, averaged - learn what the plain way learns."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from recordings import record

from envs.errors import InputError
from envs.runs import read_metrics
from worldmodel import checkpoint
from worldmodel.averages import MovingAverage
from worldmodel.clips import Clips
from worldmodel.components import TRAINED
from worldmodel.config import preset
from worldmodel.job import Job
from worldmodel.parallel import distribute
from worldmodel.recipes import RECIPES
from worldmodel.train import build_objective, recipe, train
from worldmodel.trainer import Trainer

CONFIG = preset("debug")
# Codes that are re-seeded are drawn with a rank's own noise: left out where one and two ranks are compared.
STEADY = dataclasses.replace(CONFIG, tokenizer=dataclasses.replace(CONFIG.tokenizer, reseed_below=0.0))
SHORT: dict[str, Any] = {"iterations": 8, "batch_size": 4, "checkpoint_every": 4, "validate_every": 4, "keep_last": 9}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return record(tmp_path_factory.mktemp("parallel") / "data", episodes=4, steps=40)


@pytest.fixture(scope="module")
def straight(data: str) -> Path:
    """A run of 8 steps on one rank, with a moving average; its folder."""
    out = Path(data).parent / "straight"
    train("tokenizer", config=STEADY, recipe=recipe("tokenizer", "debug", ema=0.9, **SHORT), data=[data], out=out)
    return out


RANKS = """
import os, sys
import torch, torch.distributed as dist
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_parallel import CPU, SHORT, STEADY, rank_of_a_run
data, ranks = sys.argv[1], 2
children = []
for rank in range(ranks):
    child = os.fork()
    if child == 0:
        dist.init_process_group("gloo", init_method=f"file://{{os.getcwd()}}/meet", rank=rank, world_size=ranks)
        for parallel in sys.argv[2:]:
            rank_of_a_run(data, parallel, rank, ranks)
        dist.destroy_process_group()
        os._exit(0)
    children.append(child)
sys.exit(sum(os.waitpid(child, 0)[1] for child in children))
"""


def rank_of_a_run(data: str, parallel: str, rank: int, ranks: int, *, iterations: int = 8) -> None:
    """Train in the folder named after `parallel`, going on from what is in it, or but to step 4 for a name with `4`."""
    settings = recipe("tokenizer", "debug", ema=0.9, parallel=parallel.rstrip("4"), **SHORT)
    out = Path.cwd() / parallel
    job = Job("tokenizer", STEADY, settings, (data,), out, Path(data).parent / "cache")
    train_split, validation = (
        Clips([data], job.cache_dir, length=6, stride=2, split=split) for split in ("train", "val")
    )
    objective = build_objective(job, CPU)
    trainer: Trainer

    def stop() -> bool:
        return parallel.endswith("4") and trainer.step == 3

    trainer = Trainer(job, objective, train_split, validation, rank=rank, ranks=ranks, device=CPU, stop=stop)
    trainer.train()


def assert_close(run: Path, other: Path, step: int) -> None:
    """Weights, moments and average of a step are the same but for the order of additions; the place in data exactly."""
    a, b = (checkpoint.open_checkpoint(folder / f"checkpoints/step-{step:08d}") for folder in (run, other))
    assert a.state["data_state"] == b.state["data_state"]
    for mine, theirs in (
        (a.weights(), b.weights()),
        (a.average(), b.average()),
        (a.optimizer_tensors(), b.optimizer_tensors()),
    ):
        assert mine.keys() == theirs.keys()
        assert mine
        for name, value in mine.items():
            torch.testing.assert_close(theirs[name], value, atol=1e-4, rtol=1e-3, msg=name)


def test_two_ranks_that_share_or_copy_the_model_learn_what_one_learns_and_go_on_as_one(
    data: str, straight: Path, tmp_path: Path
) -> None:
    """DDP and FSDP on gloo; then one rank goes on from step 4 of each, and two ranks from step 4 of one."""

    shutil.copytree(straight, tmp_path / "fsdp")  # the two go on from what one began
    shutil.rmtree(tmp_path / "fsdp/checkpoints/step-00000008")
    script = RANKS.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", script, data, "ddp4", "fsdp4", "fsdp"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_close(tmp_path / "fsdp", straight, 8)
    for parallel in ("ddp4", "fsdp4"):
        run = tmp_path / parallel
        assert_close(run, straight, 4)
        settings = recipe("tokenizer", "debug", ema=0.9, **SHORT)
        options: dict[str, Any] = {"config": STEADY, "recipe": settings, "data": [data], "resume": True}
        train("tokenizer", out=run, cache_dir=straight.parent / "cache", **options)
        assert_close(run, straight, 8)
        checks = [[row for row in read_metrics(folder) if "validation/psnr" in row] for folder in (run, straight)]
        assert checks[0][-1]["validation/psnr"] == pytest.approx(checks[1][-1]["validation/psnr"], rel=1e-3)


def test_a_codebook_that_moves_in_place_is_not_shared() -> None:
    config = dataclasses.replace(CONFIG, tokenizer=dataclasses.replace(CONFIG.tokenizer, codebook="gradient"))
    settings = recipe("tokenizer", "debug", parallel="fsdp")
    objective = build_objective(Job("tokenizer", config, settings, (), Path("a"), Path("b")), CPU)
    with pytest.raises(InputError, match="use ddp"):
        distribute(objective, "fsdp", 2, CPU)


def test_compiled_layers_give_the_same_losses(data: str, straight: Path, tmp_path: Path) -> None:
    settings = recipe("dynamics", "debug", iterations=4, log_every=1, validate_every=0, precision="bf16")
    options: dict[str, Any] = {"config": STEADY, "data": [data], "tokenizer": straight}
    losses = []
    for compiled in (False, True):
        out = tmp_path / str(compiled)
        chosen = dataclasses.replace(settings, compile=compiled)
        train("dynamics", recipe=chosen, out=out, cache_dir=straight.parent / "cache", **options)
        losses.append([row["train/loss"] for row in read_metrics(out) if "train/loss" in row])
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_the_moving_average_is_what_is_validated_exported_and_resumed(
    data: str, straight: Path, tmp_path: Path
) -> None:

    shutil.copytree(straight, tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoints/step-00000008")
    options: dict[str, Any] = {"config": STEADY, "recipe": recipe("tokenizer", "debug", ema=0.9, **SHORT)}
    train("tokenizer", data=[data], out=tmp_path / "resumed", resume=True, **options)
    one, two = checkpoint.open_checkpoint(straight), checkpoint.open_checkpoint(tmp_path / "resumed")
    for mine, theirs in ((one.weights(), two.weights()), (one.average(), two.average())):
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    exported = checkpoint.load_tokenizer(straight)
    for name, value in exported.named_parameters():
        assert torch.equal(value, one.average()[name])
    assert not torch.equal(exported.to_code.weight, one.weights()["to_code.weight"])
    held_out = Clips([data], straight.parent / "cache", length=6, stride=2, split="val")
    frames = held_out.batch(held_out.spread(4)).frames_BTHWC.movedim(-1, 2) / 255
    with torch.no_grad():
        made = exported(frames).frames.clamp(0, 1)
    expected = -10 * (made - frames).square().mean((-3, -2, -1)).log10().mean()
    logged = [row for row in read_metrics(straight) if "validation/psnr" in row][-1]["validation/psnr"]
    assert logged == pytest.approx(expected.item(), abs=1e-3)


def test_moving_average_is_the_formula_and_gives_the_weights_back() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    average, expected = MovingAverage({"w": weight}, 0.9), 1.0
    for step in range(1, 200):
        with torch.no_grad():
            weight.fill_(step)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.values["w"].item() == pytest.approx(expected, rel=1e-5)
    with average.in_place():
        assert weight.item() == pytest.approx(expected, rel=1e-5)
    assert weight.item() == 199.0


def test_the_best_checkpoint_by_validation_is_kept_beside_the_last(
    data: str, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses of four validations are dictated: the second is the lowest, and its step falls on no regular save."""
    told = iter([0.5, 0.2, 0.4, 0.3])
    monkeypatch.setattr(Trainer, "validate", lambda self, clips: {"validation/loss": next(told)})
    settings = recipe("tokenizer", "debug", iterations=8, validate_every=2, checkpoint_every=3, keep_last=1)
    cache = straight.parent / "cache"
    out = tmp_path / "run"
    train("tokenizer", config=STEADY, recipe=settings, data=[data], out=out, cache_dir=cache)
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == ["step-00000004", "step-00000008"]
    assert checkpoint.best_checkpoint(out) == out / "checkpoints/step-00000004"
    assert checkpoint.open_checkpoint(out).state["best"] == {"step": 4, "loss": 0.2}


def test_every_component_has_recipes_for_every_preset() -> None:
    assert set(RECIPES) == set(TRAINED)
    rows = {
        ("tokenizer", "base"): (72_000, 112),
        ("dynamics", "g200"): (185_000, 80),
        ("dynamics", "g50"): (80_000, 160),
        ("tokenizer", "finetune"): (1_000, 112),
        ("dynamics", "finetune"): (10_000, 160),
        ("dynamics", "scratch"): (15_000, 160),
    }
    for (component, name), (iterations, batch) in rows.items():
        paper = recipe(component, "paper", name)
        assert (paper.iterations, paper.batch_size) == (iterations, batch)
        assert (paper.lr, paper.min_lr, paper.warmup, paper.betas) == (1e-4, 5e-5, 5_000, (0.9, 0.99))
        assert (paper.weight_decay, paper.validation_clips) == (1e-4, 0)
    for component, recipes in RECIPES.items():
        for name in recipes:
            for size in ("debug", "cpu", "paper"):
                assert recipe(component, size, name).iterations >= 1
    with pytest.raises(InputError, match="no recipe of tokenizer is called 'g50': choose one of base, finetune"):
        recipe("tokenizer", "paper", "g50")

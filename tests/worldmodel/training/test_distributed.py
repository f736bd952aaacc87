"""DDP, FSDP, compilation and the EMA learn what plain training on one rank learns."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from envs.utils.errors import InputError
from envs.utils.run_dir import read_metrics
from tests.fixtures.datasets import record
from worldmodel import checkpoint
from worldmodel.config import WorldModelConfig, preset
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.loading import load_tokenizer
from worldmodel.sharded_tensors import on_cpu
from worldmodel.training.config import RECIPES, train_preset
from worldmodel.training.distributed import Worker
from worldmodel.training.ema import EMA
from worldmodel.training.setup import build_objective, build_trainer
from worldmodel.training.train import TrainingRun, train
from worldmodel.training.trainer import Trainer

CONFIG = preset("debug")


def with_codebooks(**changes: Any) -> WorldModelConfig:
    """Return `debug` with changes to the quantisers of tokenizer and latent action model."""
    parts = {
        name: dataclasses.replace(getattr(CONFIG, name), **changes) for name in ("tokenizer", "lam")
    }
    return dataclasses.replace(CONFIG, **parts)


CONFIGS = {
    # Re-seeding draws codes with the noise of a rank, so that one and two ranks would differ.
    "steady": with_codebooks(reseed_below=0.0),
    # Half of the codes are re-seeded in every step.
    "moving": with_codebooks(reseed_below=0.9, reseed_error=0.0, ema_decay=0.5),
    "gradient": with_codebooks(
        reseed_below=0.9, reseed_error=0.0, ema_decay=0.5, codebook="gradient"
    ),
}
CONFIGS["half"] = STEADY = CONFIGS["steady"]
SHORT: dict[str, Any] = {
    "iterations": 8,
    "batch_size": 4,
    "checkpoint_every": 4,
    "validate_every": 4,
    "keep_last": 9,
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return record(tmp_path_factory.mktemp("parallel") / "data", episodes=4, steps=40)


def straight_run(component: str, data: str) -> Path:
    """Train 8 steps on one rank, with an EMA, and return the run's folder."""
    out = Path(data).parent / f"straight-{component}"
    train(
        TrainingRun(
            component, STEADY, train_preset(component, "debug", ema=0.9, **SHORT), [data], out
        )
    )
    return out


@pytest.fixture(scope="module")
def straight(data: str) -> Path:
    return straight_run("tokenizer", data)


RANKS = """
import os, sys
import torch, torch.distributed as dist
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from tests.worldmodel.training.test_distributed import rank_of_a_run
data, ranks = sys.argv[1], 2
children = []
for rank in range(ranks):
    child = os.fork()
    if child == 0:
        meet = f"file://{{os.getcwd()}}/meet"
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=ranks)
        for name in sys.argv[2:]:
            rank_of_a_run(data, name, rank, ranks)
        dist.destroy_process_group()
        os._exit(0)
    children.append(child)
sys.exit(max(bool(os.waitpid(child, 0)[1]) for child in children))
"""


def rank_of_a_run(data: str, name: str, rank: int, ranks: int) -> None:
    """Resume the run in folder `name`, <component>-<config>-<parallelism>, until step 8.

    A name that ends in `4` stops at step 4. Then write this rank's quantiser to
    `<name>.<rank>.safetensors`.
    """
    component, config, parallel = name.split("-")
    settings = train_preset(component, "debug", ema=0.9, parallelism=parallel.rstrip("4"), **SHORT)
    if config == "half":
        settings = dataclasses.replace(settings, precision="bf16", log_every=1)
    job = TrainingRun(
        component,
        CONFIGS[config],
        settings,
        (data,),
        Path.cwd() / name,
        Path(data).parent / "cache",
    )
    train_split, validation = (
        ClipDataset([data], job.cache, length=6, stride=2, split=split)
        for split in ("train", "val")
    )
    objective = build_objective(job, CPU)
    trainer: Trainer

    def stop() -> bool:
        return name.endswith("4") and trainer.step == 3

    trainer = build_trainer(
        job, objective, train_split, validation, Worker(CPU, rank, ranks), stop=stop
    )
    trainer.train()
    held = {
        name: value
        for name, value in objective.model.state_dict().items()
        if name.startswith("quantizer.")
    }
    save_file(on_cpu(held), f"{name}.{rank}.safetensors")


def on_two_ranks(data: str, folder: Path, names: list[str]) -> None:
    """Train each run in the same two processes with gloo."""
    command = [
        sys.executable,
        "-c",
        RANKS.format(tests=str(Path(__file__).parents[3])),
        data,
        *names,
    ]
    process = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert "returned a view tensor" not in process.stderr


def assert_close(run: Path, other: Path, step: int) -> None:
    """Check that the checkpoints of a step agree up to rounding, and the position in the data
    exactly.
    """
    a, b = (
        checkpoint.open_checkpoint(folder / f"checkpoints/step-{step:08d}")
        for folder in (run, other)
    )
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


@pytest.mark.slow
@pytest.mark.parametrize("component", ["tokenizer", "lam"])
def test_two_ranks_that_share_or_copy_the_model_learn_what_one_learns_and_go_on_as_one(
    component: str, data: str, straight: Path, tmp_path: Path
) -> None:
    """DDP and FSDP on gloo. One rank resumes both from step 4, and two ranks resume that of one."""
    if component != "tokenizer":
        straight = straight_run(component, data)
    ddp4, fsdp4, fsdp = (
        tmp_path / f"{component}-steady-{parallel}" for parallel in ("ddp4", "fsdp4", "fsdp")
    )
    shutil.copytree(straight, fsdp)  # two ranks resume the run of one
    shutil.rmtree(fsdp / "checkpoints/step-00000008")
    on_two_ranks(data, tmp_path, [run.name for run in (ddp4, fsdp4, fsdp)])
    assert_close(fsdp, straight, 8)
    for run in (ddp4, fsdp4):
        assert_close(run, straight, 4)
        settings = train_preset(component, "debug", ema=0.9, **SHORT)
        cache = straight.parent / "cache"
        train(TrainingRun(component, STEADY, settings, [data], run, cache), resume=True)
        assert_close(run, straight, 8)
        checks = [
            [row for row in read_metrics(folder) if "validation/psnr" in row]
            for folder in (run, straight)
        ]
        assert checks[0][-1]["validation/psnr"] == pytest.approx(
            checks[1][-1]["validation/psnr"], rel=1e-3
        )


@pytest.mark.slow
@pytest.mark.parametrize("component", ["tokenizer", "lam"])
def test_weights_gathered_in_half_precision_learn_what_whole_copies_learn(
    component: str, data: str, tmp_path: Path
) -> None:
    names = [f"{component}-half-{parallelism}" for parallelism in ("ddp", "fsdp")]
    on_two_ranks(data, tmp_path, names)
    rows = [[row for row in read_metrics(tmp_path / name) if "train/loss" in row] for name in names]
    for metric, tolerance in (("train/loss", 1e-2), ("train/grad_norm", 5e-2)):
        copies, shards = ([row[metric] for row in of_run] for of_run in rows)
        assert len(copies) == 8
        assert shards == pytest.approx(copies, rel=tolerance)
        assert shards != copies, "weights of sub-blocks are rounded when they are gathered"
    for name in names:  # shards, moments and the EMA are whole and fp32
        opened = checkpoint.open_checkpoint(tmp_path / name)
        for tensors in (opened.weights(), opened.average(), opened.optimizer_tensors()):
            assert {value.dtype for value in tensors.values()} == {torch.float32}


@pytest.mark.slow
def test_codes_that_are_seeded_again_are_the_same_on_every_rank_however_the_model_is_held(
    data: str, tmp_path: Path
) -> None:
    """Codebooks that are moving averages or parameters, sharded over ranks under FSDP."""
    kinds = [("tokenizer", "gradient"), ("lam", "gradient"), ("lam", "moving")]
    names = [
        f"{component}-{config}-{parallel}"
        for component, config in kinds
        for parallel in ("ddp", "fsdp")
    ]
    on_two_ranks(data, tmp_path, names)
    for name in names:
        first, second = (load_file(tmp_path / f"{name}.{rank}.safetensors") for rank in (0, 1))
        assert {"quantizer.rows", "quantizer.use_K"} <= first.keys()
        for key, value in first.items():
            assert torch.equal(value, second[key]), (name, key)
        # AdamW turns a row by less than a degree in 8 steps.
        component, config, _ = name.split("-")
        settings = train_preset(component, "debug", **SHORT)
        start = build_objective(
            TrainingRun(component, CONFIGS[config], settings, (), Path("a"), Path("b")), CPU
        ).model
        turned = (
            torch.linalg.vecdot(first["quantizer.rows"], start.state_dict()["quantizer.rows"]) < 0.9
        )
        assert turned.float().mean() > 0.3, name
    for ddp, fsdp in zip(names[::2], names[1::2], strict=True):
        assert_close(tmp_path / ddp, tmp_path / fsdp, 8)


@pytest.mark.slow
def test_compiled_kernels_give_the_same_losses(data: str, straight: Path, tmp_path: Path) -> None:
    settings = train_preset(
        "dynamics", "debug", iterations=4, log_every=1, validate_every=0, precision="bf16"
    )
    options: dict[str, Any] = {"config": STEADY, "data": [data], "tokenizer": straight}
    losses = []
    for compiled in (False, True):
        out = tmp_path / str(compiled)
        chosen = dataclasses.replace(settings, compile=compiled)
        train(
            TrainingRun(
                "dynamics", recipe=chosen, out=out, cache_dir=straight.parent / "cache", **options
            )
        )
        losses.append([row["train/loss"] for row in read_metrics(out) if "train/loss" in row])
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_the_moving_average_is_what_is_validated_exported_and_resumed(
    data: str, straight: Path, tmp_path: Path
) -> None:
    shutil.copytree(straight, tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoints/step-00000008")
    options: dict[str, Any] = {
        "config": STEADY,
        "recipe": train_preset("tokenizer", "debug", ema=0.9, **SHORT),
    }
    train(TrainingRun("tokenizer", data=[data], out=tmp_path / "resumed", **options), resume=True)
    one, two = (
        checkpoint.open_checkpoint(straight),
        checkpoint.open_checkpoint(tmp_path / "resumed"),
    )
    for mine, theirs in ((one.weights(), two.weights()), (one.average(), two.average())):
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    exported = load_tokenizer(straight)
    for name, value in exported.named_parameters():
        assert torch.equal(value, one.average()[name])
    assert not torch.equal(exported.to_code.weight, one.weights()["to_code.weight"])
    held_out = ClipDataset([data], straight.parent / "cache", length=6, stride=2, split="val")
    frames = held_out.batch(held_out.evenly_spaced(4)).frames_BTHWC.movedim(-1, 2) / 255
    with torch.no_grad():
        made = exported(frames).frames.clamp(0, 1)
    expected = -10 * (made - frames).square().mean((-3, -2, -1)).log10().mean()
    logged = [row for row in read_metrics(straight) if "validation/psnr" in row][-1][
        "validation/psnr"
    ]
    assert logged == pytest.approx(expected.item(), abs=1e-3)


def test_moving_average_is_the_formula_and_gives_the_weights_back() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    average, expected = EMA({"w": weight}, 0.9), 1.0
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
    """The second of four validations has the lowest loss, at a step without a regular save."""
    losses = iter([0.5, 0.2, 0.4, 0.3])
    monkeypatch.setattr(Trainer, "validate", lambda self, clips: {"validation/loss": next(losses)})
    settings = train_preset(
        "tokenizer", "debug", iterations=8, validate_every=2, checkpoint_every=3, keep_last=1
    )
    cache = straight.parent / "cache"
    out = tmp_path / "run"
    train(TrainingRun("tokenizer", STEADY, settings, [data], out, cache_dir=cache))
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == [
        "step-00000004",
        "step-00000008",
    ]
    assert checkpoint.best_checkpoint(out) == out / "checkpoints/step-00000004"
    assert checkpoint.open_checkpoint(out).state["best"] == {"step": 4, "loss": 0.2}


def test_every_component_has_recipes_for_every_preset() -> None:
    assert set(RECIPES) == {"tokenizer", "lam", "dynamics", "upscaler"}
    rows = {
        ("tokenizer", "base"): (72_000, 112),
        ("dynamics", "g200"): (185_000, 80),
        ("dynamics", "g50"): (80_000, 160),
        ("tokenizer", "finetune"): (1_000, 112),
        ("dynamics", "finetune"): (10_000, 160),
        ("dynamics", "scratch"): (15_000, 160),
    }
    for (component, name), (iterations, batch) in rows.items():
        paper = train_preset(component, "paper", name)
        assert (paper.iterations, paper.batch_size) == (iterations, batch)
        assert (paper.lr, paper.min_lr_factor, paper.warmup, paper.betas) == (
            1e-4,
            0.5,
            5_000,
            (0.9, 0.99),
        )
        assert (paper.weight_decay, paper.validation_clips) == (1e-4, 1_024)
    for component, recipes in RECIPES.items():
        for name in recipes:
            for size in ("debug", "cpu", "gpu", "paper"):
                assert train_preset(component, size, name).iterations >= 1
    with pytest.raises(
        InputError, match="no recipe of tokenizer is called 'g50': choose one of base, finetune"
    ):
        train_preset("tokenizer", "paper", "g50")

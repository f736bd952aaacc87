"""Training steps, the connection of data and models, and refused input. Resuming: test_resume."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.games.counting import read_step_and_action
from envs.utils.errors import InputError
from envs.utils.run_dir import read_metrics
from experiments.__main__ import execute
from tests.worldmodel.training.conftest import CONFIG, DYNAMICS, SHORT
from worldmodel import checkpoint
from worldmodel.data.batch import Batch
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.data.sampler import ClipSampler
from worldmodel.data.token_dataset import cache_tokens
from worldmodel.loading import load_dynamics, load_tokenizer
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.genie import GenieReduxG
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.models.weights import encoder_sha256
from worldmodel.training.config import PRESETS, TrainConfig, train_preset
from worldmodel.training.distributed import Worker
from worldmodel.training.objectives import DynamicsObjective, TokenizerObjective
from worldmodel.training.setup import build_trainer
from worldmodel.training.train import TrainingRun, train
from worldmodel.training.trainer import NonFiniteLoss


def test_decoder_only_training_leaves_token_ids_bit_identical(
    data: str, tokenizer_run: Path, tmp_path: Path
) -> None:
    settings = train_preset("tokenizer", "debug", iterations=6, lr=1e-2)
    free = TrainingRun("tokenizer", CONFIG, settings, [data], tmp_path / "free", init=tokenizer_run)
    free = dataclasses.replace(free, cache_dir=tokenizer_run.parent / "cache")
    tuned = train(dataclasses.replace(free, out=tmp_path / "tuned", decoder_only=True))
    before, after = load_tokenizer(tokenizer_run), load_tokenizer(tuned)
    frames = torch.rand(2, 6, 3, 64, 64)
    assert torch.equal(before.encode(frames), after.encode(frames))
    assert torch.equal(before.codebook, after.codebook)
    assert encoder_sha256(before) == encoder_sha256(after)
    decoder = {id(parameter) for parameter in after.decoder_parameters()}
    for (name, old), (_, new) in zip(
        before.named_parameters(), after.named_parameters(), strict=True
    ):
        assert torch.equal(old, new) != (id(new) in decoder), name
    # Without the option the same training changes ids, so that the test above can fail.
    assert not torch.equal(before.encode(frames), load_tokenizer(train(free)).encode(frames))


class PatchTokenizer(torch.nn.Module):
    """Tokenizer with readable ids: 1 for a patch of 4x4 pixels that is brighter than half."""

    cfg = dataclasses.replace(CONFIG, tokenizer=dataclasses.replace(CONFIG.tokenizer, patch=4))
    component = "tokenizer"
    codebook = torch.eye(2)

    def decoder_parameters(self) -> list[torch.nn.Parameter]:
        return []

    def encode(self, frames_BTCHW: torch.Tensor) -> torch.Tensor:
        return (
            frames_BTCHW.mean(2).unflatten(-1, (-1, 4)).unflatten(-3, (-1, 4)).mean((-1, -3)) > 0.5
        ).long()

    encode_checked = encode


class SpyDynamics(torch.nn.Module):
    """Dynamics model that keeps its training input."""

    cfg = PatchTokenizer.cfg

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def loss(self, tokens, actions, *, checked=False):
        self.seen.append((tokens.clone(), actions.clone()))
        return {"loss": self.weight.square()}


@pytest.mark.parametrize("cached", [False, True])
def test_actions_reach_the_dynamics_beside_the_frame_they_act_on(
    cached: bool, data: str, tmp_path: Path
) -> None:
    """Episode -> cached clip -> (stored tokens) -> loader -> objective: frame t + 1 shows action
    t.
    """
    clips = ClipDataset([data], tmp_path, length=6)
    tokenizer, dynamics = PatchTokenizer(), SpyDynamics()
    windows: Any = cache_tokens(tokenizer, clips, tmp_path) if cached else clips  # type: ignore[arg-type]
    objective = DynamicsObjective(dynamics, tokenizer)  # type: ignore[arg-type]
    job = TrainingRun("dynamics", CONFIG, SHORT, (data,), tmp_path / "run", tmp_path)
    build_trainer(job, objective, windows, None, Worker(torch.device("cpu"))).train()
    assert len(dynamics.seen) == SHORT.iterations
    compared = 0
    for tokens_BThw, actions_BT in dynamics.seen:
        pixels = tokens_BThw.repeat_interleave(4, -1).repeat_interleave(4, -2) * 255
        frames = pixels[..., None].expand(*pixels.shape, 3).numpy().astype(np.uint8)
        for clip, actions in zip(frames, actions_BT.tolist(), strict=True):
            shown = [read_step_and_action(frame) for frame in clip]
            assert [action for _, action in shown[1:]] == actions
            assert [number for number, _ in shown] == list(
                range(shown[0][0], shown[0][0] + len(clip))
            )
            compared += len(actions)
    assert compared == SHORT.iterations * SHORT.batch_size * 5


def test_the_real_dynamics_applies_an_action_to_the_frame_after_it(dynamics_run: Path) -> None:
    """Another action at frame t changes the logits of later frames, and of no others."""
    dynamics = load_dynamics(dynamics_run)
    tokens = torch.randint(
        CONFIG.tokenizer.codes, (1, 6, 8, 8), generator=torch.Generator().manual_seed(0)
    )
    actions = torch.zeros(1, 5, dtype=torch.long)
    for t in range(5):
        changed = actions.clone()
        changed[0, t] = 3
        same = (dynamics(tokens, actions) == dynamics(tokens, changed)).all(-1).all(-1).all(-1)[0]
        assert same[: t + 1].all()
        assert not same[t + 1 :].any()


def test_a_loss_that_is_not_finite_stops_before_the_weights_change_and_names_the_batch(
    data: str, tmp_path: Path
) -> None:
    class Breaking(SpyDynamics):
        def loss(self, tokens, actions, *, checked=False):
            self.seen.append((tokens, actions))
            return {
                "loss": (self.weight + 1).square() * (float("nan") if len(self.seen) == 4 else 1.0)
            }

    clips = ClipDataset([data], tmp_path, length=6)
    objective = DynamicsObjective(Breaking(), PatchTokenizer())  # type: ignore[arg-type]
    job = TrainingRun(
        "dynamics",
        CONFIG,
        train_preset("dynamics", "debug", checkpoint_every=3),
        (data,),
        tmp_path / "run",
        tmp_path,
    )
    trainer = build_trainer(job, objective, clips, None, Worker(torch.device("cpu")))
    with pytest.raises(NonFiniteLoss) as stopped:
        trainer.train()
    for window_id in ClipSampler(len(clips), job.recipe.seed).batch(3 * 2, 2).tolist():
        assert clips.describe(window_id) in str(stopped.value)
    assert "step 3" in str(stopped.value)
    saved = checkpoint.open_checkpoint(tmp_path / "run")
    assert saved.step == 3
    assert torch.equal(saved.weights()["weight"], objective.model.weight.detach())


@pytest.mark.parametrize("how", [{"grad_accum_steps": 2}, {"activation_checkpointing": True}])
def test_ways_to_save_memory_give_the_same_weights(
    how: dict[str, Any], data: str, tmp_path: Path
) -> None:
    """Without a quantiser the tokenizer's loss is a mean over clips: microbatches add up
    exactly.
    """
    config = dataclasses.replace(
        CONFIG,
        tokenizer=dataclasses.replace(CONFIG.tokenizer, quantizer_start=1.0, reseed_below=0.0),
    )
    weights = []
    for number, changes in enumerate(({}, how)):
        settings = train_preset("tokenizer", "debug", iterations=3, batch_size=4, **changes)
        run = train(TrainingRun("tokenizer", config, settings, [data], tmp_path / f"run{number}"))
        weights.append(checkpoint.open_checkpoint(run).weights())
    for name, value in weights[0].items():
        if not name.startswith("quantizer."):  # its averages move with each microbatch
            assert torch.allclose(value, weights[1][name], atol=2e-5), name
    with pytest.raises(InputError, match="cannot be computed in 3 equal parts"):
        train_preset("tokenizer", "debug", batch_size=4, grad_accum_steps=3)
    settings = train_preset("tokenizer", "debug", batch_size=12, grad_accum_steps=4)
    run = TrainingRun("tokenizer", config, settings, [data], tmp_path / "uneven")
    with pytest.raises(InputError, match=r"2 workers in 4 microbatches each: use a multiple of 8"):
        train(run, workers=2)


def test_deterministic_kernels_are_used_in_the_run_alone(data: str, tmp_path: Path) -> None:
    # RLlib's seeding switches them on in its process.
    before, seen, weights = torch.are_deterministic_algorithms_enabled(), [], []
    for deterministic in (False, True):
        settings = dataclasses.replace(SHORT, iterations=2, deterministic=deterministic)
        out = tmp_path / f"run{deterministic}"
        run = TrainingRun("tokenizer", CONFIG, settings, [data], out)
        weights.append(checkpoint.open_checkpoint(train(run)).weights())
        seen.append(torch.are_deterministic_algorithms_enabled())
    assert seen == [before, before]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_gradient_is_clipped_once_and_its_norm_before_that_is_logged(
    data: str, tmp_path: Path
) -> None:
    clips = ClipDataset([data], tmp_path, length=6)
    norms = []
    for clip in (0.0, 1e-3):
        torch.manual_seed(0)
        settings = train_preset("tokenizer", "debug", grad_clip=clip)
        job = TrainingRun("tokenizer", CONFIG, settings, (data,), tmp_path / f"run{clip}", tmp_path)
        trainer = build_trainer(
            job, TokenizerObjective(Tokenizer(CONFIG)), clips, None, Worker(torch.device("cpu"))
        )
        parts, _ = trainer.train_step(next(trainer.loader))
        norms.append(parts["grad_norm"].item())
        # After one step, AdamW's first moment is 0.1 times the gradient.
        applied = (
            sum(
                float(state["exp_avg"].square().sum()) for state in trainer.optimizer.state.values()
            )
            ** 0.5
            * 10
        )
        assert applied == pytest.approx(clip or norms[0], rel=1e-3)
    assert norms[0] == norms[1] > 1e-3


def test_learning_rate_warms_up_from_half_and_ends_at_the_minimum_at_the_last_step() -> None:
    settings = train_preset("tokenizer", "paper")
    assert settings.learning_rate(0) == 0.5e-4
    assert settings.learning_rate(2500) == pytest.approx(0.75e-4)
    assert settings.learning_rate(5000) == 1e-4
    assert settings.learning_rate(71_999) == 5e-5
    rates = [settings.learning_rate(step) for step in range(5000, 72_000, 100)]
    assert rates == sorted(rates, reverse=True)
    assert TrainConfig(iterations=10, warmup=0).learning_rate(9) == 5e-5


@pytest.mark.parametrize("size", PRESETS)
@pytest.mark.parametrize("component", ["tokenizer", "dynamics"])
def test_fine_tuning_goes_on_near_the_last_rate_of_its_base(component: str, size: str) -> None:
    """A much higher rate would undo the base before anything new is learnt."""
    base, tuning = train_preset(component, size), train_preset(component, size, "finetune")
    ended = base.learning_rate(base.iterations - 1)
    highest = max(map(tuning.learning_rate, range(tuning.iterations)))
    assert tuning.learning_rate(0) <= 2.5 * ended
    assert highest <= 5 * ended


@pytest.mark.parametrize("size", PRESETS)
def test_another_learning_rate_scales_the_whole_schedule(size: str) -> None:
    plain = train_preset("tokenizer", size)
    for factor in (0.01, 3):
        changed = train_preset("tokenizer", size, lr=factor * plain.lr)
        for step in (0, plain.warmup, plain.iterations - 1):
            assert changed.learning_rate(step) == pytest.approx(factor * plain.learning_rate(step))
    assert train_preset("tokenizer", size, lr=plain.lr) == plain
    for wrong in ({"lr": 0.0}, {"min_lr_factor": 0.0}, {"min_lr_factor": 2.0}):
        with pytest.raises(InputError, match="must be above 0"):
            train_preset("tokenizer", size, **wrong)


def test_train_takes_a_rate_below_the_recipes_lowest(data: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["train", "tokenizer", "--preset", "debug", "--lr", "1e-4", "--iterations", "6"]
    assert execute([*command, "--data", data, "--out", str(out)]) == 0
    settings = json.loads((out / "config.json").read_text())["recipe"]
    assert settings["lr"] == 1e-4
    assert read_metrics(out)[-1]["step"] == 6


def test_what_does_not_fit_together_is_refused_in_one_line(
    data: str, tokenizer_run: Path, tmp_path: Path
) -> None:
    base: dict[str, Any] = {
        "config": CONFIG,
        "recipe": SHORT,
        "data": [data],
        "out": tmp_path / "run",
    }
    other = dataclasses.replace(CONFIG, tokenizer=dataclasses.replace(CONFIG.tokenizer, dim=48))
    again: dict[str, Any] = {"out": tokenizer_run, "resume": True}
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("renderer", {}, "unknown component"),
        ("tokenizer", {"data": []}, "no data given"),
        ("tokenizer", {"data": [tmp_path / "nowhere"]}, "nowhere"),
        ("dynamics", {}, "needs --tokenizer: the run or checkpoint of a trained tokenizer"),
        ("tokenizer", {"decoder_only": True}, "trains the decoder of a trained tokenizer"),
        ("tokenizer", {"workers": 3}, "cannot be split over 3 workers"),
        ("tokenizer", {"out": tokenizer_run}, "already holds a run"),
        (
            "tokenizer",
            {**again, "recipe": train_preset("tokenizer", "debug")},
            "recipe.iterations is 8, not 20",
        ),
        ("tokenizer", {**again, "config": other}, "config.tokenizer.dim is 32, not 48"),
        ("tokenizer", {"init": tokenizer_run, "config": other}, "another architecture"),
        (
            "dynamics",
            {"tokenizer": tokenizer_run, "config": other},
            "not a tokenizer of the given configuration",
        ),
        ("dynamics", {"tokenizer": tmp_path / "nowhere"}, "nowhere"),
    ]
    for component, change, words in cases:
        options = {**base, **change}
        how = {name: options.pop(name) for name in ("workers", "resume") if name in options}
        with pytest.raises(InputError) as refusal:
            train(TrainingRun(component, **options), **how)
        assert words in str(refusal.value), str(refusal.value)
        assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match="precision"):
        train_preset("tokenizer", "debug", precision="fp16")
    with pytest.raises(InputError, match="unknown preset"):
        train_preset("tokenizer", "huge")
    with pytest.raises(InputError, match="no training setting is called 'lrr'"):
        train_preset("tokenizer", "debug", lrr=1)


def test_another_tokenizer_than_the_one_trained_with_is_refused_with_both_hashes(
    data: str, tokenizer_run: Path, dynamics_run: Path, tmp_path: Path
) -> None:
    """The other one has the same codes but another encoder, hence other tokens."""
    other, dynamics = load_tokenizer(tokenizer_run), load_dynamics(dynamics_run)
    wanted = encoder_sha256(other)
    GenieReduxG(other, dynamics)
    with torch.no_grad():
        other.to_code.weight.add_(1e-3)
    words = f"expected the one with sha256 {wanted[:16]}, got {encoder_sha256(other)[:16]}"
    with pytest.raises(InputError, match=words):
        GenieReduxG(other, dynamics)
    again = Dynamics(CONFIG)
    again.set_codebook(other.codebook)
    GenieReduxG(other, again).save(tmp_path / "other")
    options: dict[str, Any] = {
        "config": CONFIG,
        "recipe": DYNAMICS,
        "data": [data],
        "init": dynamics_run,
    }
    with pytest.raises(InputError, match=words):
        train(
            TrainingRun("dynamics", out=tmp_path / "run", tokenizer=tmp_path / "other", **options)
        )


def test_a_run_says_in_its_folder_what_it_is(tokenizer_run: Path) -> None:
    recorded = json.loads((tokenizer_run / "config.json").read_text())
    assert recorded["recipe"]["iterations"] == 8
    assert recorded["component"] == "tokenizer"
    row = [row for row in read_metrics(tokenizer_run) if "train/loss" in row][-1]
    for name in (
        "reconstruction",
        "psnr",
        "lr",
        "grad_norm",
        "clips_per_second",
        "codes_used",
        "seconds_left",
        "tokens_per_second",
        "flops_per_second",
        "flops_utilisation",
        "data_wait",
    ):
        assert f"train/{name}" in row
    assert any((tokenizer_run / "tensorboard").iterdir())
    assert time.time() - row["time"] < 3600


@pytest.mark.parametrize("field", ["tokens", "actions"])
def test_values_of_a_batch_are_checked_before_it_is_copied_to_a_device(field: str) -> None:
    dynamics = Dynamics(CONFIG)
    objective = DynamicsObjective(dynamics, Tokenizer(CONFIG))
    grid = CONFIG.grid
    fields = {"tokens_BThw": torch.zeros(2, 3, grid, grid), "actions_BT": torch.zeros(2, 2)}
    batch = {name: value.long() for name, value in fields.items()}
    objective.check(Batch(window_ids_B=torch.arange(2), **batch))
    for name, value in batch.items():
        value += 1_000 * name.startswith(field)
    with pytest.raises(InputError, match=f"{field}: expected integers in .*, got 1000 to 1000"):
        objective.check(Batch(window_ids_B=torch.arange(2), **batch))

"""Stored output of frozen models: equal to encoding now, computed once, used in training."""

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.utils.errors import InputError
from envs.utils.run_dir import read_metrics
from tests.fixtures.datasets import record
from worldmodel import Dynamics, LatentActionModel, Tokenizer, preset
from worldmodel.checkpoint import open_checkpoint
from worldmodel.data import token_dataset
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.data.token_dataset import cache_tokens
from worldmodel.loading import load_tokenizer
from worldmodel.models.cpu_kernels import use_cpu_kernels
from worldmodel.models.weights import encoder_sha256
from worldmodel.training.config import train_preset
from worldmodel.training.flops import cost_of
from worldmodel.training.objectives import DynamicsObjective
from worldmodel.training.train import TrainingRun, train

CONFIG = preset("debug")
LATENT = CONFIG.with_latent_actions()
LONG: dict[str, Any] = {
    "iterations": 8,
    "clip_stride": 16,
    "checkpoint_every": 4,
    "log_every": 4,
    "validate_every": 0,
}
"""Settings with no more windows than the run draws, so that encoded windows are stored."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return record(tmp_path_factory.mktemp("cache") / "data", episodes=4, steps=40)


@pytest.fixture(scope="module")
def runs(data: str) -> Path:
    """A folder with runs of a tokenizer and a lam, trained until codes differ between frames."""
    folder = Path(data).parent
    for component in ("tokenizer", "lam"):
        settings = train_preset(component, "debug", iterations=8, lr=1e-2, validate_every=0)
        train(
            TrainingRun(
                component, config=CONFIG, recipe=settings, data=[data], out=folder / component
            )
        )
    return folder


def noisy(model: Any, seed: int = 0) -> Any:
    """A model whose output depends on everything."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def test_stored_tokens_are_those_of_encoding_now_and_are_computed_once(
    data: str, runs: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(runs / "tokenizer")
    clips = ClipDataset([data], tmp_path, length=6, stride=3)
    cached = cache_tokens(tokenizer, clips, tmp_path, batch_size=5)
    ids = np.array([7, 0, len(clips) - 1])
    batch, frames = cached.batch(ids), clips.batch(ids)
    objective = DynamicsObjective(Dynamics(CONFIG), tokenizer)
    assert torch.equal(batch.tokens_BThw, objective.tokens(frames))
    assert torch.equal(batch.actions_BT, frames.actions_BT)
    assert torch.equal(batch.window_ids_B, frames.window_ids_B)
    (file,) = tmp_path.glob("tokens-*.npy")
    written = file.stat().st_mtime_ns
    with torch.no_grad():
        tokenizer.decoder_parameters()[0].add_(1)  # a fine-tuned decoder finds the same tokens
    cache_tokens(tokenizer, clips, tmp_path)
    assert file.stat().st_mtime_ns == written
    with torch.no_grad():
        tokenizer.to_code.weight.add_(1)
    cache_tokens(tokenizer, clips, tmp_path)
    assert len(list(tmp_path.glob("tokens-*.npy"))) == 2


def test_tokens_of_tf32_and_fp32_are_stored_apart(
    data: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(runs / "tokenizer")
    clips = ClipDataset([data], tmp_path, length=6, stride=8)
    cache_tokens(tokenizer, clips, tmp_path)
    (plain,) = tmp_path.glob("tokens-*.npy")
    digest = hashlib.sha256(f"{encoder_sha256(tokenizer)} {clips.manifest_hash}".encode())
    assert plain.stem == f"tokens-{digest.hexdigest()[:32]}"  # as before formats had names
    monkeypatch.setattr(token_dataset, "product_format", lambda *_: "tf32")
    with torch.autocast("cpu", torch.bfloat16):  # changes neither tokens nor name
        cache_tokens(tokenizer, clips, tmp_path)
    rounded = tmp_path / f"{plain.stem}-tf32.npy"
    assert set(tmp_path.glob("tokens-*.npy")) == {plain, rounded}
    assert rounded.read_bytes() == plain.read_bytes()


def test_stored_latent_actions_are_those_of_encoding_now_and_each_lam_has_a_file(
    data: str, tmp_path: Path
) -> None:
    tokenizer, lam = noisy(Tokenizer(CONFIG)), noisy(LatentActionModel(CONFIG))
    clips = ClipDataset([data], tmp_path, length=6, stride=3)
    cached = cache_tokens(tokenizer, clips, tmp_path, lam=lam, batch_size=5)
    ids = np.arange(len(clips))
    batch, frames = cached.batch(ids), clips.batch(ids)
    dynamics = Dynamics(LATENT)
    dynamics.set_codebook(tokenizer.codebook)
    objective = DynamicsObjective(dynamics, tokenizer, lam)
    assert torch.equal(objective.actions(batch), objective.actions(frames))
    assert torch.equal(objective.tokens(batch), objective.tokens(frames))
    assert len(batch.latent_actions_BT.unique()) > 2
    losses = []
    for source in (batch, frames):
        torch.manual_seed(5)
        losses.append(objective(source, 0.5)["loss"])
    assert torch.equal(*losses)
    with torch.no_grad():
        lam.decoder_parameters()[0].add_(1)  # reads the same actions
    cache_tokens(tokenizer, clips, tmp_path, lam=lam)
    assert len(list(tmp_path.glob("latents-*.npy"))) == 1
    with torch.no_grad():
        lam.to_code.weight.neg_()
    other = cache_tokens(tokenizer, clips, tmp_path, lam=lam).batch(ids)
    assert torch.equal(
        other.latent_actions_BT, lam.encode(frames.frames_BTHWC.movedim(-1, -3) / 255)
    )
    assert not torch.equal(other.latent_actions_BT, batch.latent_actions_BT)
    assert [len(list(tmp_path.glob(f"{name}-*.npy"))) for name in ("tokens", "latents")] == [1, 2]


@pytest.mark.parametrize("joint", [False, True])
def test_training_on_latent_actions_uses_what_is_stored_and_learns_the_same(
    joint: bool, data: str, runs: Path, tmp_path: Path
) -> None:
    """Latent actions of a frozen LAM are stored, but not of one that is trained jointly. Training
    resumes bit for bit.
    """
    options: dict[str, Any] = {"config": CONFIG, "data": [data], "joint_lam": joint}
    options |= {"tokenizer": runs / "tokenizer", "lam": runs / "lam"}
    for stored in (True, False):
        settings = train_preset("dynamics", "debug", token_cache=stored, **LONG)
        out = tmp_path / str(stored)
        train(TrainingRun("dynamics", recipe=settings, out=out, cache_dir=out / "cache", **options))
        files = [len(list((out / "cache").glob(f"{name}-*.npy"))) for name in ("tokens", "latents")]
        assert files == ([1, 0 if joint else 1] if stored else [0, 0])
    one, other = (open_checkpoint(tmp_path / name).weights() for name in ("True", "False"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    losses = [
        [row["train/loss"] for row in read_metrics(tmp_path / name)] for name in ("True", "False")
    ]
    assert losses[0] == losses[1]
    shutil.rmtree(tmp_path / "True/checkpoints/step-00000008")
    settings = train_preset("dynamics", "debug", **LONG)
    options |= {"out": tmp_path / "True", "cache_dir": tmp_path / "True/cache"}
    train(TrainingRun("dynamics", recipe=settings, **options), resume=True)
    again = open_checkpoint(tmp_path / "True").weights()
    assert all(torch.equal(value, again[name]) for name, value in one.items())


def test_batches_for_joint_training_hold_frames_and_tokens(
    data: str, runs: Path, tmp_path: Path
) -> None:
    clips = ClipDataset([data], tmp_path, length=6, stride=8)
    ids = np.array([3, 1])
    tokenizer = load_tokenizer(runs / "tokenizer")
    batch = cache_tokens(tokenizer, clips, tmp_path, frames=True).batch(ids)
    assert batch.tokens_BThw is not None
    assert torch.equal(batch.frames_BTHWC, clips.batch(ids).frames_BTHWC)


def test_the_cost_says_what_is_not_computed_again() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    settings = train_preset("dynamics", "debug", clip_length=6)
    cached, encoding, plain = (
        cost_of("dynamics", config, settings, cached=stored)
        for config, stored in ((LATENT, True), (LATENT, False), (CONFIG, False))
    )
    joint, lam = (
        cost_of("dynamics", LATENT, settings, joint_lam=True),
        cost_of("lam", LATENT, settings),
    )
    assert cached is not None and encoding is not None and plain is not None  # noqa: PT018
    assert joint is not None and lam is not None  # noqa: PT018
    lam_model, tokenizer = LatentActionModel(CONFIG), Tokenizer(CONFIG)
    for model in (lam_model, tokenizer):
        use_cpu_kernels(model)  # torch does not count the FLOPs of its fused attention
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        lam_model.encode(torch.rand(1, 6, 3, 64, 64))
        tokenizer.encode(torch.rand(1, 6, 3, 64, 64))
    assert encoding.flops - cached.flops == pytest.approx(counter.get_total_flops(), rel=0.05)
    assert encoding.flops > plain.flops
    assert joint.flops == cached.flops + lam.flops
    assert joint.parameters == cached.parameters + lam.parameters


def test_codes_that_the_file_cannot_hold_are_refused(data: str, tmp_path: Path) -> None:
    large = dataclasses.replace(CONFIG.tokenizer, codes=2**16 + 1)
    tokenizer = Tokenizer(dataclasses.replace(CONFIG, tokenizer=large))
    clips = ClipDataset([data], tmp_path, length=6, stride=3)
    with pytest.raises(InputError, match="65537 codes: the cache of tokens holds at most 65536"):
        cache_tokens(tokenizer, clips, tmp_path)

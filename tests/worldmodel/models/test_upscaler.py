"""Super-resolution: sizes of the networks, pairs of frames, training, use, bad input."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import envs
from envs.collect.policies import RandomPolicy
from envs.collect.rerender import rerender_episode
from envs.collect.worker import EpisodeKey, play_episode
from envs.episodes.dataset import EpisodeReader, EpisodeWriter
from envs.games.retro import letterbox
from envs.utils.errors import InputError
from envs.utils.run_dir import read_metrics
from experiments.commands import generate
from experiments.reports.images import at_scale
from experiments.reports.pipeline_report import build_pipeline_report
from worldmodel.checkpoint import open_checkpoint
from worldmodel.config import preset
from worldmodel.data.batch import to_float_frames
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.data.pair_dataset import PairDataset
from worldmodel.loading import load_upscaler
from worldmodel.metrics import frame_psnr
from worldmodel.models.upscaler import SHAPES, Upscaler, UpscalerConfig, bicubic
from worldmodel.training.config import train_preset
from worldmodel.training.flops import cost_of
from worldmodel.training.train import TrainingRun, train

GAME = "Airstriker-Genesis"
CONFIG = preset("debug")
SHORT = train_preset(
    "upscaler", "debug", iterations=8, checkpoint_every=4, validate_every=4, log_every=2
)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Four episodes of a real game at 64x64, and the first three of them at 256x256."""
    folder = tmp_path_factory.mktemp("pairs")
    with EpisodeWriter(folder / "small") as writer:
        env = envs.make(GAME)
        for episode in range(4):
            writer.add(
                play_episode(
                    env, RandomPolicy(), EpisodeKey(GAME, "random", 0, episode), steps=40 + episode
                )
            )
        env.close()
    small = EpisodeReader(folder / "small")
    with EpisodeWriter(folder / "large") as writer:
        writer.copy_plan(small, {"size": 256})
        env = envs.make(GAME, size=256)
        for episode in list(small)[:3]:
            writer.add(rerender_episode(env, episode))
        env.close()
    return str(folder / "small"), str(folder / "large")


@pytest.fixture(scope="module")
def run(sides: tuple[str, str]) -> Path:
    """A complete run of 8 steps, with checkpoints of steps 4 and 8."""
    out = Path(sides[0]).parent / "run"
    train(
        TrainingRun(
            "upscaler", config=CONFIG, recipe=SHORT, data=[sides[0]], pairs=sides[1], out=out
        )
    )
    return out


def pairs_of(sides: tuple[str, str], split: str | None) -> PairDataset:
    cache = Path(sides[0]).parent / "cache"
    return PairDataset(*(ClipDataset([uri], cache, length=1, split=split) for uri in sides))


def test_the_papers_sizes() -> None:
    with torch.device("meta"):
        counts = {
            name: sum(p.numel() for p in Upscaler(cfg).parameters()) for name, cfg in SHAPES.items()
        }
    assert counts["small"] == pytest.approx(31e6, rel=0.01)
    assert counts["large"] == pytest.approx(124e6, rel=0.01)
    assert counts["debug"] < counts["cpu"] < 1e6
    cost = cost_of("upscaler", CONFIG, train_preset("upscaler", "paper"))
    assert cost is not None
    assert cost.parameters == counts["small"]


def test_the_papers_training() -> None:
    """Check for 300 epochs and a learning rate that is halved every 25 epochs."""
    for name, images, shape in (("small-16k", 12_000, "small"), ("small-50k", 45_000, "small")):
        settings = train_preset("upscaler", "paper", name)
        assert (settings.upscaler, settings.batch_size, settings.lr, settings.weight_decay) == (
            shape,
            128,
            1e-4,
            0,
        )
        assert settings.iterations * 128 / images == pytest.approx(300, abs=0.1)
        epoch = images / 128
        rates = [settings.learning_rate(round(epoch * at)) for at in (0, 24, 26, 49, 51, 299)]
        assert rates == [1e-4, 1e-4, 5e-5, 5e-5, 2.5e-5, 1e-4 / 2**11]
    assert train_preset("upscaler", "paper", "large-50k").upscaler == "large"


@pytest.mark.parametrize(
    "cfg", [SHAPES["debug"], UpscalerConfig(widths=(4, 8))], ids=["folded", "plain"]
)
def test_frames_come_out_four_times_as_large(cfg: UpscalerConfig) -> None:
    torch.manual_seed(0)
    frames = torch.rand(2, 3, 3, 64, 64)
    upscaler = Upscaler(cfg)
    output = upscaler.upscale(frames)
    assert output.shape == (2, 3, 3, 256, 256)
    assert output.min() >= 0
    assert output.max() <= 1
    plain = bicubic(frames.flatten(0, 1), 4).unflatten(0, (2, 3))
    assert torch.equal(output, plain) == cfg.residual  # a residual network starts as bicubic


def test_pairs_show_the_same_screen(sides: tuple[str, str]) -> None:
    train_pairs, held_out = pairs_of(sides, "train"), pairs_of(sides, "val")
    small = EpisodeReader(sides[0])
    paired = list(small)[:3]
    assert len(train_pairs) + len(held_out) == sum(episode.num_frames for episode in paired)
    ids = np.arange(len(train_pairs))
    batch = train_pairs.batch(ids)
    assert batch.large_frames_BHWC.shape == (len(ids), 256, 256, 3)
    validation = set(EpisodeReader(sides[0], "val").session_ids)
    trained = [episode.frames_THWC for episode in paired if episode.session_id not in validation]
    assert np.array_equal(batch.small_frames_BhwC, np.concatenate(trained))
    # Both sizes are area averages of the 320 x 224 screen, so that the mean over 4 x 4 pixels of
    # the large frame is the small one, except at edges.
    shrunk = np.stack([letterbox(frame, 64) for frame in batch.large_frames_BHWC.numpy()]).astype(
        int
    )
    apart = np.abs(shrunk - batch.small_frames_BhwC.numpy()).mean((1, 2, 3))
    assert apart.max() < 2.5
    moved = np.abs(np.roll(shrunk, 5, axis=0) - batch.small_frames_BhwC.numpy()).mean((1, 2, 3))
    assert (moved > apart).mean() > 0.95
    assert GAME in train_pairs.describe(0)


def test_a_resumed_run_equals_one_that_never_stopped(
    sides: tuple[str, str], run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000008")
    options: dict[str, Any] = {"config": CONFIG, "data": [sides[0]], "pairs": sides[1]}
    options["out"] = tmp_path / "run"
    train(
        TrainingRun("upscaler", recipe=SHORT, cache_dir=run.parent / "cache", **options),
        resume=True,
    )
    one, other = open_checkpoint(run), open_checkpoint(tmp_path / "run")
    assert one.state["data_state"] == other.state["data_state"]
    for name, value in one.weights().items():
        assert torch.equal(value, other.weights()[name]), name
    for name, value in one.optimizer_tensors().items():
        assert torch.equal(value, other.optimizer_tensors()[name]), name
    with pytest.raises(InputError, match=r"its recipe\.upscaler is debug, not cpu"):
        train(
            TrainingRun("upscaler", recipe=dataclasses.replace(SHORT, upscaler="cpu"), **options),
            resume=True,
        )


@pytest.mark.slow
def test_a_short_training_beats_bicubic_on_held_out_frames(
    sides: tuple[str, str], tmp_path: Path
) -> None:
    settings = train_preset(
        "upscaler", "debug", iterations=80, batch_size=4, lr=3e-3, validate_every=80
    )
    options: dict[str, Any] = {"config": CONFIG, "data": [sides[0]], "pairs": sides[1]}
    options["cache_dir"] = Path(sides[0]).parent / "cache"
    train(TrainingRun("upscaler", recipe=settings, out=tmp_path / "run", **options))
    held_out = pairs_of(sides, "val")
    batch = held_out.batch(held_out.evenly_spaced(8))
    small, large = (
        to_float_frames(side) for side in (batch.small_frames_BhwC, batch.large_frames_BHWC)
    )
    upscaler = load_upscaler(tmp_path / "run")
    output, plain = (
        frame_psnr(frames, large).mean() for frames in (upscaler.upscale(small), bicubic(small, 4))
    )
    assert output > plain + 0.5
    last = [row for row in read_metrics(tmp_path / "run") if "validation/psnr" in row][-1]
    assert last["validation/psnr"] > last["validation/psnr_bicubic"] + 0.5


def test_images_keep_their_size_with_an_upscaler(run: Path) -> None:
    frames = np.random.default_rng(0).integers(256, size=(3, 64, 64, 3), dtype=np.uint8)
    large, scale = at_scale(frames, load_upscaler(run), 4)
    assert (large.shape, large.dtype, scale) == ((3, 256, 256, 3), np.uint8, 1)
    assert at_scale(frames, None, 4) == (frames, 4)


def test_generate_uses_an_upscaler(
    sides: tuple[str, str], run: Path, tiny_world: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"model": tiny_world, "data": Path(sides[0])}
    options |= {"horizon": 2, "sampling_steps": 1}
    sizes = {}
    for name, upscaler in (("plain", None), ("upscaled", run)):
        generate.run(generate.Args(out=tmp_path / name, upscaler=upscaler, **options))
        (file,) = (tmp_path / name).glob("*.png")
        sizes[name] = np.asarray(Image.open(file))
    assert sizes["upscaled"].shape[0] == 2 * 256 + 2
    assert abs(sizes["plain"].shape[0] - sizes["upscaled"].shape[0]) < 10
    assert not np.array_equal(sizes["plain"][:256, :256], sizes["upscaled"][:256, :256])


def test_the_report_uses_the_upscaler_of_its_run(
    finished_run: tuple[Path, str], run: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished_run[0], tmp_path / "run")
    build_pipeline_report(tmp_path / "run", tmp_path / "plain")
    shutil.copytree(run, tmp_path / "run/upscaler")
    build_pipeline_report(tmp_path / "run", tmp_path / "upscaled")
    plain, upscaled = (
        (tmp_path / name / "index.html").read_text() for name in ("plain", "upscaled")
    )
    assert "enlarged by the upscaler" in upscaled
    assert "enlarged by the upscaler" not in plain


def test_bad_input_is_refused(sides: tuple[str, str], run: Path, tmp_path: Path) -> None:
    upscaler = load_upscaler(run)
    for frames, message in (
        (
            torch.rand(2, 3, 32, 32),
            r"expected frames of shape \(B, 3, 64, 64\), got \(2, 3, 32, 32\)",
        ),
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), "expected float frames"),
        (torch.rand(2, 3, 64, 64) * 255, "divide uint8 by 255"),
    ):
        with pytest.raises(InputError, match=message):
            upscaler.upscale(frames)
    options: dict[str, Any] = {"config": CONFIG, "recipe": SHORT, "data": [sides[0]]}
    options["out"] = tmp_path / "out"
    with pytest.raises(InputError, match="needs --high-res-data"):
        train(TrainingRun("upscaler", **options))
    with pytest.raises(InputError, match=r"expected \(64, 64\) and \(256, 256\)"):
        train(TrainingRun("upscaler", pairs=sides[0], **options))
    with pytest.raises(InputError, match="takes no --high-res-data"):
        train(
            TrainingRun(
                "tokenizer",
                pairs=sides[1],
                **{**options, "recipe": train_preset("tokenizer", "debug")},
            )
        )
    with pytest.raises(InputError, match="cannot be halved"):
        UpscalerConfig(fold=4, widths=(4,) * 7)
    shutil.copytree(run, tmp_path / "damaged")
    file = tmp_path / "damaged/checkpoints/step-00000008/model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"model\.safetensors differs from its sha256"):
        load_upscaler(tmp_path / "damaged")

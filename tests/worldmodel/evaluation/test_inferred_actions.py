"""Evaluation of GenieRedux on the actions that its LAM infers, and of the LAM itself."""

from pathlib import Path

import numpy as np
import pytest
import torch

from envs.utils.errors import InputError
from tests.fixtures.datasets import record
from worldmodel import Dynamics, GenieRedux, GenieReduxG, LatentActionModel, Tokenizer, preset
from worldmodel.data.batch import to_float_frames
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.evaluation.evaluate import evaluate
from worldmodel.evaluation.window_metrics import measure_windows
from worldmodel.evaluation.window_predictions import Settings
from worldmodel.metrics import frame_psnr

DEBUG = preset("debug")
SETTINGS = {"horizon": 4, "stride": 5, "steps": 2}


def build() -> GenieRedux:
    """Return a model whose predictions depend on all of its inputs."""
    torch.manual_seed(0)
    dynamics = Dynamics(DEBUG.with_latent_actions())
    lam = LatentActionModel(DEBUG)
    for parameter in (*dynamics.parameters(), *lam.parameters()):
        torch.nn.init.normal_(parameter, std=0.2)
    return GenieRedux(Tokenizer(DEBUG), lam, dynamics).eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return record(tmp_path_factory.mktemp("data"), episodes=3, steps=20)


def test_inferred_actions_are_the_codes_of_the_lam(data: str, tmp_path: Path) -> None:
    model, settings = build(), Settings(**SETTINGS, actions="inferred")
    clips = ClipDataset([data], tmp_path, length=6, stride=5, split=None)
    window_ids = np.arange(3)
    scores = measure_windows(model, clips, window_ids, settings, seed=7)
    frames = to_float_frames(clips.batch(window_ids).frames_BTHWC)
    codes = model.lam.encode(frames)
    assert len(codes.unique()) > 1
    by_hand = model.generate(
        frames[:, :2], codes, steps=2, generator=torch.Generator().manual_seed(7)
    )
    expected = frame_psnr(frames[:, 2:], by_hand)
    assert torch.equal(scores.frames["prediction"]["psnr"], expected)
    other = model.generate(
        frames[:, :2], (codes + 1) % 7, steps=2, generator=torch.Generator().manual_seed(7)
    )
    assert not torch.equal(frame_psnr(frames[:, 2:], other), expected)


def test_the_lam_predicts_each_frame_from_true_ones(data: str) -> None:
    model = build()
    options = {**SETTINGS, "distance_frames": 4}
    result = evaluate(model, [data], **options, predictor="lam", limit=3)  # type: ignore[arg-type]
    overall = result["overall"]
    assert overall["delta_psnr"]["mean"] is None
    assert overall["prediction"]["mean"]["psnr"] > 0
    if overall["prediction"]["distance"] is not None:
        assert overall["reconstruction"]["distance"] > 0
    frames = torch.rand(2, 6, 3, 64, 64)
    with torch.no_grad():
        by_hand = model.lam(frames).frames.clamp(0, 1)
    assert torch.allclose(model.lam.predict_next(frames), by_hand, atol=1e-6)


def test_long_clips_pass_through_a_sliding_window() -> None:
    lam, frames = build().lam, torch.rand(1, 15, 3, 64, 64)
    predicted = lam.predict_next(frames)
    assert predicted.shape == (1, 14, 3, 64, 64)
    changed = frames.clone()
    changed[:, 0] = 1 - changed[:, 0]
    # From frame 11 on neither prediction nor action reaches back to frame 0.
    assert torch.equal(lam.encode(frames)[:, 10:], lam.encode(changed)[:, 10:])
    assert torch.equal(lam.predict_next(changed)[:, 10:], predicted[:, 10:])
    assert not torch.equal(lam.predict_next(changed)[:, :8], predicted[:, :8])


@pytest.mark.parametrize("options", [{"actions": "inferred"}, {"predictor": "lam"}])
def test_a_model_on_real_actions_infers_none(data: str, options: dict[str, str]) -> None:
    model = GenieReduxG(Tokenizer(DEBUG), Dynamics(DEBUG)).eval()
    with pytest.raises(InputError, match="GenieReduxG infers no actions"):
        evaluate(model, [data], **SETTINGS, **options)  # type: ignore[arg-type]

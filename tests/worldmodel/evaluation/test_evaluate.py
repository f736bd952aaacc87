"""Evaluation on the counting env, where a perfect model can be written down, and with a real model
once.
"""

import dataclasses
import hashlib
import io
import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from envs.episodes.dataset import EpisodeReader
from envs.games.counting import CountingEnv, read_step_and_action
from envs.utils.errors import InputError
from experiments.commands.evaluate import comparison_notes, results_table
from tests.fixtures.datasets import record
from worldmodel import Dynamics, GenieReduxG, Tokenizer, preset
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.evaluation.codebook_stats import moving_patches
from worldmodel.evaluation.evaluate import (
    evaluate,
    export,
    spread_windows,
    summarise_scores,
    windows_by_game,
)
from worldmodel.evaluation.external_predictions import ExternalPredictions
from worldmodel.evaluation.far_windows import FarWindows
from worldmodel.evaluation.feature_networks import feature_network
from worldmodel.evaluation.window_metrics import concat_scores, measure_windows
from worldmodel.evaluation.window_predictions import Settings
from worldmodel.metrics import PSNR_CAP, random_actions


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return record(tmp_path_factory.mktemp("evaluate") / "data", episodes=3, steps=50)


class PerfectTokenizer:
    """Decodes exactly what was encoded last; all tokens are 1, in a moving patch 2."""

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        self.frames = frames
        moving = moving_patches(frames, 8).long()
        return torch.cat([torch.zeros_like(moving[:, :1]), 1 + moving], 1)

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.frames


class CountingModel(torch.nn.Module):
    """Knows the counting env: reads the last given frame and plays the actions after it. `blind`:
    ignores them.
    """

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.blind = blind
        self.actions = 5
        self.device, self.autocast = torch.device("cpu"), nullcontext
        self.cfg = SimpleNamespace(
            tokenizer=SimpleNamespace(codes=3), dynamics=SimpleNamespace(chunk_size=2)
        )
        self.tokenizer = PerfectTokenizer()
        self.calls: list[dict[str, Any]] = []

    def for_game(self, game):
        return self

    def generate(
        self, frames, actions, *, steps=25, temperature=1.0, mode="one_pass", generator=None
    ):
        self.calls.append({"steps": steps, "mode": mode, "frames": tuple(frames.shape)})
        videos = []
        for given, taken in zip(frames, actions[:, frames.shape[1] - 1 :].tolist(), strict=True):
            env = CountingEnv()
            last_HWC = (given[-1].movedim(0, -1) * 255).byte().numpy()
            env.load_state(json.dumps(read_step_and_action(last_HWC)).encode())
            shown = [env.step(np.int64(0 if self.blind else action))[0] for action in taken]
            videos.append(torch.from_numpy(np.stack(shown)).movedim(-1, 1) / 255)
        return torch.stack(videos)


def test_a_model_that_knows_the_game_is_perfect_and_copying_is_not(data: str) -> None:
    """Proves the alignment of frames, actions and steps: a shift by one would cost every figure
    here.
    """
    model = CountingModel()
    result = evaluate(
        model,
        [data],
        context=2,
        horizon=10,
        stride=20,
        steps=3,
        mode="autoregressive",
        distance=False,
    )  # type: ignore[arg-type]
    overall = result["overall"]
    assert overall["windows"] == sum(
        (len(episode.frames_THWC) - 12) // 20 + 1 for episode in EpisodeReader(data)
    )
    assert overall["episodes"] == 3
    perfect = {"psnr": PSNR_CAP, "ssim": 1, "moving_psnr": PSNR_CAP}
    assert overall["prediction"]["by_step"]["psnr"] == pytest.approx([PSNR_CAP] * 10)
    assert overall["prediction"]["one_step"] == pytest.approx(perfect)
    assert overall["reconstruction"] == pytest.approx({**perfect, "distance": None})
    assert max(overall["copy"]["by_step"]["psnr"]) < 30
    assert overall["copy"]["mean"]["moving_psnr"] < overall["copy"]["mean"]["psnr"]
    assert overall["background"]["static"] == 1
    assert overall["background"]["moving"] == 0
    assert overall["background"]["codes_used"] == pytest.approx(2 / 3)
    assert result["games"] == {"Counting": overall}
    assert all(call["steps"] == 3 and call["mode"] == "autoregressive" for call in model.calls)
    assert all(call["frames"][1] == 2 for call in model.calls)
    delta = overall["delta_psnr"]
    assert (delta["t"], delta["replaced"]) == (4, "all")
    assert delta["low"] < delta["mean"] < delta["high"]
    assert delta["mean"] > 15  # a random action is the true one in a fifth of the windows


def test_copying_is_scored_against_each_predicted_frame(data: str, tmp_path: Path) -> None:
    """The baseline's figures, computed by hand from the episodes."""
    clips = ClipDataset([data], tmp_path, length=12, stride=20, split=None)
    expected = []
    for number in range(len(clips)):
        episode_id, start = clips.locate(number)
        episode = next(
            e for e in EpisodeReader(data) if e.session_id == clips.episodes[episode_id].session_id
        )
        frames = episode.frames_THWC[start : start + 12] / 255
        expected.append(
            [-10 * np.log10(((frames[2 + k] - frames[1]) ** 2).mean()) for k in range(10)]
        )
    result = evaluate(CountingModel(), [data], distance=False)  # type: ignore[arg-type]
    assert result["overall"]["copy"]["by_step"]["psnr"] == pytest.approx(
        np.mean(expected, 0).tolist(), abs=1e-3
    )


def test_a_model_that_ignores_actions_has_no_control(data: str) -> None:
    result = evaluate(CountingModel(blind=True), [data], distance=False)  # type: ignore[arg-type]
    assert result["overall"]["delta_psnr"]["mean"] == 0


def test_figures_do_not_depend_on_how_windows_are_batched_or_joined(
    data: str, tmp_path: Path
) -> None:
    clips = ClipDataset([data], tmp_path, length=6, stride=5, split=None)
    network = feature_network()
    settings = Settings(horizon=4, stride=5)
    ids = spread_windows(windows_by_game(clips), 7)["Counting"]
    assert len(ids) == 7
    model: Any = CountingModel(blind=True)
    whole = summarise_scores(measure_windows(model, clips, ids, settings, network), settings)
    parts = [
        measure_windows(model, clips, part, settings, network)
        for part in (ids[:1], ids[1:5], ids[5:])
    ]
    split = summarise_scores(concat_scores(parts), settings)
    assert split["prediction"]["distance"] == pytest.approx(
        whole["prediction"]["distance"], rel=1e-4
    )
    for side in ("prediction", "copy"):
        assert split[side]["by_step"]["psnr"] == pytest.approx(whole[side]["by_step"]["psnr"])
        assert split[side]["distance"] > 0


def test_only_windows_far_from_other_episodes_are_evaluated(data: str, tmp_path: Path) -> None:
    training = record(tmp_path / "training", episodes=2, steps=50, seed=5)
    options: dict[str, Any] = {"stride": 5, "distance": False}
    model: Any = CountingModel()
    every = evaluate(model, [data], **options)
    far = evaluate(model, [data], **options, far=FarWindows((training,), 0.25))
    assert far["overall"]["windows"] == math.ceil(every["overall"]["windows"] / 4)
    assert far["far"]["Counting"] > 0
    assert every["far"] == {}


def test_distance_takes_in_the_same_frames_of_each_side_and_is_named(data: str) -> None:
    result = evaluate(CountingModel(), [data], limit=3, distance_frames=12)  # type: ignore[arg-type]
    assert result["distance_name"] == "FID-EfficientNetLite0"
    assert result["overall"]["prediction"]["distance"] == pytest.approx(0, abs=1e-3)
    assert result["overall"]["copy"]["distance"] > 0.1
    assert result["overall"]["reconstruction"]["distance"] == pytest.approx(0, abs=1e-3)
    assert result["settings"]["inception_sha256"] is None
    without = evaluate(CountingModel(), [data], limit=3, distance=False)  # type: ignore[arg-type]
    assert without["distance_name"] is None
    assert without["overall"]["prediction"]["distance"] is None


class GreyLevels(torch.nn.Module):
    """The calling convention of Inception's file; its features are mean grey levels of rows."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return images.float().mean((1, 3)).repeat(1, 32)[:, :2048]


def test_results_name_the_enlargement_and_the_file_of_the_fid(data: str, tmp_path: Path) -> None:
    """Reconstructions of a real, untrained tokenizer are as far away as they are wrong."""
    file = tmp_path / "inception.pt"
    torch.jit.script(GreyLevels()).save(file)
    torch.manual_seed(0)
    model = GenieReduxG(Tokenizer(preset("debug")), Dynamics(preset("debug"))).eval()
    options: dict[str, Any] = {"horizon": 4, "steps": 1, "limit": 3, "inception": file}
    results = {
        resize: evaluate(model, [data], fid_resize=resize, **options)
        for resize in ("nearest", "bilinear")
    }
    for resize, result in results.items():
        assert result["distance_name"] == f"FID-{resize}"
        settings = result["settings"]
        assert settings["fid_resize"] == resize
        assert settings["inception_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert result["overall"]["reconstruction"]["distance"] > 1
    near, smooth = (result["overall"]["copy"]["distance"] for result in results.values())
    assert near != smooth

    shown = Console(width=200, record=True, file=io.StringIO())
    shown.print(results_table(results["bilinear"]))
    text = shown.export_text()
    assert "its distance" in text  # of reconstructions
    assert "FID-bilinear" in text
    assert "delta-PSNR (all), dB" in text
    for note in ("--fid-resize nearest", "another file", "--delta-actions last"):
        assert note in text
    notes = " ".join(comparison_notes(evaluate(model, [data], delta_actions="last", **options)))
    assert "fid-resize" not in notes
    assert "delta" not in notes


def test_a_real_model_is_measured_the_same_twice_and_the_result_is_written_whole(
    data: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = GenieReduxG(Tokenizer(preset("debug")), Dynamics(preset("debug"))).eval()
    options: dict[str, Any] = {
        "horizon": 4,
        "steps": 2,
        "limit": 2,
        "distance": False,
        "cache_dir": tmp_path / "cache",
    }
    first = evaluate(model, [data], out=tmp_path / "result.json", **options)
    assert json.loads((tmp_path / "result.json").read_text()) == first
    assert evaluate(model, [data], **options) == first
    assert len(first["overall"]["prediction"]["by_step"]["psnr"]) == 4
    assert 0 < first["overall"]["prediction"]["mean"]["psnr"] < 60
    assert first["settings"]["horizon"] == 4
    one_split = evaluate(model, [data], split="val", **options)
    assert one_split["overall"]["episodes"] == 1
    assert one_split["overall"]["delta_psnr"]["low"] is None  # one episode gives no interval


@pytest.mark.slow
def test_two_ray_workers_give_the_numbers_of_one_process(
    ray_cluster: None, data: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = GenieReduxG(Tokenizer(preset("debug")), Dynamics(preset("debug"))).eval()
    options: dict[str, Any] = {
        "horizon": 4,
        "stride": 6,
        "steps": 2,
        "limit": 7,
        "batch_size": 2,
        "cache_dir": tmp_path,
    }
    here = evaluate(model, [data], **options)
    assert here["distance_name"] is not None
    assert here["overall"]["prediction"]["distance"] > 0
    assert evaluate(model, [data], workers=2, **options) == here


@pytest.mark.parametrize("replaced", ["all", "last"])
def test_a_peer_is_scored_by_its_pictures(data: str, tmp_path: Path, replaced: str) -> None:
    """A peer that plays the counting env gets the figures of the model that does, to the rounding
    of its pictures.
    """
    root = tmp_path / "windows"
    options: dict[str, Any] = {"horizon": 5, "stride": 20, "limit": 3, "steps": 1}
    options["delta_actions"] = replaced
    assert export(root, [data], **options) == 3
    model = CountingModel()
    for file in sorted(root.rglob("window.json")):
        window = json.loads(file.read_text())
        given = [np.asarray(Image.open(file.parent / f"given-{k:03d}.png")) for k in range(2)]
        assert window["context"] == 2
        assert len(window["actions"]) == 6
        for name, kind in (("actions", "frame"), ("random_actions", "random")):
            frames = torch.from_numpy(np.stack(given)).movedim(-1, 1)[None] / 255
            made = model.generate(frames, torch.tensor([window[name]]))[0]
            for step, pixels in enumerate(made):
                if kind == "frame" or step == window["delta_t"] - 1:
                    picture = Image.fromarray((pixels.movedim(0, -1) * 255).round().byte().numpy())
                    picture.save(file.parent / f"{kind}-{step:03d}.png")
    external = evaluate(ExternalPredictions(root), [data], distance=False, **options)
    expected = evaluate(model, [data], distance=False, **options)  # type: ignore[arg-type]
    for name in ("prediction", "copy", "delta_psnr"):
        assert external["overall"][name] == expected["overall"][name]
    assert external["overall"]["reconstruction"] == external["overall"]["background"] == {}
    assert external["overall"]["delta_psnr"]["mean"] > 5

    other = {**options, "delta_actions": "last" if replaced == "all" else "all"}
    with pytest.raises(InputError, match=f"was written with --delta-actions {replaced}"):
        evaluate(ExternalPredictions(root), [data], distance=False, **other)

    for file in root.rglob("random-*.png"):
        file.unlink()
    assert (
        evaluate(ExternalPredictions(root), [data], distance=False, **options)["overall"][
            "delta_psnr"
        ]["mean"]
        is None
    )
    last = sorted(root.rglob("frame-004.png"))[-1]
    Image.new("RGB", (32, 64)).save(last)
    with pytest.raises(InputError, match=r"frame-004.png: expected 64x64 pixels, got 32x64"):
        evaluate(ExternalPredictions(root), [data], distance=False, **options)
    last.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"frame-004.png: no picture"):
        evaluate(ExternalPredictions(root), [data], distance=False, **options)
    last.unlink()
    with pytest.raises(InputError, match=r"frame-004.png is missing"):
        evaluate(ExternalPredictions(root), [data], distance=False, **options)
    with pytest.raises(InputError, match="no folder of a peer's predictions"):
        ExternalPredictions(root / "nothing")


def test_random_actions_replace_those_into_predicted_frames_alone() -> None:
    actions = torch.full((50, 6), 9)
    made = random_actions(actions, 3, seed=4, action_count=5)
    assert torch.equal(made[:, :2], actions[:, :2])
    assert set(made[:, 2:].flatten().tolist()) == set(range(5))
    assert torch.equal(random_actions(actions, 3, seed=4, action_count=5), made)


@pytest.mark.parametrize("mode", ["one_pass", "autoregressive"])
@pytest.mark.parametrize(("t", "chunk"), [(1, 2), (3, 2), (4, 2), (4, 1), (4, 3), (2, 4), (4, 5)])
def test_delta_psnr_of_the_prediction_at_hand_is_that_of_two_whole_predictions(
    mode: str, t: int, chunk: int, data: str, tmp_path: Path
) -> None:
    """Taking over the prediction that is there, and predicting no more frames than needed, changes
    no bit.
    """
    torch.manual_seed(0)
    cfg = preset("debug")
    cfg = dataclasses.replace(cfg, dynamics=dataclasses.replace(cfg.dynamics, chunk_size=chunk))
    model = GenieReduxG(Tokenizer(cfg), Dynamics(cfg)).eval()
    clips = ClipDataset([data], tmp_path, length=7, stride=9)
    settings = Settings(horizon=5, steps=3, mode=mode, delta_t=t)
    ids = np.arange(3)
    scores = measure_windows(model, clips, ids, settings, seed=7)
    batch = clips.batch(ids)
    frames = batch.frames_BTHWC.movedim(-1, 2) / 255
    quality = []
    for random in (False, True):
        actions = batch.actions_BT.clone()
        if random:
            # The shape that random actions are drawn in: up to the end of a chunk of frames.
            whole = 5 if mode == "one_pass" else min(5, math.ceil(t / chunk) * chunk)
            random_BT = torch.randint(5, (3, 1 + whole), generator=torch.Generator().manual_seed(7))
            actions[:, 1 : 1 + whole] = random_BT[:, 1:]
        options: dict[str, Any] = {
            "steps": 3,
            "mode": mode,
            "generator": torch.Generator().manual_seed(7),
        }
        made = model.generate(frames[:, :2], actions, **options)
        quality.append(
            -10 * (made[:, t - 1] - frames[:, 1 + t]).square().mean((-3, -2, -1)).log10()
        )
    torch.testing.assert_close(scores.delta_B, quality[0] - quality[1], atol=1e-4, rtol=0)


def test_bad_settings_and_short_episodes_are_refused(data: str) -> None:
    model: Any = CountingModel()
    with pytest.raises(InputError, match=r"no episode of Counting has the 202 frames"):
        evaluate(model, [data], horizon=200, distance=False)
    with pytest.raises(InputError, match="steps = 0"):
        evaluate(model, [data], steps=0)
    with pytest.raises(InputError, match="limit = 0"):
        evaluate(model, [data], limit=0)
    with pytest.raises(InputError, match="delta_actions = 'first'"):
        evaluate(model, [data], delta_actions="first")

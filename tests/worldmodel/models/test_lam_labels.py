"""Training of a latent action model with the recorded actions of some episodes."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.episodes.dataset import EpisodeReader, EpisodeWriter
from envs.utils.errors import InputError
from envs.utils.run_dir import read_metrics
from experiments.__main__ import execute
from tests.fixtures.datasets import record
from worldmodel import LatentActionModel, preset
from worldmodel.checkpoint import open_checkpoint
from worldmodel.config import MASKED_ACTION
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.data.streaming_dataset import StreamingDataset
from worldmodel.loading import load_lam
from worldmodel.models.action_map import agreement
from worldmodel.models.vector_quantizer import LABEL_TEMPERATURE
from worldmodel.training.config import train_preset
from worldmodel.training.fit_action_map import count_actions, fit_action_map
from worldmodel.training.train import TrainingRun, train

DEBUG = preset("debug")
SHARE = 0.3
SHORT: dict[str, Any] = {
    "iterations": 6,
    "checkpoint_every": 3,
    "log_every": 3,
    "validate_every": 3,
    "label_fraction": SHARE,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("labels") / "data"
    return record(folder, games=("Counting", "NoisyTV"), episodes=9, steps=30)


def shown_sessions(clips: ClipDataset | StreamingDataset, share: float) -> set[str]:
    """Return the sessions with visible actions; check that all or none of a session are visible."""
    clips.reveal_actions(share)
    sessions: dict[str, set[bool]] = {}
    for window in range(len(clips)):
        hidden = (clips.batch(np.array([window])).actions_BT == MASKED_ACTION).flatten().tolist()
        sessions.setdefault(clips.episodes[clips.locate(window)[0]].session_id, set()).update(
            hidden
        )
    assert all(len(hidden) == 1 for hidden in sessions.values())
    return {session for session, hidden in sessions.items() if hidden == {False}}


def with_other_actions(data: str, out: Path, sessions: set[str]) -> str:
    """Copy a data set with other recorded actions in some sessions."""
    with EpisodeWriter(out) as writer:
        for split in ("train", "val"):
            reader = EpisodeReader(data, split)
            for index in range(len(reader)):
                episode = reader[index]
                if episode.session_id in sessions:
                    episode = dataclasses.replace(episode, actions=(episode.actions + 1) % 5)
                writer.add(episode)
    return str(out)


def trained(data: str, out: Path, resume: bool = False, **options: Any) -> dict[str, torch.Tensor]:
    """Return the weights of a short run with labels."""
    component = "dynamics" if "tokenizer" in options else "lam"
    recipe = train_preset(component, "debug", **SHORT)
    train(TrainingRun(component, DEBUG, recipe, [data], out, **options), resume=resume)
    return open_checkpoint(out).weights()


# Selection of labelled episodes


def test_both_datasets_label_the_same_share_of_each_games_episodes(
    data: str, tmp_path: Path
) -> None:
    clips = ClipDataset([data], tmp_path, length=6)
    games = {episode.session_id: episode.game for episode in clips.episodes}
    # Each game has 8 training episodes; one is for validation.
    for share, count in ((0.0, 0), (0.01, 1), (SHARE, 3), (1.0, 8)):
        shown = shown_sessions(clips, share)
        assert [sum(games[session] == game for session in shown) for game in clips.games] == [
            count,
            count,
        ]
    assert shown_sessions(clips, 0.01) < shown_sessions(clips, SHARE)
    assert shown_sessions(StreamingDataset([data], length=6), SHARE) == shown_sessions(clips, SHARE)


def test_half_of_the_draws_are_labelled_and_do_not_depend_on_ranks(
    data: str, tmp_path: Path
) -> None:
    clips = ClipDataset([data], tmp_path, length=6)
    plain = clips.sampler(seed=1).batch(0, 400)
    clips.reveal_actions(0.1)
    for windows in (clips, StreamingDataset([data], length=6)):
        windows.reveal_actions(0.1)
        sampler = windows.sampler(seed=1)
        ids = sampler.batch(800, 400, 0, 1)
        labelled = (windows.batch(ids).actions_BT[:, 0] != MASKED_ACTION).float().mean()
        assert 0.45 < float(labelled) < 0.7  # half, and 2 of 16 of the others
        of_ranks = np.concatenate([sampler.batch(800, 400, rank, 2) for rank in range(2)])
        assert sorted(of_ranks) == sorted(ids)
    clips.reveal_actions(0.0)
    assert (clips.sampler(seed=1).batch(0, 400) == plain).all()


def test_only_labelled_actions_change_weights(data: str, tmp_path: Path) -> None:
    clips = ClipDataset([data], tmp_path, length=6)
    shown = shown_sessions(clips, SHARE)
    hidden = {episode.session_id for episode in clips.episodes} - shown
    weights = {
        name: trained(folder, tmp_path / f"run-{name}", cache_dir=tmp_path / f"cache-{name}")
        for name, folder in {
            "plain": data,
            "hidden": with_other_actions(data, tmp_path / "hidden", hidden),
            "shown": with_other_actions(data, tmp_path / "shown", shown),
        }.items()
    }
    assert all(
        torch.equal(value, weights["hidden"][name]) for name, value in weights["plain"].items()
    )
    assert not torch.equal(weights["plain"]["to_code.weight"], weights["shown"]["to_code.weight"])


# Effect of labels


def test_the_loss_equals_an_independent_calculation() -> None:
    torch.manual_seed(0)
    lam = LatentActionModel(DEBUG).eval()
    frames = torch.rand(2, 4, 3, 64, 64)
    labels = torch.tensor([[0, MASKED_ACTION, 4], [MASKED_ACTION, 6, MASKED_ACTION]])
    with torch.no_grad():
        losses = lam(frames, labels).losses
        features = lam.to_code(lam.actions(lam.encode_features(frames)[0]))
        alone = lam(frames).losses
    total = 0.0
    for clip, t in ((0, 0), (0, 2), (1, 1)):
        cosines = lam.codebook @ features[clip, t] / features[clip, t].norm()
        total -= float((cosines / LABEL_TEMPERATURE).log_softmax(0)[labels[clip, t]])
    assert float(losses["labels"]) == pytest.approx(total / 6, rel=1e-5)
    assert "labels" not in alone
    assert float(losses["loss"]) == float(alone["loss"])
    with pytest.raises(InputError, match=r"labels: action 7 has no code, lam\.codes = 7"):
        lam(frames, torch.full((2, 3), 7))


def test_with_labels_even_unused_codes_stay_in_place() -> None:
    torch.manual_seed(0)
    quantizer = LatentActionModel(DEBUG).quantizer.train()
    before = quantizer.codebook.clone()
    common = torch.nn.functional.normalize(torch.randn(8), dim=0)
    features = [common + 0.02 * torch.randn(4, 8) for _ in range(600)]
    for feature in features:
        quantizer(feature, torch.full((4,), MASKED_ACTION))
    # A dead code, which would be re-seeded without labels.
    assert float(quantizer.use_K.min()) < DEBUG.lam.reseed_below / 7
    assert torch.equal(quantizer.codebook, before)
    quantizer(features[0])
    assert not torch.equal(quantizer.codebook, before)


@pytest.mark.slow
def test_labelled_codes_stand_for_the_buttons_of_held_out_episodes(tmp_path: Path) -> None:
    data = record(tmp_path / "data", games=("Counting",), episodes=12, steps=60)
    test = record(tmp_path / "test", games=("Counting",), episodes=2, steps=60, seed=1)
    length = DEBUG.frames
    held_out, known = (
        ClipDataset([folder], tmp_path, length=length, stride=length - 1, split=split)
        for folder, split in ((test, None), (data, "train"))
    )
    own, mapped = {}, {}
    for share in (0.0, 0.1):
        changes = {"iterations": 100, "validate_every": 100, "batch_size": 8, "lr": 1e-2}
        settings = train_preset("lam", "debug", **changes, label_fraction=share)
        train(
            TrainingRun(
                "lam", config=DEBUG, recipe=settings, data=[data], out=tmp_path / str(share)
            )
        )
        lam = load_lam(tmp_path / str(share))
        counts = count_actions(lam, held_out, actions=5)["Counting"]
        own[share] = agreement(counts, list(range(5)))["kappa"]
        latents = fit_action_map(lam, known).latent_actions("Counting")
        mapped[share] = agreement(counts, latents)["kappa"]
    assert own[0.1] > 0.9  # code a is button a, without a map
    assert own[0.0] < 0.5
    assert mapped[0.1] > max(0.9, mapped[0.0])
    rows = read_metrics(tmp_path / "0.1")
    assert rows[-1]["validation/labels"] < 0.5
    assert not any("labels" in name for row in read_metrics(tmp_path / "0.0") for name in row)


# Runs


@pytest.mark.parametrize("name", ["lam", "joint"])
def test_a_resumed_run_with_labels_equals_one_that_never_stopped(
    name: str, data: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {}
    if name == "joint":
        short = train_preset("tokenizer", "debug", iterations=2)
        train(
            TrainingRun(
                "tokenizer", config=DEBUG, recipe=short, data=[data], out=tmp_path / "tokenizer"
            )
        )
        options = {"tokenizer": tmp_path / "tokenizer", "joint_lam": True}
    whole = trained(data, tmp_path / "run", **options)
    prefix = "lam_" if name == "joint" else ""
    losses = [
        row[f"train/{prefix}labels"]
        for row in read_metrics(tmp_path / "run")
        if "train/loss" in row
    ]
    assert losses
    assert min(losses) > 0
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000006")
    resumed = trained(data, tmp_path / "run", resume=True, **options)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000006")
    component = "dynamics" if options else "lam"
    other: dict[str, Any] = {
        "recipe": train_preset(component, "debug", **{**SHORT, "label_fraction": 0.1}),
        "out": tmp_path / "run",
    }
    with pytest.raises(InputError, match=r"its recipe\.label_fraction is 0\.3, not 0\.1"):
        train(TrainingRun(component, config=DEBUG, data=[data], **other, **options), resume=True)


def test_mismatched_settings_are_refused(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common: dict[str, Any] = {"data": [data], "out": tmp_path / "out"}
    command = ["train", "lam", f"--data={data}", f"--out={tmp_path / 'out'}", "--preset=debug"]
    for share in ("1.5", "-0.1", "nan"):
        assert execute([*command, f"--label-fraction={share}"]) == 2
        line = capsys.readouterr().err
        assert f"label_fraction = {share}: the share of labelled episodes is in [0, 1]" in line
        assert line.count("\n") == 1
    for component in ("tokenizer", "dynamics"):
        tokenizer = tmp_path if component == "dynamics" else None
        recipe = train_preset(component, "debug", label_fraction=0.1)
        message = f"for a latent action model: train {component} without, or with --joint"
        with pytest.raises(InputError, match=message):
            train(
                TrainingRun(component, config=DEBUG, recipe=recipe, tokenizer=tokenizer, **common)
            )
    few = dataclasses.replace(DEBUG, lam=dataclasses.replace(DEBUG.lam, codes=4))
    with pytest.raises(InputError, match=r"5 actions, 4 codes: set lam\.codes to 5 or more"):
        train(
            TrainingRun(
                "lam", config=few, recipe=train_preset("lam", "debug", label_fraction=0.1), **common
            )
        )

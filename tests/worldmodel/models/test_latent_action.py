"""Latent actions: formulas, causality, alignment with frames, training, the map to buttons."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from envs.games.counting import CountingEnv
from envs.utils.errors import InputError
from envs.utils.run_dir import read_metrics
from experiments.__main__ import execute
from tests.fixtures.datasets import record
from worldmodel import (
    ActionMap,
    Dynamics,
    GenieRedux,
    GenieReduxG,
    LatentActionModel,
    Tokenizer,
    WorldModelConfig,
    load_world_model,
    preset,
)
from worldmodel.checkpoint import open_checkpoint
from worldmodel.env import Rollout
from worldmodel.loading import load_component, load_dynamics, load_lam, load_tokenizer
from worldmodel.models.action_map import agreement
from worldmodel.models.cpu_kernels import use_cpu_kernels
from worldmodel.models.weights import encoder_sha256
from worldmodel.training.config import train_preset
from worldmodel.training.flops import cost_of
from worldmodel.training.train import TrainingRun, train

DEBUG = preset("debug")
LATENT = DEBUG.with_latent_actions()
SMALL = dataclasses.replace(DEBUG, size=32)


def randomise(module: Any, seed: int = 0) -> Any:
    """Give a module weights whose outputs depend on all inputs, and return it."""
    torch.manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module.eval()


def build(seed: int = 0) -> GenieRedux:
    torch.manual_seed(seed)
    dynamics = randomise(Dynamics(LATENT), seed)
    return GenieRedux(Tokenizer(DEBUG), LatentActionModel(DEBUG), dynamics).eval()


def counting_clips(batch: int, frames: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return clips of the counting env at 32 pixels, in which frame t+1 shows action t.

    The result is (frames in [0, 1], actions).
    """
    draw, env = np.random.default_rng(seed), CountingEnv(size=32)
    actions = draw.integers(5, size=(batch, frames - 1))
    clips = []
    for clip_actions in actions:
        clips.append([env.reset()[0], *(env.step(action)[0] for action in clip_actions)])
    frames_BTHWC = torch.from_numpy(np.array(clips))
    return frames_BTHWC.movedim(-1, -3).float() / 255, torch.from_numpy(actions)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return record(tmp_path_factory.mktemp("lam") / "data", episodes=4, steps=30)


@pytest.fixture(scope="module")
def runs(data: str) -> dict[str, Path]:
    """Complete runs: tokenizer, lam, dynamics on the frozen lam, and dynamics with a joint lam."""
    root = Path(data).parent
    components: dict[str, tuple[str, dict[str, Any]]] = {
        "tokenizer": ("tokenizer", {}),
        "lam": ("lam", {}),
        "frozen": ("dynamics", {"tokenizer": root / "tokenizer", "lam": root / "lam"}),
        "joint": ("dynamics", {"tokenizer": root / "tokenizer", "joint_lam": True}),
    }
    for name, (component, options) in components.items():
        settings = train_preset(
            component, "debug", iterations=6, checkpoint_every=3, log_every=3, validate_every=3
        )
        train(
            TrainingRun(
                component, config=DEBUG, recipe=settings, data=[data], out=root / name, **options
            )
        )
    return {name: root / name for name in components}


# Formulas


def test_paper_has_the_papers_size() -> None:
    with torch.device("meta"):
        lam = LatentActionModel(preset("paper"))
    assert sum(parameter.numel() for parameter in lam.parameters()) == 168_667_288  # 168.7 M
    assert lam.codebook.shape == (7, 32)
    assert lam.to_action.weight.shape == (512, 16 * 16 * 512)


@pytest.mark.parametrize(
    ("codebook", "weight", "residual"), [("gradient", 1.0, False), ("ema", 5.0, True)]
)
def test_losses_equal_an_independent_calculation(
    codebook: str, weight: float, residual: bool
) -> None:
    changes = {
        "codebook": codebook,
        "commitment": 0.25,
        "changed_pixel_weight": weight,
        "residual": residual,
    }
    cfg = dataclasses.replace(DEBUG, lam=dataclasses.replace(DEBUG.lam, **changes))
    lam = randomise(LatentActionModel(cfg))
    frames = torch.rand(2, 4, 3, 64, 64)
    frames[:, :, :, :32] = frames[:, :1, :, :32]  # the upper half never changes
    with torch.no_grad():
        output = lam(frames)
        features = lam.encode_features(frames)[0]
        squares, weights, commitment = [], [], []
        for clip in range(2):
            predicted = lam.decode_features(
                frames[clip : clip + 1, :-1], lam.codebook[output.ids[clip : clip + 1]]
            )
            for t in range(3):
                code = lam.to_code.weight @ (lam.to_action.weight @ features[clip, t + 1])
                direction = code / code.norm()
                chosen = int((lam.codebook @ direction).argmax())
                assert output.ids[clip, t] == chosen
                commitment.append((direction - lam.codebook[chosen]).square().mean())
                truth = frames[clip, t + 1]
                torch.testing.assert_close(output.frames[clip, t], predicted[0, t])
                moved = (truth != frames[clip, t]).any(0).float().expand(3, 64, 64)
                weights.append(1 + (weight - 1) * moved)
                squares.append((predicted[0, t] - truth).square() * weights[-1])
    reconstruction = torch.stack(squares).sum() / torch.stack(weights).sum()
    torch.testing.assert_close(output.losses["reconstruction"], reconstruction)
    torch.testing.assert_close(output.losses["commitment"], torch.stack(commitment).mean())
    total = reconstruction + 0.25 * output.losses["commitment"]
    if codebook == "gradient":
        torch.testing.assert_close(output.losses["codebook"], output.losses["commitment"])
        total = total + output.losses["codebook"]
    torch.testing.assert_close(output.losses["loss"], total)


def test_gradients_go_straight_through_the_code() -> None:
    lam = LatentActionModel(DEBUG).train()
    torch.nn.init.normal_(lam.head.weight)
    lam(torch.rand(2, 3, 3, 64, 64)).losses["reconstruction"].backward()
    for name in ("to_action", "to_code", "from_code", "head"):
        gradient = getattr(lam, name).weight.grad
        assert gradient is not None
        assert gradient.abs().sum() > 0, name


# Time


@pytest.mark.parametrize("difference", [False, True])
def test_no_latent_action_and_no_frame_depends_on_a_later_frame(difference: bool) -> None:
    cfg = dataclasses.replace(DEBUG, lam=dataclasses.replace(DEBUG.lam, difference=difference))
    lam = randomise(LatentActionModel(cfg))
    frames, codes = torch.rand(2, 6, 3, 64, 64), torch.randn(2, 6, 8)
    with torch.no_grad():
        between = lam.actions(lam.encode_features(frames)[0])
        output = lam.decode_features(frames, codes)
        for t in range(6):
            changed, other = frames.clone(), codes.clone()
            changed[:, t] = torch.rand(2, 3, 64, 64)
            other[:, t] = torch.randn(2, 8)
            actions = lam.actions(lam.encode_features(changed)[0])
            assert torch.equal(actions[:, : max(t - 1, 0)], between[:, : max(t - 1, 0)])
            if t:  # the action after frame t-1 is the first that frame t can change
                assert not torch.isclose(actions[:, t - 1], between[:, t - 1]).all()
            for pixels in (lam.decode_features(changed, codes), lam.decode_features(frames, other)):
                assert torch.equal(pixels[:, :t], output[:, :t])  # output[:, t] is frame t+1
                assert not torch.isclose(pixels[:, t], output[:, t]).all()


def test_long_clips_are_encoded_through_a_window() -> None:
    lam = randomise(LatentActionModel(DEBUG))
    frames = torch.rand(1, 2 * DEBUG.frames + 3, 3, 64, 64)
    with torch.no_grad():
        actions = lam.encode(frames)
        assert actions.shape == (1, frames.shape[1] - 1)
        assert actions.dtype == torch.int64
        assert torch.equal(actions[:, :3], lam.encode(frames[:, :4]))


def test_it_finds_the_actions_of_the_counting_env_at_the_right_frames() -> None:
    """It sees frames only. The codes tell nothing about the actions one frame away."""
    # One or two of five seeds put two actions into one code, however long they train.
    torch.manual_seed(1)
    lam = LatentActionModel(SMALL)
    optimizer = torch.optim.AdamW(lam.parameters(), lr=1e-2)
    for step in range(250):
        frames, _ = counting_clips(8, 6, seed=step)
        lam.set_progress(step / 250)
        lam(frames).losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(lam.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    frames, actions = counting_clips(64, 6, seed=10_000)
    with torch.no_grad():
        latent = lam.eval().encode(frames)
    tables = {}
    for shift in (-1, 0, 1):
        real, read = actions[:, 1:-1].flatten(), latent[:, 1 + shift : 4 + shift].flatten()
        tables[shift] = np.zeros((5, 7), np.int64)
        np.add.at(tables[shift], (real.numpy(), read.numpy()), 1)
    action_map = ActionMap({"Counting": tables[0]})
    latents_A = torch.tensor(action_map.latent_actions())
    figures = {shift: agreement(table, latents_A.tolist()) for shift, table in tables.items()}
    assert figures[0]["information"] > 0.7
    assert figures[0]["kappa"] > 0.7
    for shift in (-1, 1):
        assert figures[shift]["information"] < 0.2
        assert abs(figures[shift]["kappa"]) < 0.2
    # The mapped action has the effect of its button: its prediction is closer to the next frame
    # than that of another button.
    with torch.no_grad():
        errors = [
            F.mse_loss(
                lam.decode_features(frames[:, :-1], lam.codebook[latents]).clamp(0, 1),
                frames[:, 1:],
            )
            for latents in (latents_A[actions], latents_A[(actions + 1) % 5])
        ]
    assert errors[0] < 0.5 * errors[1]


# Training


def test_each_kind_of_training_writes_matching_parts(runs: dict[str, Path]) -> None:
    tokenizer, lam = load_tokenizer(runs["tokenizer"]), load_lam(runs["lam"])
    frozen, joint = load_dynamics(runs["frozen"]), load_dynamics(runs["joint"])
    assert frozen.lam_sha256 == encoder_sha256(lam)
    assert open_checkpoint(runs["frozen"]).state["lam_sha256"] == encoder_sha256(lam)
    together = load_lam(runs["joint"])
    assert joint.lam_sha256 == encoder_sha256(together)
    GenieRedux(tokenizer, lam, frozen)
    GenieRedux(tokenizer, together, joint)
    expected, got = encoder_sha256(together)[:12], encoder_sha256(lam)[:12]
    with pytest.raises(
        InputError, match=f"trained on the actions of LAM {expected}, this one is {got}"
    ):
        GenieRedux(tokenizer, lam, joint)


def test_joint_training_trains_both_and_logs_both(runs: dict[str, Path]) -> None:
    first, last = (
        open_checkpoint(runs["joint"] / f"checkpoints/step-{step:08d}").weights() for step in (3, 6)
    )
    for name in (
        "dynamics.head.weight",
        "lam.to_action.weight",
        "lam.head.weight",
        "lam.encoder.norm.weight",
    ):
        assert not torch.equal(first[name], last[name]), name
    row = [row for row in read_metrics(runs["joint"]) if "train/loss" in row][-1]
    assert row["train/loss"] == pytest.approx(
        row["train/dynamics_loss"] + row["train/lam_loss"], rel=1e-5
    )
    assert any("validation/lam_reconstruction" in row for row in read_metrics(runs["joint"]))


@pytest.mark.parametrize("name", ["lam", "frozen", "joint"])
def test_a_resumed_run_equals_one_that_never_stopped(
    name: str, data: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(runs[name], tmp_path / name)
    shutil.rmtree(tmp_path / name / "checkpoints/step-00000006")
    component = "lam" if name == "lam" else "dynamics"
    options: dict[str, Any] = {} if name == "lam" else {"tokenizer": runs["tokenizer"]}
    options |= {"frozen": {"lam": runs["lam"]}, "joint": {"joint_lam": True}}.get(name, {})
    settings = train_preset(
        component, "debug", iterations=6, checkpoint_every=3, log_every=3, validate_every=3
    )
    torch.manual_seed(99)  # other random numbers of the process must not matter
    resumed: dict[str, Any] = {"config": DEBUG, "recipe": settings, "data": [data]}
    resumed["out"] = tmp_path / name
    train(TrainingRun(component, **resumed, **options), resume=True)
    mine, theirs = open_checkpoint(tmp_path / name).weights(), open_checkpoint(runs[name]).weights()
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        assert torch.equal(value, theirs[key]), key
    if name == "frozen":
        shutil.rmtree(tmp_path / name / "checkpoints/step-00000006")
        other = {"tokenizer": runs["tokenizer"], "lam": runs["joint"]}
        with pytest.raises(InputError, match="the run's lam_sha256 was another"):
            train(TrainingRun(component, **resumed, **other), resume=True)


def test_mismatched_settings_are_refused(data: str, runs: dict[str, Path], tmp_path: Path) -> None:
    common: dict[str, Any] = {"recipe": train_preset("lam", "debug"), "data": [data]}
    common["out"] = tmp_path / "out"

    def refused(message: str, component: str, **options: Any) -> None:
        with pytest.raises(InputError, match=message):
            train(TrainingRun(component, **{"config": DEBUG, **common, **options}))

    refused("are not for", "lam", lam=runs["lam"])
    refused("are not for", "tokenizer", joint_lam=True)
    tokenizer = runs["tokenizer"]
    refused("holds a tokenizer, not a lam", "dynamics", tokenizer=tokenizer, lam=tokenizer)
    few = dataclasses.replace(DEBUG, lam=dataclasses.replace(DEBUG.lam, codes=4))
    options = {"tokenizer": tokenizer, "lam": runs["lam"]}
    refused("not a latent action model", "dynamics", config=few, **options)
    refused("trained on the actions of LAM", "dynamics", init=runs["joint"], **options)
    lam = LatentActionModel(DEBUG)
    load_component(lam, "lam", runs["joint"])
    assert encoder_sha256(lam) == encoder_sha256(load_lam(runs["joint"]))


# The whole model


def test_parts_that_do_not_belong_together_are_refused() -> None:
    model = build()
    real = Dynamics(DEBUG)
    with pytest.raises(InputError, match="latent actions: build a GenieRedux"):
        GenieReduxG(model.tokenizer, model.dynamics)
    with pytest.raises(InputError, match="real actions: build a GenieReduxG"):
        GenieRedux(model.tokenizer, model.lam, real)
    other = LatentActionModel(
        dataclasses.replace(DEBUG, lam=dataclasses.replace(DEBUG.lam, dim=16))
    )
    with pytest.raises(InputError, match="different configurations"):
        GenieRedux(model.tokenizer, other, model.dynamics)
    with pytest.raises(
        InputError, match=r"not the tokenizer that the dynamics was trained with: expected"
    ):
        GenieRedux(Tokenizer(DEBUG), model.lam, model.dynamics)
    with pytest.raises(
        InputError, match=r"actions = 5: a dynamics on latent actions has lam\.codes = 7"
    ):
        dataclasses.replace(DEBUG, dynamics=LATENT.dynamics)
    assert WorldModelConfig.from_dict(LATENT.to_dict()) == LATENT


def test_it_takes_latent_actions_and_through_the_map_buttons(tmp_path: Path) -> None:
    model = build()
    frames, buttons = torch.rand(2, 2, 3, 64, 64), torch.tensor([[0, 1, 2, 3], [4, 3, 1, 0]])
    with pytest.raises(InputError, match="no action map"):
        model.for_game("Pong")
    counts = np.zeros((5, 7), np.int64)
    latents = [3, 6, 0, 0, 2]
    counts[range(5), latents] = 9
    swapped = np.roll(counts, 1, 1)
    model.action_map = ActionMap({"Pong": counts, "Breakout": swapped}, {"Pong": {"kappa": 0.5}})
    use_cpu_kernels(model)  # as loading does
    model.save(tmp_path / "model")
    loaded = load_world_model(tmp_path / "model")
    assert isinstance(loaded, GenieRedux)
    assert loaded.action_map is not None
    assert loaded.action_map.latent_actions("Pong") == latents
    assert loaded.action_map.measured == {"Pong": {"kappa": 0.5}}
    assert loaded.actions == 7
    driven = loaded.for_game("Pong")
    assert driven.actions == 5
    assert loaded.actions == 7
    sampling: dict[str, Any] = {"steps": 2, "temperature": 0.0}
    output = driven.generate(frames, buttons, **sampling)
    assert torch.equal(output, model.generate(frames, torch.tensor(latents)[buttons], **sampling))
    assert not torch.equal(
        output, loaded.for_game("Breakout").generate(frames, buttons, **sampling)
    )
    window = torch.rand(2, 5, 3, 64, 64)
    expected = model.token_entropy(window, torch.tensor(latents)[buttons])
    assert torch.equal(driven.token_entropy(window, buttons), expected)
    rollout = Rollout(driven, frames, buttons[:, :1])
    expected = model.generate(
        frames, torch.tensor(latents)[buttons[:, :2]], steps=1, temperature=0.0
    )
    torch.testing.assert_close(rollout.step(buttons[:, 1]), expected[:, 0])
    with pytest.raises(InputError, match=r"integers in \[0, 4\], got 0 to 6"):
        driven.generate(frames, torch.tensor([[0, 6], [0, 0]]))
    with pytest.raises(InputError, match="holds a GenieRedux, not a GenieReduxG"):
        GenieReduxG.load(tmp_path / "model")
    text = (tmp_path / "model/action_map.json").read_text()
    (tmp_path / "model/action_map.json").write_text(text.replace("9", "8"))
    with pytest.raises(InputError, match=r"action_map\.json differs from its sha256"):
        load_world_model(tmp_path / "model")


def test_export_fits_a_map_with_which_evaluate_uses_buttons(
    data: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = ["export", f"--out={tmp_path / 'model'}", f"--tokenizer={runs['tokenizer']}"]
    joint, labelled = f"--dynamics={runs['joint']}", f"--data={data}"
    mixed = [f"--dynamics={runs['frozen']}", f"--lam={runs['joint']}"]
    assert execute([*export, labelled, *mixed]) == 2
    assert "trained on the actions of LAM" in capsys.readouterr().err
    assert execute([*export, joint]) == 2
    assert "name labelled episodes with --data" in capsys.readouterr().err
    assert execute([*export, labelled, joint]) == 0
    stored = json.loads((tmp_path / "model/action_map.json").read_text())
    assert stored["measured"]["Counting"]["transitions"] > 0
    figures = tmp_path / "figures.json"
    command = ["evaluate", str(tmp_path / "model"), f"--data={data}", f"--out={figures}"]
    assert execute([*command, "--limit=1", "--sampling-steps=1", "--horizon=2"]) == 0
    assert json.loads(figures.read_text())["overall"]["windows"] == 1


def test_the_cost_of_training_is_what_torch_counts() -> None:
    lam, settings = LatentActionModel(DEBUG), train_preset("lam", "debug", clip_length=6)
    with FlopCounterMode(display=False) as counter:
        lam(torch.rand(1, 6, 3, 64, 64))
    cost = cost_of("lam", DEBUG, settings)
    assert cost is not None
    # A backward pass costs twice as much; the search of the nearest code has none.
    assert cost.flops == pytest.approx(3 * counter.get_total_flops(), rel=0.05)
    assert cost.trained == sum(parameter.numel() for parameter in lam.parameters())

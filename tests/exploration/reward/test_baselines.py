"""Rewards to compare: each against its definition."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import envs
from envs.games.corridor import read_cell
from envs.utils.errors import InputError
from exploration.agent.replay_buffer import to_fragment
from exploration.reward import baselines, disagreement
from exploration.reward.factory import RewardConfig
from exploration.reward.scorers import ScoringError
from exploration.rollout.reward_connector import RewardConnector
from tests.fixtures.datasets import record
from worldmodel import (
    ActionMap,
    Dynamics,
    GenieRedux,
    GenieReduxG,
    LatentActionModel,
    Tokenizer,
    preset,
)
from worldmodel.uncertainty import validate_windows

RIGHT, LEFT, UP = 0, 1, 2


def windows(count: int = 6, seed: int = 0):
    generator = np.random.default_rng(seed)
    frames_B5HWC = generator.integers(0, 256, (count, 5, 64, 64, 3), dtype=np.uint8)
    return frames_B5HWC, generator.integers(0, 5, (count, 4))


def test_feature_networks_have_the_published_shape():
    network = baselines.FeatureNetwork()
    layers = [part for part in network.trunk if isinstance(part, torch.nn.Conv2d)]
    assert [(x.out_channels, x.kernel_size, x.stride) for x in layers] == [
        (32, (8, 8), (4, 4)),
        (64, (4, 4), (2, 2)),
        (64, (3, 3), (1, 1)),
    ]
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 512)
    one, other = (baselines.random_features().state_dict() for _ in range(2))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items()), (
        "every runner has the same features"
    )


def test_rf_is_the_error_of_the_models_prediction(tiny_world):
    frames_B5HWC, actions_B4 = windows()
    rewards_B = baselines.PredictionError(tiny_world).submit(frames_B5HWC, actions_B4)()
    model, network = GenieReduxG.load(tiny_world), baselines.random_features()
    for row in range(len(rewards_B)):
        frames = torch.from_numpy(frames_B5HWC[row]).permute(0, 3, 1, 2).float() / 255
        actions = torch.from_numpy(actions_B4[row])[None]
        drawn = model.generate(frames[None, :2], actions, steps=1, temperature=0.0)[0, -1]
        with torch.no_grad():
            expected = F.mse_loss(network(drawn[None]), network(frames[4:]), reduction="sum")
        assert rewards_B[row] == pytest.approx(float(expected), rel=1e-3)
    assert rewards_B.min() > 0
    with pytest.raises(ScoringError):
        baselines.checked_rewards(np.array([1.0, np.nan]), 2)


def test_vae_learns_to_draw_frames_and_is_kept_for_the_run(tiny_world, tmp_path, capsys):
    data = record(tmp_path / "data", episodes=2, steps=30)
    frames_NHWC = baselines.sample_frames([data], 40)
    assert frames_NHWC.shape[1:] == (64, 64, 3)
    _, early = baselines.train_autoencoder(frames_NHWC, updates=5, batch=8)
    _, late = baselines.train_autoencoder(frames_NHWC, updates=60, batch=8)
    assert late < early / 2
    weights = tmp_path / "run" / "vae.safetensors"
    baselines.save_weights(
        weights, baselines.train_autoencoder(frames_NHWC, updates=5, batch=8)[0].encoder
    )
    source = RewardConfig("vae", data=(data,))
    # Trains nothing again.
    with source.open(tiny_world, tmp_path / "run", steps=1, replicas=1, seed=0) as make:
        assert make is not None
        rewards_B = make().submit(*windows())()
    assert rewards_B.shape == (6,)
    weights.write_bytes(b"cut short")
    with (
        source.open(tiny_world, tmp_path / "run", steps=1, replicas=1, seed=0) as make,
        pytest.raises(InputError),
    ):
        make().submit(*windows())()


def test_counting_pays_rare_screens_and_forgets_when_told():
    frames_B5HWC, actions_B4 = windows(4)
    frames_B5HWC[1] = frames_B5HWC[3] = frames_B5HWC[0]
    count = baselines.CountBonus()
    rewards_B = count.submit(frames_B5HWC, actions_B4)()
    np.testing.assert_allclose(rewards_B, [1, 2**-0.5, 1, 3**-0.5], rtol=1e-6)
    assert count.submit(frames_B5HWC[:1], actions_B4[:1])()[0] == pytest.approx(0.5)
    count.reset_counts()
    assert count.submit(frames_B5HWC[:1], actions_B4[:1])()[0] == 1
    chance = baselines.RandomReward(3).submit(*windows(50))()
    assert chance.min() >= 0
    assert chance.max() < 1
    assert chance.std() > 0.2


def test_a_baselines_rewards_reach_the_fragment_as_they_are():
    from tests.exploration.reward.test_token_entropy import counting_episode

    class Large:
        def submit(self, frames_B5HWC, actions_B4):
            return lambda: np.arange(len(actions_B4), dtype=np.float32) * 100

    episode = counting_episode(6).to_numpy()
    RewardConnector(Large(), 0.25)(episodes=[episode])
    assert to_fragment(episode).rewards_T.tolist() == [0, 0, 0, 0, 100, 200]


def test_disagreement_by_hand():
    same = torch.tensor([[0.5, 0.5, 0, 0], [0.25] * 4]) + 1e-30
    other = torch.tensor([[0.5, 0.5, 0, 0], [0.25] * 4]) + 1e-30
    torch.testing.assert_close(
        disagreement.disagreement(torch.stack([same, other]).log()), torch.zeros(2)
    )
    sure = torch.eye(4)[[0, 1]][:, None] + 1e-30  # two heads, sure of different codes: ln 2 / ln 2
    torch.testing.assert_close(
        disagreement.disagreement(sure.log()), torch.ones(1), atol=1e-6, rtol=0
    )
    # H(3/4, 1/4) - H(1/2, 1/2) / 2, in units of ln 2.
    half = torch.tensor([[[1, 0.0]], [[0.5, 0.5]]]) + 1e-30
    expected = (-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) - np.log(2) / 2) / np.log(2)
    assert float(disagreement.disagreement(half.log())) == pytest.approx(expected, abs=1e-5)


def test_disagreement_of_a_genie_redux_takes_each_button_for_its_latent_action(
    tmp_path: Path,
) -> None:
    config = preset("debug")
    torch.manual_seed(0)
    dynamics = Dynamics(config.with_latent_actions())
    for parameter in dynamics.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    latents = torch.tensor([3, 6, 0, 0, 2])
    counts = torch.nn.functional.one_hot(latents, 7).numpy()
    parts = Tokenizer(config), LatentActionModel(config), dynamics
    model = GenieRedux(*parts, ActionMap({"Counting": counts})).eval()
    model.save(tmp_path / "model")
    frames_B5HWC, buttons_B4 = windows()
    mapped_B4 = latents[torch.from_numpy(buttons_B4)].numpy()
    expected_BND = disagreement.hidden_states(model, frames_B5HWC, mapped_B4)
    for game in ("Counting", None):
        driven = model.for_game(game)
        hidden_BND = disagreement.hidden_states(driven, frames_B5HWC, buttons_B4)
        assert torch.equal(hidden_BND, expected_BND)
        assert len(validate_windows(driven, frames_B5HWC, buttons_B4)) == len(buttons_B4)
        with pytest.raises(InputError, match="the model has 5"):
            validate_windows(driven, frames_B5HWC, np.full_like(buttons_B4, 6))
    unmapped_BND = disagreement.hidden_states(model, frames_B5HWC, buttons_B4)
    assert not torch.allclose(expected_BND, unmapped_BND, atol=0.1)

    heads = disagreement.PriorEnsemble(config.dynamics.dim, config.tokenizer.codes)
    baselines.save_weights(tmp_path / "heads.safetensors", heads)
    scorer = disagreement.Disagreement(tmp_path / "model", tmp_path / "heads.safetensors")
    with torch.no_grad():
        expected_B = disagreement.disagreement(heads(expected_BND.flatten(0, 1)))
    scored = torch.from_numpy(scorer.entropies(frames_B5HWC, buttons_B4))
    torch.testing.assert_close(scored.flatten(), expected_B)


def test_heads_are_trained_at_the_start_of_a_run(tiny_world, tmp_path):
    data = record(tmp_path / "data", episodes=2, steps=20)
    source = RewardConfig("disagreement", data=(data,))
    with source.open(tiny_world, tmp_path / "reward", steps=1, replicas=1, seed=0) as make:
        written = (tmp_path / "reward" / "disagreement.safetensors").stat().st_mtime_ns
        assert make is not None
        answer = make().entropies(*windows(3))
    assert answer.shape == (3, 64)
    assert 0 <= answer.min() < answer.max() <= 1
    with source.open(tiny_world, tmp_path / "reward", steps=1, replicas=1, seed=0):
        assert (tmp_path / "reward" / "disagreement.safetensors").stat().st_mtime_ns == written
    assert len(list(disagreement.sample_windows([data], 10))) == 2


def test_the_corridor_is_what_it_says(tmp_path: Path):
    env = envs.make("NoisyTV", max_steps=30)
    frames = [env.reset(seed=1)[0]]
    for action in [LEFT] * 6 + [RIGHT] * 12 + [UP]:
        frames.append(env.step(np.int64(action))[0])
    assert [read_cell(frame) for frame in frames] == [5, 4, 3, 2, 1, 0, 0, *range(1, 13), 12]
    assert not np.array_equal(frames[5][:48], frames[6][:48]), "snow"
    again = envs.make("NoisyTV")
    again.reset(seed=1)
    np.testing.assert_array_equal(again.step(np.int64(LEFT))[0], frames[1])
    quiet = envs.make("Corridor")
    quiet.reset()
    rewards = [quiet.step(np.int64(RIGHT))[1] for _ in range(20)]
    assert rewards == pytest.approx([0.2] * 2 + [0.4] * 4 + [0.6] * 4 + [0.8] * 4 + [1.0] * 6)
    with pytest.raises(InputError, match="savestates"):
        envs.make("Corridor", state="start")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "money"}, "money"),
        ({"name": "vae"}, "--reward-data"),
        ({"name": "count-bonus", "scorer": "serve"}, "serve"),
        ({"name": "random-features"}, "--model"),
    ],
)
def test_rewards_that_cannot_be_meant(change, message):
    with pytest.raises(InputError, match=message):
        RewardConfig(**change).check(None)
    with pytest.raises(InputError, match="--reward-data"):
        baselines.sample_frames([], 5)

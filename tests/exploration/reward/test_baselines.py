"""Baseline rewards and disagreement: each against its definition."""

import time
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from torch.nn import functional as F

import envs
from envs.games.corridor import read_cell
from envs.utils.errors import InputError
from exploration.agent.replay_buffer import to_fragment
from exploration.reward import baselines, disagreement
from exploration.reward.factory import RewardConfig
from exploration.reward.scorers import ClipRewards, ScoringError
from exploration.reward.token_entropy import uncertainty_reward
from exploration.rollout.reward_connector import RewardConnector
from tests.fixtures.datasets import record
from tests.fixtures.explorers import counting_episode, random_clip
from worldmodel import (
    ActionMap,
    Dynamics,
    GenieRedux,
    GenieReduxG,
    LatentActionModel,
    Tokenizer,
    preset,
)
from worldmodel.uncertainty import check_clip, cut_windows

RIGHT, LEFT, UP = 0, 1, 2


def test_feature_networks_have_the_published_shape():
    network = baselines.FeatureEncoder()
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
    frames_THWC, actions_T = random_clip(6)
    rewards_B = baselines.PredictionError(tiny_world).submit(frames_THWC, actions_T)().rewards_B
    assert rewards_B.shape == (6,)
    model, network = GenieReduxG.load(tiny_world), baselines.random_features()
    for row in range(len(rewards_B)):
        window = torch.from_numpy(frames_THWC[row : row + 5])
        frames = window.permute(0, 3, 1, 2).float() / 255
        actions = torch.from_numpy(actions_T[row : row + 4])[None]
        predicted = model.generate(frames[None, :2], actions, steps=1, temperature=0.0)[0, -1]
        with torch.no_grad():
            expected = F.mse_loss(network(predicted[None]), network(frames[4:]), reduction="sum")
        assert rewards_B[row] == pytest.approx(float(expected), rel=1e-3)
    assert rewards_B.min() > 0
    with pytest.raises(ScoringError):
        baselines.finite_rewards(np.array([1.0, np.nan], np.float32))


def test_vae_learns_to_reconstruct_frames_and_is_stored_for_the_run(tiny_world, tmp_path, capsys):
    data = record(tmp_path / "data", episodes=2, steps=30)
    frames_NHWC = baselines.sample_frames([data], 40)
    assert frames_NHWC.shape[1:] == (64, 64, 3)
    _, early = baselines.train_autoencoder(frames_NHWC, updates=5, batch=8)
    _, late = baselines.train_autoencoder(frames_NHWC, updates=60, batch=8)
    assert late < early / 2
    weights = tmp_path / "run" / "vae.safetensors"
    baselines.save_reward_network(
        weights, baselines.train_autoencoder(frames_NHWC, updates=5, batch=8)[0].encoder
    )
    source = RewardConfig("vae", data=(data,))
    # Trains nothing again.
    with source.open(tiny_world, tmp_path / "run", steps=1, replicas=1, seed=0) as make:
        assert make is not None
        rewards_B = make().submit(*random_clip(6))().rewards_B
    assert rewards_B.shape == (6,)
    weights.write_bytes(b"cut short")
    with (
        source.open(tiny_world, tmp_path / "run", steps=1, replicas=1, seed=0) as make,
        pytest.raises(InputError),
    ):
        make().submit(*random_clip(6))()


def test_count_bonus_rewards_rare_screens_and_can_be_reset():
    frames_THWC, actions_T = random_clip(4)
    frames_THWC[5] = frames_THWC[7] = frames_THWC[4]
    count = baselines.CountBonus()
    rewards_B = count.submit(frames_THWC, actions_T)().rewards_B
    np.testing.assert_allclose(rewards_B, [1, 2**-0.5, 1, 3**-0.5], rtol=1e-6)
    assert count.submit(frames_THWC[:5], actions_T[:4])().rewards_B[0] == pytest.approx(0.5)
    count.reset_counts()
    assert count.submit(frames_THWC[:5], actions_T[:4])().rewards_B[0] == 1


def test_runners_share_their_counts_and_evaluation_does_not(ray_cluster):
    make = RewardConfig("count-bonus")._local(None, Path(), 1, 0)
    frames_THWC, actions_T = random_clip(1)
    one, two = make(), make()
    rewards = [count.submit(frames_THWC, actions_T)().rewards_B[0] for count in (one, two, one)]
    np.testing.assert_allclose(rewards, [1, 2**-0.5, 3**-0.5], rtol=1e-6)
    two.reset_counts()
    assert two.submit(frames_THWC, actions_T)().rewards_B[0] == 1
    assert one.submit(frames_THWC, actions_T)().rewards_B[0] == pytest.approx(0.5)
    ray.kill(one._counter)

    def submit_for(seconds):  # the actor may still answer for a moment
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            one.submit(frames_THWC, actions_T)()

    with pytest.raises(ScoringError, match="counter of screens is lost"):
        submit_for(30)


def test_random_rewards_are_uniform():
    rewards_B = baselines.RandomReward(3).submit(*random_clip(50))().rewards_B
    assert rewards_B.shape == (50,)
    assert rewards_B.min() >= 0
    assert rewards_B.max() < 1
    assert rewards_B.std() > 0.2


def test_rewards_of_a_baseline_reach_the_fragment_unchanged():
    class Large:
        def submit(self, frames_THWC, actions_T, top_fraction):
            return lambda: ClipRewards(np.arange(len(frames_THWC) - 4, dtype=np.float32) * 100)

    episode = counting_episode(6).to_numpy()
    RewardConnector(Large(), 0.25)(episodes=[episode])
    assert to_fragment(episode).rewards_T.tolist() == [0, 0, 0, 0, 100, 200]


def test_disagreement_by_hand():
    same = torch.tensor([[0.5, 0.5, 0, 0], [0.25] * 4]) + 1e-30
    torch.testing.assert_close(
        disagreement.disagreement(torch.stack([same, same]).log()), torch.zeros(2)
    )
    sure = torch.eye(4)[[0, 1]][:, None] + 1e-30  # two heads, sure of different codes: ln 2 / ln 2
    torch.testing.assert_close(
        disagreement.disagreement(sure.log()), torch.ones(1), atol=1e-6, rtol=0
    )
    # H(3/4, 1/4) - H(1/2, 1/2) / 2, in units of ln 2.
    half = torch.tensor([[[1, 0.0]], [[0.5, 0.5]]]) + 1e-30
    expected = (-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) - np.log(2) / 2) / np.log(2)
    assert float(disagreement.disagreement(half.log())) == pytest.approx(expected, abs=1e-5)


def test_disagreement_of_a_genie_redux_maps_buttons_to_latent_actions(
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
    frames_THWC, buttons_T = random_clip(6)
    windows = cut_windows(frames_THWC, buttons_T)
    mapped_B4 = latents[torch.tensor(windows.actions_B4)].numpy()
    expected_BND = disagreement.hidden_states(model, windows._replace(actions_B4=mapped_B4))
    for game in ("Counting", None):
        driven = model.for_game(game)
        assert torch.equal(disagreement.hidden_states(driven, windows), expected_BND)
        check_clip(driven, frames_THWC, buttons_T)
        with pytest.raises(InputError, match="the model has 5"):
            check_clip(driven, frames_THWC, np.full_like(buttons_T, 6))
    unmapped_BND = disagreement.hidden_states(model, windows)
    assert not torch.allclose(expected_BND, unmapped_BND, atol=0.1)

    heads = disagreement.PriorEnsemble(config.dynamics.dim, config.tokenizer.codes)
    baselines.save_reward_network(tmp_path / "heads.safetensors", heads)
    scorer = disagreement.Disagreement(tmp_path / "model", tmp_path / "heads.safetensors")
    with torch.no_grad():
        expected_B = disagreement.disagreement(heads(expected_BND.flatten(0, 1)))
    scored = scorer.submit(frames_THWC, buttons_T)()
    torch.testing.assert_close(torch.from_numpy(scored.tokens_BN).flatten(), expected_B)
    np.testing.assert_array_equal(scored.rewards_B, uncertainty_reward(scored.tokens_BN))


def test_heads_are_trained_at_the_start_of_a_run(tiny_world, tmp_path):
    data = record(tmp_path / "data", episodes=2, steps=20)
    source = RewardConfig("disagreement", data=(data,))
    with source.open(tiny_world, tmp_path / "reward", steps=1, replicas=1, seed=0) as make:
        written = (tmp_path / "reward" / "disagreement.safetensors").stat().st_mtime_ns
        assert make is not None
        tokens_BN = make().submit(*random_clip(3))().tokens_BN
    assert tokens_BN.shape == (3, 64)
    assert 0 <= tokens_BN.min() < tokens_BN.max() <= 1
    with source.open(tiny_world, tmp_path / "reward", steps=1, replicas=1, seed=0):
        assert (tmp_path / "reward" / "disagreement.safetensors").stat().st_mtime_ns == written
    assert len(list(disagreement.sample_windows([data], 10))) == 2


def test_the_corridor_has_rooms_rewards_and_a_television(tmp_path: Path):
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
def test_invalid_reward_settings_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        RewardConfig(**change).check(None)
    with pytest.raises(InputError, match="--reward-data"):
        baselines.sample_frames([], 5)


@pytest.mark.parametrize("name", ["disagreement", "token-entropy"])
def test_without_ray_rewards_are_computed_in_the_process(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Studies open rewards in processes that are not connected to Ray."""
    monkeypatch.setattr("exploration.reward.factory.ray_is_connected", lambda: False)
    assert not RewardConfig(name).is_served()

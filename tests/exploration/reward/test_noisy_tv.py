"""Noisy-TV problem: two rewards next to unpredictable noise, and where their agents go.

`pytest tests/exploration/reward/test_noisy_tv.py -s` prints where they are.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from envs.episodes.dataset import EpisodeReader
from envs.games.corridor import CELLS_PER_ROOM, ROOMS, CorridorEnv
from exploration.agent.config import PolicyConfig
from exploration.agent.policy import load_policy
from exploration.config import ExploreConfig
from exploration.reward.factory import RewardConfig
from exploration.reward.token_entropy import TOP_FRACTION
from exploration.train import explore
from tests.fixtures.datasets import record
from worldmodel import Dynamics, GenieReduxG, Tokenizer
from worldmodel.config import DynamicsConfig, TokenizerConfig, WorldModelConfig
from worldmodel.data.batch import to_float_frames
from worldmodel.models.cpu_kernels import use_cpu_kernels
from worldmodel.uncertainty import cut_windows

pytestmark = pytest.mark.slow

RIGHT, LEFT, UP = 0, 1, 2
REWARDS = {"entropy": "token-entropy", "disagreement": "disagreement"}
SEEDS = range(2)
STEPS = 60
EPISODES = 4
"""Of each agent, to see where it is."""


@dataclass(frozen=True)
class World:
    """World model and the random play that it was trained on."""

    model: Path
    data: str


@pytest.fixture(scope="module")
def television(tmp_path_factory) -> World:
    """Random play in front of the television, and a small world model of it."""
    folder = tmp_path_factory.mktemp("television")
    data = record(folder / "data", games=("NoisyTV",), episodes=32, steps=40)
    reader = EpisodeReader(data)
    episodes = [reader[index] for index in range(len(reader))]
    cut = [cut_windows(e.frames_THWC, e.actions.astype(np.int64)) for e in episodes]
    frames_B5HWC = np.concatenate([part.frames_B5HWC for part in cut])
    actions = torch.from_numpy(np.concatenate([part.actions_B4 for part in cut]))
    sizes = {"dim": 32, "heads": 2, "head_dim": 16}
    config = WorldModelConfig(
        frames=6,
        tokenizer=TokenizerConfig(
            **sizes, patch=16, encoder_blocks=0, decoder_blocks=0, patch_norm=False,
            temporal=False, codes=32,
            code_dim=8, codebook="ema", quantizer_start=0.5,
        ),
        dynamics=DynamicsConfig(
            **sizes, blocks=2, objective="clean_past", chunk_lengths=(0,),
            all_masked=1.0, tdce_weight=0.0
        ),
    )  # fmt: skip
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    tokenizer = Tokenizer(config)
    use_cpu_kernels(tokenizer)
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)
    for update in range(400):
        tokenizer.set_progress(update / 400)
        picked = torch.randint(len(frames_B5HWC), (4,), generator=generator)
        loss = tokenizer(pixels(frames_B5HWC[picked.numpy()])).losses["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    world = GenieReduxG(tokenizer.eval(), Dynamics(config))
    use_cpu_kernels(world)
    optimizer = torch.optim.Adam(world.dynamics.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        picked = torch.randint(len(frames_B5HWC), (16,), generator=generator)
        tokens = tokenizer.encode(pixels(frames_B5HWC[picked.numpy()]))
        loss = world.dynamics.loss(tokens, actions[picked], generator=generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    world.eval().save(folder / "world")
    return World(folder / "world", data)


def pixels(frames_BTHWC: NDArray[np.uint8]) -> torch.Tensor:
    """(B, T, 64, 64, 3) -> float (B, T, 3, 64, 64)."""
    return to_float_frames(torch.from_numpy(frames_BTHWC))


def test_noise_draws_entropy_and_not_disagreement(television, tmp_path):
    """Walking at home, watching the television, and walking into rooms that the data hardly has or
    lacks."""
    plays = {
        "home": [RIGHT, RIGHT, LEFT, LEFT] * 6,
        "television": [LEFT] * 5 + [UP] * 20,
        "far": [RIGHT] * 18 + [RIGHT, LEFT] * 4,
    }
    rewards: dict[str, dict[str, float]] = {}
    for name, reward in REWARDS.items():
        source, rewards[name] = RewardConfig(reward, data=(television.data,)), {}
        with source.open(television.model, tmp_path, steps=1, replicas=1, seed=0) as make:
            assert make is not None
            scorer = make()
        for place, actions in plays.items():
            env = CorridorEnv(television=True)
            frames = np.stack(
                [env.reset(seed=5)[0], *(env.step(np.int64(action))[0] for action in actions)]
            )
            # Without the first frame: four frames of context and a step for each reward.
            clip = frames[1:], np.array(actions[1:])
            rewards[name][place] = float(scorer.submit(*clip, TOP_FRACTION)().rewards_B.mean())
    print(rewards)
    entropy, disagreement = rewards["entropy"], rewards["disagreement"]
    # Nothing beats the television, though it can teach nothing: entropy has an agent stay there.
    assert entropy["television"] > 1.5 * entropy["home"], rewards
    assert entropy["television"] > entropy["far"], rewards
    # The heads agree about the snow as they do about home, and differ about what they have not
    # seen.
    assert disagreement["far"] > 4 * disagreement["television"], rewards
    assert disagreement["television"] < 1.3 * disagreement["home"], rewards


def walk(act, seed: int) -> NDArray[np.int64]:
    """Return the cells (EPISODES, STEPS) that the policy `act(frame, episode, step)` visits."""
    places = np.empty((EPISODES, STEPS), np.int64)
    for episode in range(EPISODES):
        env = CorridorEnv(television=True)
        frame, _ = env.reset(seed=1_000 + EPISODES * seed + episode)
        for step in range(STEPS):
            frame, *_ = env.step(np.int64(act(frame, episode, step)))
            places[episode, step] = env.cell
    return places


def visited_cells(world: World, reward: str, seed: int, folder: Path) -> NDArray[np.int64]:
    """Train an agent with `explore` and return the cells (EPISODES, STEPS) that it visits."""
    config = ExploreConfig(
        epochs=24, runners=0, envs_per_runner=4, steps_per_epoch=40, max_steps=40,
        updates_per_epoch=16, batch_size=8, seq_len=10, lr=5e-3,
        normalize_rewards=True, network=PolicyConfig(channels=(4, 4, 8, 8), lstm_dim=16),
        precision="fp32", random_starts=0,
        evaluate_every=6, evaluation_episodes=4, evaluation_steps=40,
    )  # fmt: skip
    config = dataclasses.replace(
        config, loss=dataclasses.replace(config.loss, gamma=0.9, entropy_coeff=0.02)
    )
    source = RewardConfig(reward, data=(world.data,))
    best = explore(["NoisyTV"], world.model, folder, config=config, reward=source, seed=seed)
    agent = load_policy(best)

    def act(frame, episode, step):
        if step == 0:
            agent.reset(episode)
        return agent.act(frame)

    return walk(act, seed)


def describe(places: NDArray[np.int64]) -> str:
    """Describe visited cells: share of steps in each room, farthest cell of each episode."""
    rooms = " ".join(
        f"{100 * (places // CELLS_PER_ROOM == room).mean():3.0f}" for room in range(ROOMS)
    )
    return f"rooms {rooms} %, farthest places {places.max(1).tolist()}"


@pytest.mark.timeout(1_500)
def test_an_entropy_agent_stays_at_the_television_and_a_disagreement_agent_goes_on(
    television, ray_cluster, tmp_path
):
    """Both agents are trained by `explore` with the same settings, except for the reward."""
    generator = np.random.default_rng(0)
    lines, at_television, farthest = ["share of steps by room, the television's first"], {}, {}
    for seed in SEEDS:
        places = {"chance": walk(lambda *_: generator.integers(5), seed)}
        for name, reward in REWARDS.items():
            places[name] = visited_cells(television, reward, seed, tmp_path / f"{name}-{seed}")
        for name, own in places.items():
            lines.append(f"seed {seed} {name:12} {describe(own)}")
            at_television.setdefault(name, []).append((own < CELLS_PER_ROOM).mean())
            farthest.setdefault(name, []).append(own.max(1).mean())
    shown = "\n".join(lines)
    print("\n" + shown)
    share = {name: np.array(own) for name, own in at_television.items()}
    reach = {name: np.array(own) for name, own in farthest.items()}
    # With 6 or 12 epochs instead of 24 one of five had not yet left the television. One seed of
    # the entropy's agents may, on another machine, know the far rooms before it meets it.
    assert (share["entropy"] > 0.5).sum() >= len(SEEDS) - 1, shown
    assert (share["disagreement"] < 0.2).all(), shown
    assert share["disagreement"].mean() < share["chance"].mean(), shown
    assert (reach["disagreement"] > reach["entropy"]).sum() >= len(SEEDS) - 1, shown
    assert (reach["disagreement"] > reach["chance"]).all(), shown

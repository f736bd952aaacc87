"""Compute the reward, a world model's uncertainty, of frames; run the other examples first."""

import sys
from pathlib import Path

import torch

from envs.episodes import EpisodeReader
from exploration.reward import uncertainty_reward
from worldmodel import GenieReduxG, preset
from worldmodel.loading import load_dynamics, load_tokenizer
from worldmodel.training.train import TrainingRun, train, train_preset


def main(folder: Path) -> None:
    """Train a dynamics model, and print the reward of the frames of an episode."""
    # A world model is a tokenizer and a dynamics model that was trained on its tokens.
    data, tokenizer, dynamics = folder / "data", folder / "tokenizer", folder / "dynamics"
    config, short = preset("debug"), train_preset("dynamics", "debug", iterations=60)
    run = TrainingRun("dynamics", config, short, [data], dynamics, tokenizer=tokenizer)
    train(run, resume=dynamics.exists())
    model = GenieReduxG(load_tokenizer(tokenizer), load_dynamics(dynamics))

    # A window is five frames and the four actions between them; the first two are given.
    episode = EpisodeReader(data, split="val")[0]
    frames_TCHW = torch.from_numpy(episode.frames_THWC).permute(0, 3, 1, 2).float() / 255
    actions_T = torch.from_numpy(episode.actions).long()
    frames_B5CHW = torch.stack([frames_TCHW[t : t + 5] for t in range(8)])
    actions_B4 = torch.stack([actions_T[t : t + 4] for t in range(8)])
    entropy_BN = model.token_entropy(frames_B5CHW, actions_B4)

    # Eq. 3-4: the mean of the highest quarter of the token entropies.
    for step, reward in enumerate(uncertainty_reward(entropy_BN.numpy()), start=4):
        print(f"frame {step}: reward {reward:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples"))

"""Record random episodes of a game, and read one of them.

Counting needs no ROM. After `make setup`, Airstriker-Genesis and the Atari games work too.
"""

import sys
from pathlib import Path

import envs
from envs.collect import collect
from envs.episodes import EpisodeReader


def main(folder: Path) -> None:
    """Step through an env, record episodes in worker processes, and read them back."""
    # A game is a Gymnasium env: frames uint8 (64, 64, 3), five actions.
    env = envs.make("Counting", seed=0)
    frame, _ = env.reset(seed=0)
    frame, reward, *_ = env.step(env.action_space.sample())
    print(f"one step: frame {frame.shape} {frame.dtype}, reward {reward}")
    env.close()

    # Worker processes record episodes of it; a second run continues where the first one stopped.
    data = folder / "data"
    summary = collect(["Counting"], data, episodes=4, steps=60, workers=1, progress=False)
    print(f"{summary.episodes} episodes, {summary.frames} frames in {data}")

    # 1 % of the episodes of each game, at least one, are for validation.
    train, validation = EpisodeReader(data, split="train"), EpisodeReader(data, split="val")
    print(f"{len(train)} for training, {len(validation)} for validation")
    episode = train[0]
    print(f"frames {episode.frames_THWC.shape}, first actions {episode.actions[:5].tolist()}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples"))

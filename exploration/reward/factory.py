"""Rewards by name, from which `explore --reward` chooses.

Rewards with networks of their own are trained once, at the start of a run, on recorded play, and
kept in the run's folder: <out>/reward/*.safetensors.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from envs.utils.errors import InputError
from exploration.reward.scorers import LocalScorer, ServeScorer

SCORERS = ("local", "serve")
REWARDS = (
    "token-entropy",
    "disagreement",
    "random-features",
    "vae",
    "count-bonus",
    "random",
    "extrinsic",
)
WITHOUT_MODEL = ("count-bonus", "random", "extrinsic")
TRAINED = ("disagreement", "vae")
"""Rewards that learn from recorded play first."""
TRAINING_FRAMES = 4_000
TRAINING_TOKENS = 150_000
"""Tokens to train on: some 600 windows with 256 tokens a frame, or more where a frame has fewer."""


@dataclass(frozen=True)
class RewardConfig:
    """Reward of the agent, and the place where it is computed."""

    name: str = "token-entropy"
    """token-entropy: the world model's token entropy (the paper's); disagreement: of heads on it,
    robust to noise; random-features, vae: error of its prediction in random or learnt features
    (Table 6); count-bonus: for rare screens; random; extrinsic: the game's own reward."""
    scorer: str = "local"
    """local: the model in each runner computes token-entropy; serve: replicas of Ray Serve."""
    data: tuple[str, ...] = field(default=())
    """Folders of episodes, which disagreement and vae learn from."""
    app: str | None = None
    """With "serve": the name of an app that is running, which is asked and left running; None
    starts one."""

    def check(self, model_path: Path | str | None) -> None:
        """Raise InputError for invalid settings, before anything is started."""
        if self.name not in REWARDS:
            raise InputError(
                f"reward {self.name!r} is not known: choose one of {', '.join(REWARDS)}"
            )
        if self.scorer not in SCORERS:
            raise InputError(
                f"scorer {self.scorer!r} is not known: choose one of {', '.join(SCORERS)}"
            )
        if self.scorer == "serve" and self.name != "token-entropy":
            raise InputError(
                f"reward {self.name!r} is computed in the runners: leave the scorer 'serve' out"
            )
        if self.name in TRAINED and not self.data:
            raise InputError(
                f"reward {self.name!r} learns from recorded play first: "
                "name folders with --reward-data"
            )
        if self.name not in WITHOUT_MODEL:
            if model_path is None:
                raise InputError(f"reward {self.name!r} needs a world model: give one with --model")
            LocalScorer(model_path).load()

    @contextmanager
    def open(
        self, model_path: Path | str | None, folder: Path, *, steps: int, replicas: int, seed: int
    ) -> Iterator[Callable[[], Any] | None]:
        """Yield a factory of scorers, None for the game's own reward; with "serve" the app runs as
        long as the block.

        `folder` keeps what a reward learns; `steps`: MaskGIT passes.
        """
        model = None if model_path is None else Path(model_path).absolute()
        if self.scorer == "serve" and self.app is not None:
            yield partial(ServeScorer, self.app)
            return
        if self.scorer == "serve":
            from worldmodel import serve

            assert model is not None
            app_name = serve.run(model, steps=steps, replicas=replicas)
            try:
                yield partial(ServeScorer, app_name)
            finally:
                serve.stop(app_name)
            return
        yield self._local(model, folder.absolute(), steps, seed)

    def _local(
        self, model: Path | None, folder: Path, steps: int, seed: int
    ) -> Callable[[], Any] | None:
        if self.name == "extrinsic":
            return None
        if self.name == "token-entropy":
            assert model is not None
            return partial(LocalScorer, model, steps=steps)
        from exploration.reward.baselines import CountBonus, PredictionError, RandomReward
        from exploration.reward.disagreement import Disagreement

        if self.name == "count-bonus":
            return CountBonus
        if self.name == "random":
            return partial(RandomReward, seed)
        assert model is not None
        if self.name == "random-features":
            return partial(PredictionError, model)
        weights = folder / f"{self.name}.safetensors"
        if not weights.exists():
            self._train(model, weights, seed)
        return partial(PredictionError if self.name == "vae" else Disagreement, model, weights)

    def _train(self, model_path: Path, weights: Path, seed: int) -> None:
        """Train the networks of the reward on recorded play, and print the loss."""
        from envs.utils.progress import console
        from exploration.reward import baselines, disagreement

        if self.name == "vae":
            frames_NHWC = baselines.sample_frames(self.data, TRAINING_FRAMES, seed)
            model, loss = baselines.train_autoencoder(frames_NHWC, seed=seed)
            baselines.save_weights(weights, model.encoder)
            console.print(
                f"autoencoder trained on {len(frames_NHWC):,} frames: loss {loss:.1f} a frame"
            )
            return
        from worldmodel.uncertainty import load_model

        world = load_model(model_path)
        windows = disagreement.sample_windows(self.data, TRAINING_TOKENS // world.cfg.grid**2, seed)
        pairs = disagreement.examples(world, list(windows))
        heads, loss = disagreement.train_heads(*pairs, world.cfg.tokenizer.codes, seed=seed)
        baselines.save_weights(weights, heads)
        console.print(
            f"{len(heads.prior.inner)} heads trained on {len(pairs[1]):,} tokens: "
            f"cross-entropy {loss:.3f}"
        )

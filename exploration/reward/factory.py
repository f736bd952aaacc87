"""Rewards by name, from which `explore --reward` chooses.

Rewards with trained networks train them on recorded play at the start of a run and store them in
<out>/reward/*.safetensors.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from envs.utils.errors import InputError
from envs.utils.ray_session import node_resources, ray_is_connected
from exploration.reward.scorers import LocalScorer, ServeScorer
from worldmodel.models.saved_model import read_model_config

SCORERS = ("auto", "local", "serve")
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
"""Rewards whose networks are trained on recorded play."""
TRAINING_FRAMES = 4_000
TRAINING_TOKENS = 150_000
"""Training tokens of the heads: some 600 windows with 256 tokens a frame."""


def model_actions(model_path: Path | str | None) -> tuple[str, ...]:
    """Return the actions of a world model if they were chosen; empty without a model.

    A folder without one is for `RewardConfig.check` to report.
    """
    if model_path is None or not (Path(model_path) / "manifest.json").exists():
        return ()
    return read_model_config(Path(model_path)).action_names


def check_app(app_name: str, model_path: Path | str) -> None:
    """Raise InputError unless an app of this name runs on the connected Ray and serves this model.

    The error says what to run.
    """
    from ray import serve
    from ray.serve.exceptions import RayServeException

    from worldmodel.serve import newest_weights

    try:
        serve.get_app_handle(app_name)
    except RayServeException:  # no such app, or no Serve
        raise InputError(
            f"no reward service {app_name!r} is running on this Ray: start it with `autoexplore "
            f"serve {model_path} --name {app_name}`, both with the --ray-address of one cluster"
        ) from None
    served = newest_weights(app_name)
    if os.path.realpath(served) != os.path.realpath(model_path):
        raise InputError(
            f"the reward service {app_name!r} serves {served}, not {model_path}: give that model, "
            "or the name of another service"
        )


@dataclass(frozen=True)
class RewardConfig:
    """Reward of the agent, and where it is computed."""

    name: str = "token-entropy"
    """token-entropy: the paper's; disagreement: of heads on the world model, robust to noise;
    random-features, vae: error of its prediction in random or learnt features (Table 6);
    count-bonus: for rare screens; random; extrinsic: the game's own reward."""
    scorer: str = "auto"
    """Place of token-entropy's computation. local: each runner; serve: replicas of Ray Serve; auto:
    serve if the connected Ray has GPUs or nodes to serve, else local."""
    data: tuple[str, ...] = ()
    """Folders of episodes that disagreement and vae are trained on."""
    app: str | None = None
    """Name of a running app that computes token-entropy, with its own settings, and keeps running;
    None starts one for "serve"."""
    max_replicas: int | None = None
    """Maximum number of replicas of an app that is started, while requests queue. None: a fixed
    number."""

    def check(self, model_path: Path | str | None, actions: Sequence[str] | None = None) -> None:
        """Raise InputError for invalid settings, before anything is started.

        A running app is looked for if this process is connected to Ray.
        `actions`: names of the games' actions, which must be the model's.
        """
        if self.name not in REWARDS:
            raise InputError(
                f"reward {self.name!r} is not known: choose one of {', '.join(REWARDS)}"
            )
        if self.scorer not in SCORERS:
            raise InputError(
                f"scorer {self.scorer!r} is not known: choose one of {', '.join(SCORERS)}"
            )
        if self.name != "token-entropy" and (self.scorer == "serve" or self.app is not None):
            raise InputError(
                f"reward {self.name!r} is computed in the runners: leave the scorer 'serve' and "
                "--reward-app out"
            )
        if self.app is not None and (self.scorer == "local" or self.max_replicas is not None):
            raise InputError(
                f"the reward service {self.app!r} is running with its own replicas: leave "
                "--reward-backend local and --reward-max-replicas out"
            )
        if self.name in TRAINED and not self.data:
            raise InputError(
                f"reward {self.name!r} is trained on recorded play: name folders with --reward-data"
            )
        if self.name not in WITHOUT_MODEL:
            if model_path is None:
                raise InputError(f"reward {self.name!r} needs a world model: give one with --model")
            model = LocalScorer(model_path).load()
            if actions is not None:
                model.check_action_names(actions, "the games have")
            if self.app is not None and ray_is_connected():
                check_app(self.app, model_path)

    @contextmanager
    def open(
        self,
        model_path: Path | str | None,
        folder: Path,
        *,
        seed: int,
        steps: int = 1,
        replicas: int = 1,
        precision: str = "auto",
    ) -> Iterator[Callable[[], Any] | None]:
        """Yield a factory of scorers, None for the game's own reward.

        With a served reward the app runs during the block. `folder` stores trained networks;
        `steps`: MaskGIT passes; `precision` is that of the world model.
        """
        model = None if model_path is None else Path(model_path).absolute()
        if self.app is not None:
            yield partial(ServeScorer, self.app)
        elif not self.is_served():
            yield self._local(model, folder.absolute(), steps, seed, precision)
        else:
            from worldmodel import serve

            assert model is not None
            config = serve.ServeConfig(
                steps=steps,
                replicas=replicas,
                max_replicas=self.max_replicas,
                precision=precision,
            )
            app_name = serve.deploy(model, config)
            try:
                yield partial(ServeScorer, app_name)
            finally:
                serve.shutdown(app_name)

    def is_served(self) -> bool:
        """Return True if replicas of Ray Serve are to compute the reward."""
        if self.name != "token-entropy" or self.scorer != "auto":
            return self.scorer == "serve"
        if not ray_is_connected():
            return False
        serve_nodes = node_resources("serve")
        return bool(serve_nodes.gpus or serve_nodes.resources)

    def _local(
        self, model: Path | None, folder: Path, steps: int, seed: int, precision: str = "auto"
    ) -> Callable[[], Any] | None:
        """Return a factory of scorers in the runners; train the networks of the reward first."""
        import ray

        from exploration.reward.baselines import (
            CountBonus,
            PredictionError,
            RandomReward,
            VisitCounter,
        )
        from exploration.reward.disagreement import Disagreement

        if self.name == "extrinsic":
            return None
        if self.name == "count-bonus":
            return partial(CountBonus, ray.remote(VisitCounter).options(num_cpus=0).remote())
        if self.name == "random":
            return partial(RandomReward, seed)
        assert model is not None
        if self.name == "token-entropy":
            return partial(LocalScorer, model, steps=steps, precision=precision)
        if self.name == "random-features":
            return partial(PredictionError, model, precision=precision)
        weights = folder / f"{self.name}.safetensors"
        if not weights.exists():
            self._train(model, weights, seed, precision)
        scorer = PredictionError if self.name == "vae" else Disagreement
        return partial(scorer, model, weights, precision=precision)

    def _train(self, model_path: Path, weights: Path, seed: int, precision: str) -> None:
        """Train the networks of the reward on recorded play, and print the loss."""
        from envs.utils.progress import console
        from exploration.reward import baselines, disagreement
        from worldmodel.uncertainty import load_model

        if self.name == "vae":
            frames_NHWC = baselines.sample_frames(self.data, TRAINING_FRAMES, seed)
            model, loss = baselines.train_autoencoder(frames_NHWC, seed=seed)
            baselines.save_reward_network(weights, model.encoder)
            console.print(
                f"autoencoder trained on {len(frames_NHWC):,} frames: loss {loss:.1f} a frame"
            )
            return
        world = load_model(model_path, "auto", precision)
        windows = disagreement.sample_windows(self.data, TRAINING_TOKENS // world.cfg.grid**2, seed)
        hidden_XD, tokens_X = disagreement.examples(world, list(windows))
        heads, loss = disagreement.train_heads(
            hidden_XD, tokens_X, world.cfg.tokenizer.codes, seed=seed
        )
        baselines.save_reward_network(weights, heads)
        console.print(
            f"{len(heads.prior.inner)} heads trained on {len(tokens_X):,} tokens: "
            f"cross-entropy {loss:.3f}"
        )

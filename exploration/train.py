"""Training of an explorer, with its run directory.

<out>/config.json              settings; metrics.jsonl and tensorboard/ as in every run
<out>/checkpoints/step-*/      one for each epoch, see `exploration.agent.checkpoint`
<out>/reward/                  networks of the reward, see `exploration.reward.factory`
<out>/best/                    agent with the best evaluation return, for `load_policy`
<out>/changes.jsonl            changes requested by `tune set`
<out>/history.json             the same changes, with the epochs at which they took effect
<out>/snapshots/               screen with the highest reward of each epoch
<out>/videos/                  the best agent and a random one
"""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ray.exceptions import RayActorError, RayError

from envs import action_names, builtin_name, catalog
from envs.controls import custom_actions
from envs.episodes.frame_distance import UNSEEN, distances_by_game
from envs.games.base import EnvOptions
from envs.utils.artifact_dir import complete_checkpoints, remove_partial_checkpoints
from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError
from envs.utils.images import png
from envs.utils.interrupt import GracefulInterrupt
from envs.utils.progress import console, progress
from envs.utils.ray_session import node_resources, ray_session
from envs.utils.run_dir import RunDir
from exploration.agent.checkpoint import load_checkpoint, save_agent_checkpoint
from exploration.agent.learner import learner_is_lost, quiet_learner_errors
from exploration.agent.policy import CnnLstm, load_network, save_policy
from exploration.algorithm import AutoExplore, AutoExploreConfig
from exploration.config import ExploreConfig
from exploration.metrics import RETURN, evaluation_metrics, training_metrics, warn_if_blind
from exploration.mutable_settings import apply_settings, read_requests, settings_in_effect
from exploration.reward.factory import RewardConfig, model_actions
from exploration.reward.scorers import Scorer
from exploration.reward.token_entropy import TOP_FRACTION
from exploration.rollout.snapshots import save_snapshot
from exploration.rollout.vector_env import check_env_slots
from exploration.videos import record_videos

TOKEN_ENTROPY = RewardConfig()


@ray_session()
def explore(
    games: Sequence[str],
    model: Path | str | None,
    out: Path | str,
    *,
    config: ExploreConfig,
    reward: RewardConfig = TOKEN_ENTROPY,
    init: Path | str | None = None,
    archive: Path | str | None = None,
    reference_data: Sequence[Path | str] = (),
    env_options: EnvOptions = (),
    resume: bool = False,
    seed: int = 0,
) -> Path:
    """Train an agent on the uncertainty of the world model in `model`; return the best agent.

    The envs of all runners get the games in turn; `config.with_envs_for` makes room for many. The
    rewards count-bonus, random and extrinsic need no model. `init`: policy folder with the initial
    weights. `archive`: folder of `collect --policy archive`, at whose cells a share of the episodes
    begin. `reference_data`: episodes that the world model was trained on; the run then reports
    how far from them the agent goes. `env_options` are those of `envs.make`. `resume` continues the
    newest checkpoint in `out` with its weights, optimizer and replay buffer; a finished run returns
    at once. Runs on the connected Ray, or on a local one. Raises InputError for invalid settings.
    """
    # Check everything before anything is started.
    names = [game_name(game) for game in games]
    config = with_actions(config, names, model)
    check_env_slots(names, config.runners, config.envs_per_runner)
    out = Path(out)
    if archive is not None:
        check_archives(Path(archive), names)
    network = json.loads(json.dumps(dataclasses.asdict(config.network)))
    identity = {"games": names, "network": network, "reward": reward.name}
    epoch, state, about = _newest_checkpoint(out, resume, identity)
    if epoch >= config.epochs:
        return out / "best"
    initial = None if init is None else _initial_network(init, config)
    reward.check(model, config.network.actions)

    written: dict[str, Any] = {"games": names, "model": model and str(model), "seed": seed}
    written["archive"] = archive and str(archive)
    written |= {"env_options": dict(env_options)} if env_options else {}
    written |= {"reward": dataclasses.asdict(reward), **dataclasses.asdict(config)}
    references = distances_by_game(reference_data)
    scorers = open_scorers(reward, model, out, config, seed)
    with RunDir(out, written, resume=resume, resume_step=epoch) as run, scorers as make_scorer:
        remove_partial_checkpoints(out)
        # The runners of a resumed run must not repeat the random numbers of the first epochs.
        settings = configure(config, names, make_scorer, seed=seed + 1_000_003 * epoch)
        if archive is not None:
            settings.training(archive=Path(archive).absolute() / "archive")
        settings.training(env_options=tuple(env_options))
        with _running(settings, out) as algorithm:
            algorithm.set_references(references)
            if state is not None:
                algorithm.set_state(state)
                apply_settings(algorithm, about.get("settings", {}))  # those of `tune set`
            elif initial is not None:
                algorithm.set_network(initial)
            ExploreLoop(run, algorithm, config, names, about).train(epoch)
            record_videos(run, config.epochs, names, seed=seed, options=env_options)
    return out / "best"


def with_actions(
    config: ExploreConfig, games: Sequence[str], model: Path | str | None
) -> ExploreConfig:
    """Return the configuration with the actions of the games.

    They are those of `config` if it names others than the games' own, else the world model's.
    """
    chosen = custom_actions(config.network.actions) or model_actions(model)
    names = action_names(games, chosen)
    return replace(config, network=replace(config.network, actions=names))


def check_archives(folder: Path, games: Sequence[str]) -> None:
    """Raise InputError unless a folder holds an archive of each game."""
    missing = [game for game in games if not (folder / "archive" / game).is_dir()]
    if missing:
        raise InputError(
            f"{folder} holds no archive of {', '.join(missing)}: make it with "
            "`autoexplore collect --policy archive`"
        )


def game_name(game: str) -> str:
    """Return the canonical name of a game. Raises InputError for an unknown one."""
    return builtin_name(game) or catalog.canonical(game)


def _newest_checkpoint(
    out: Path, resume: bool, identity: dict[str, Any]
) -> tuple[int, dict[str, Any] | None, dict[str, Any]]:
    """Load (epochs done, state, about) of the newest checkpoint, or return those of a new run.

    Raises InputError if the checkpoint has another `identity`.
    """
    checkpoints = complete_checkpoints(out) if resume else []
    if not checkpoints:
        return 0, None, {"best_return": None, "env_steps": 0, **identity}
    epoch, state, about = load_checkpoint(checkpoints[-1])
    for name, value in identity.items():
        if about.get(name, value) != value:
            raise InputError(
                f"{out} was started with {name} {about[name]}, not {value}: "
                "resume it as it was started"
            )
    return epoch, state, about


def _initial_network(init: Path | str, config: ExploreConfig) -> CnnLstm:
    network = load_network(init)
    if network.config != config.network:
        raise InputError(
            f"{init}: its network is {network.config}, this run's {config.network}: "
            "give another policy"
        )
    return network


def open_scorers(
    reward: RewardConfig, model: Path | str | None, out: Path, config: ExploreConfig, seed: int
) -> AbstractContextManager[Callable[[], Any] | None]:
    """Return the context of a run's scorers, see `RewardConfig.open`."""
    return reward.open(
        model,
        out / "reward",
        steps=config.maskgit_steps,
        replicas=config.replicas,
        precision=config.precision,
        seed=seed,
    )


def configure(
    config: ExploreConfig,
    games: Sequence[str],
    scorer: Callable[[], Scorer] | None,
    *,
    seed: int = 0,
) -> AutoExploreConfig:
    """Return the RLlib configuration of a run, with its resources on the connected Ray."""
    actions = custom_actions(config.network.actions)
    settings = AutoExploreConfig().explore_settings(games=games, scorer=scorer, actions=actions)
    settings.training(**config.algorithm_settings())
    rollout, serve = node_resources("rollout"), node_resources("serve")
    settings.env_runners(
        num_env_runners=config.runners,
        num_envs_per_env_runner=config.envs_per_runner,
        custom_resources_per_env_runner=rollout.resources,
    )
    # The main process of a Tune trial plays the evaluations.
    settings.resources(custom_resources_for_main_process=rollout.resources)
    # Every game has equally many envs in an evaluation.
    evaluation_envs = len(games) * max(1, config.evaluation_episodes // len(games))
    # On a cluster with GPU nodes the driver, which has no GPU, must not learn itself.
    settings.learners(
        num_learners=config.learners or int(serve.gpus),
        num_gpus_per_learner=serve.gpus,
        custom_resources_per_learner=serve.resources,
    )
    settings.evaluation(
        evaluation_interval=config.evaluate_every,
        evaluation_num_env_runners=0,
        evaluation_duration=config.evaluation_steps * evaluation_envs,
        evaluation_config={
            "explore": not config.evaluate_greedily,
            "archive": None,
            "top_fraction": TOP_FRACTION,
            "num_envs_per_env_runner": evaluation_envs,
            "steps_per_epoch": config.evaluation_steps,
        },
    )
    settings.debugging(seed=seed, log_level="ERROR")
    return settings


@contextmanager
def _running(settings: AutoExploreConfig, out: Path) -> Iterator[Any]:
    """Build the algorithm for the block, and stop it afterwards.

    Raises InputError if a learner died: runners and replicas are restarted, a learner is not.
    """
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    quiet_learner_errors()
    algorithm: Any = settings.build_algo()
    try:
        yield algorithm
    except RayError as error:
        if not (isinstance(error, RayActorError) or learner_is_lost(algorithm)):
            raise
        raise InputError(
            f"{out}: a learner process died; continue from the newest checkpoint with --resume"
        ) from error
    finally:
        algorithm.stop()


class ExploreLoop:
    """Loop over epochs, with evaluation, logging and checkpoints."""

    def __init__(
        self,
        run: RunDir,
        algorithm: AutoExplore,
        config: ExploreConfig,
        games: list[str],
        about: dict[str, Any],
    ) -> None:
        self.run, self.algorithm, self.config = run, algorithm, config
        self.games, self.about = games, about

    def train(self, epoch: int) -> None:
        """Train all epochs after `epoch`."""
        played = self.games[0] if len(self.games) == 1 else f"{len(self.games)} games"
        bar_of_epochs = progress(f"explore {played}", self.config.epochs, done=epoch)
        with bar_of_epochs as bar, GracefulInterrupt(at_once=True) as interrupt:
            while epoch < self.config.epochs:
                if interrupt.requested():
                    raise KeyboardInterrupt
                epoch += 1
                metrics = self._train_epoch(epoch)
                self.run.log(epoch, metrics)
                self._save(epoch)
                self._save_snapshot(epoch)
                reward, entropy = metrics["explore/reward"], metrics["explore/entropy"]
                bar.advance(note=f"reward {reward:.3f}, entropy {entropy:.2f}")
                if epoch == self.config.epochs:
                    warn_if_blind(metrics)
        if not (self.run.path / "best").is_dir():  # no evaluation was complete
            self._save_best({"epoch": epoch})

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        """Train and, if it is due, evaluate; return the metrics."""
        started = time.monotonic()
        self._take_changes(epoch)
        result = self.algorithm.train()
        metrics = training_metrics(result, self.config.network.actions)
        settings = settings_in_effect(self.algorithm)
        metrics |= {f"settings/{name}": value for name, value in settings.items()}
        self.about["env_steps"] += metrics.pop("steps")
        metrics["explore/env_steps"] = self.about["env_steps"]
        for game, screens in self.algorithm.screens.items():
            metrics[f"explore/screens/{game}"] = len(screens)
        for game, distances in self.algorithm.distances.items():
            metrics[f"explore/distance/{game}"] = float(np.mean(distances))
            metrics[f"explore/unseen_share/{game}"] = float(np.mean(distances > UNSEEN))
        if epoch % self.config.evaluate_every == 0:
            metrics |= self._evaluate(result["evaluation"], epoch)
        elif epoch == self.config.epochs:
            metrics |= self._evaluate(self.algorithm.evaluate(), epoch)
        metrics["explore/epoch_seconds"] = time.monotonic() - started
        return metrics

    def _take_changes(self, epoch: int) -> None:
        """Apply the changes requested since the last epoch, and record when they took effect.

        `about` is saved in every checkpoint, so that a resumed run has the same settings and takes
        each request only once.
        """
        history = self.about.setdefault("changes", [])
        for request in read_requests(self.run.path, after=len(history)):
            changes = request["set"]
            apply_settings(self.algorithm, changes)
            self.about.setdefault("settings", {}).update(changes)
            history.append({"epoch": epoch, **request})
            text = ", ".join(f"{name}={value:g}" for name, value in changes.items())
            line = f"from epoch {epoch} on: {text or request.get('refused', '')}"
            self.run.log_text(epoch, "changes", line)
            console.print(line)
        if history:
            write_json_atomic(self.run.path / "history.json", history)

    def _evaluate(self, evaluation: dict[str, Any], epoch: int) -> dict[str, float]:
        """Return the metrics of an evaluation, and save the agent if it is the best so far."""
        metrics = evaluation_metrics(evaluation)
        value, best = metrics.get(RETURN), self.about["best_return"]
        if value is not None and (best is None or value > best):
            self.about["best_return"] = value
            self._save_best({"epoch": epoch, "evaluation_return": value})
        return metrics

    def _save_best(self, about: dict[str, Any]) -> None:
        about = about | {"games": self.games}
        # The seeds of an agent's episodes depend on its files, which stay as they were by default.
        if self.config.sticky:
            about["sticky"] = self.config.sticky
        save_policy(self.run.path / "best", self.algorithm.network(), about)

    def _save(self, epoch: int) -> None:
        save_agent_checkpoint(
            self.run.path,
            epoch,
            self.algorithm.network(),
            plain_state(self.algorithm),
            json.loads(json.dumps(self.about)),
            keep_last=self.config.keep_last,
        )

    def _save_snapshot(self, epoch: int) -> None:
        """Save the highest-reward screen of the epoch in the run directory and for TensorBoard."""
        if self.algorithm.snapshots is None:
            return
        peak = self.algorithm.snapshots.peak
        save_snapshot(self.run.path, epoch, peak)
        picture = peak.pair()
        self.run.log_picture(epoch, "uncertainty", png(picture), *picture.shape[:2])


def plain_state(algorithm: AutoExplore) -> dict[str, Any]:
    """Return the state for a checkpoint: learner, optimizer, replay buffer, screens, epoch."""
    state = algorithm.get_state(components=["learner_group"])
    # Statistics of a process that ended are meaningless to the next one, and not plain data.
    state.pop("metrics_logger", None)
    state["learner_group"]["learner"].pop("metrics_logger", None)
    return state

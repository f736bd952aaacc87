"""Training of an explorer: settings in, the folder of the best agent out, every epoch on disk.

<out>/config.json              settings; metrics.jsonl and tensorboard/ as in every run
<out>/checkpoints/step-*/      one an epoch, see `exploration.agent.checkpoint`
<out>/reward/                  networks of the reward, see `exploration.reward.factory`
<out>/best/                    agent with the best evaluation return; `load_policy` loads it
<out>/changes.jsonl            changes requested by `tune set`
<out>/history.json             the same, with the epochs from which they hold
<out>/snapshots/               screen of the highest reward in each epoch
<out>/videos/                  the best agent and a random one
"""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError, RayError

from envs import COINRUN, builtin_name, catalog
from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError
from envs.utils.images import png
from envs.utils.interrupt import GracefulInterrupt
from envs.utils.progress import console, progress
from envs.utils.ray_session import node_resources, ray_session
from envs.utils.run_dir import RunDir
from exploration.agent.checkpoint import complete_checkpoints, load_checkpoint, save_checkpoint
from exploration.agent.learner import learner_is_gone
from exploration.agent.policy import load_network, save_policy
from exploration.algorithm import AutoExplore, AutoExploreConfig
from exploration.config import ExploreConfig, algorithm_settings, changed, explore_preset
from exploration.mutable_settings import apply, in_effect, requests
from exploration.reward.factory import RewardConfig
from exploration.reward.scorers import Scorer
from exploration.reward.token_entropy import TOP_FRACTION
from exploration.rollout.snapshots import save_snapshot
from exploration.rollout.vector_env import check_env_slots
from exploration.videos import record_videos


@ray_session()
def explore(
    games: Sequence[str],
    model: Path | str | None,
    out: Path | str,
    *,
    config: ExploreConfig | None = None,
    preset: str = "cpu",
    reward: str = "token-entropy",
    reward_data: Sequence[str] = (),
    scorer: str = "local",
    app: str | None = None,
    init: Path | str | None = None,
    resume: bool = False,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Train an agent on the uncertainty of the world model in `model`; return the best agent.

    `config`: the settings, by default those of the `preset`; `changes` replace some of its fields,
    except by None. The envs of all runners get the games in turn; where `changes` holds no
    `envs_per_runner` and there are too few envs, there are as many as the games need. `reward`,
    `reward_data`, `scorer` and `app` are those of `RewardConfig`; count-bonus, random and extrinsic
    need no model. `init`: the folder of a policy whose weights the agent begins with. With `resume`
    the newest checkpoint in `out` is continued: weights, optimizer, epsilon, replay buffer; a
    finished run returns at once. Runs on the connected Ray, or on a local one. Raises InputError
    for invalid settings.
    """
    names = [game_name(game) for game in games]
    config = changed(config or explore_preset(preset), **changes)
    if changes.get("envs_per_runner") is None and names:
        needed = math.ceil(len(names) / max(config.runners, 1))
        config = changed(config, envs_per_runner=max(config.envs_per_runner, needed))
    check_env_slots(names, config.runners, config.envs_per_runner)
    reward_config = RewardConfig(reward, scorer, tuple(map(str, reward_data)), app)
    out = Path(out)
    network = json.loads(json.dumps(dataclasses.asdict(config.network)))
    epoch, state, about = _start(
        out, resume, {"games": names, "network": network, "reward": reward}
    )
    if epoch >= config.epochs:
        return out / "best"
    initial = None if init is None else load_network(init)
    if initial is not None and initial.config != config.network:
        raise InputError(
            f"{init}: its network is {initial.config}, this run's {config.network}: "
            "give another policy"
        )
    reward_config.check(model)  # before anything is started
    written: dict[str, Any] = {
        "games": names,
        "model": None if model is None else str(model),
        "seed": seed,
    }
    written |= {"reward": dataclasses.asdict(reward_config), **dataclasses.asdict(config)}
    scorers = reward_config.open(
        model, out / "reward", steps=config.maskgit_steps, replicas=config.replicas, seed=seed
    )
    with RunDir(out, written, resume=resume, resume_step=epoch) as run, scorers as make_scorer:
        logging.getLogger("ray.rllib").setLevel(logging.ERROR)
        # A resumed run's runners must not repeat the random numbers of the first epochs.
        settings = configure(config, names, make_scorer, seed=seed + 1_000_003 * epoch)
        algorithm: Any = settings.build_algo()
        try:
            if initial is not None and state is None:
                algorithm.set_network(initial)
            if state is not None:
                algorithm.set_state(state)
                apply(algorithm, about.get("settings", {}))  # those of `tune set`
            ExploreLoop(run, algorithm, config, names, about).train(epoch)
            record_videos(run, config.epochs, names, seed=seed)
        except RayError as error:
            # Runners and replicas are restarted by themselves; only a lost learner ends the run.
            if not (isinstance(error, RayActorError) or learner_is_gone(algorithm)):
                raise
            raise InputError(
                f"{out}: a learner's process died; go on from the newest checkpoint with --resume"
            ) from error
        finally:
            algorithm.stop()
    return out / "best"


def game_name(game: str) -> str:
    """Return the canonical name of a game.

    Raises InputError for an unknown one, or one with other actions.
    """
    if (name := builtin_name(game)) == COINRUN:
        raise InputError("CoinRun has seven actions, the explorer five: explore another game")
    return name or catalog.canonical(game)


def configure(
    config: ExploreConfig,
    games: Sequence[str],
    scorer: Callable[[], Scorer] | None,
    *,
    seed: int = 0,
) -> AutoExploreConfig:
    """Return the RLlib configuration of a run, with its resources on the connected Ray."""
    settings = AutoExploreConfig()
    settings.explore_settings(games=games, scorer=scorer)
    settings.training(**algorithm_settings(config))
    rollout, serve = node_resources("rollout"), node_resources("serve")
    settings.env_runners(
        num_env_runners=config.runners,
        num_envs_per_env_runner=config.envs_per_runner,
        custom_resources_per_env_runner=rollout.resources,
    )
    # Tune's trials, which play to be judged.
    settings.resources(custom_resources_for_main_process=rollout.resources)
    # The driver, on a machine without a GPU, must not learn itself where there are GPUs for it.
    settings.learners(
        num_learners=config.learners or int(serve.gpus),
        num_gpus_per_learner=serve.gpus,
        custom_resources_per_learner=serve.resources,
    )
    settings.evaluation(
        evaluation_interval=config.evaluate_every,
        evaluation_num_env_runners=0,
        evaluation_duration=config.evaluation_steps * len(games),
        evaluation_config={
            "explore": not config.evaluate_greedily,
            "top_fraction": TOP_FRACTION,
            "num_envs_per_env_runner": len(games),
            "steps_per_epoch": config.evaluation_steps,
        },
    )
    settings.debugging(seed=seed, log_level="ERROR")
    return settings


def _start(
    out: Path, resume: bool, identity: dict[str, Any]
) -> tuple[int, dict[str, Any] | None, dict[str, Any]]:
    """Return (epochs done, state, about) of the newest checkpoint, or of a new run.

    Raises InputError where the checkpoint is of other games or of another network: neither can go
    on.
    """
    complete = complete_checkpoints(out) if resume else []
    if not complete:
        return 0, None, {"best_return": None, "env_steps": 0, **identity}
    epoch, state, about = load_checkpoint(complete[-1])
    for name, asked in identity.items():
        if about.get(name, asked) != asked:
            raise InputError(
                f"{out} was started with {name} {about[name]}, not {asked}: "
                "resume it as it was started"
            )
    return epoch, state, about


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
        bar_of_epochs = progress(f"explore {len(self.games)} games", self.config.epochs, done=epoch)
        with bar_of_epochs as bar, GracefulInterrupt(at_once=True) as interrupt:
            while epoch < self.config.epochs:
                if interrupt.requested():
                    raise KeyboardInterrupt
                started = time.monotonic()
                self._take_changes(epoch + 1)
                result = self.algorithm.train()
                epoch += 1
                metrics = training_metrics(result)
                metrics |= {
                    f"settings/{name}": value for name, value in in_effect(self.algorithm).items()
                }
                self.about["env_steps"] += metrics.pop("steps")
                metrics |= {"explore/env_steps": self.about["env_steps"]}
                metrics |= {
                    f"explore/screens/{game}": len(keys)
                    for game, keys in self.algorithm.screens.items()
                }
                if epoch % self.config.evaluate_every == 0:
                    metrics |= self._judge(result["evaluation"], epoch)
                elif epoch == self.config.epochs:
                    metrics |= self._judge(self.algorithm.evaluate(), epoch)
                metrics["explore/epoch_seconds"] = time.monotonic() - started
                self.run.log(epoch, metrics)
                self._save(epoch)
                self._save_snapshot(epoch)
                reward, entropy = metrics["explore/reward"], metrics["explore/entropy"]
                bar.advance(note=f"reward {reward:.3f}, entropy {entropy:.2f}")
        if not (
            self.run.path / "best"
        ).is_dir():  # no evaluation was whole: the last agent is all there is
            save_policy(
                self.run.path / "best",
                self.algorithm.network(),
                {"epoch": epoch, "games": self.games},
            )

    def _save_snapshot(self, epoch: int) -> None:
        """Save the highest-reward screen of the epoch, in the run's folder and for TensorBoard."""
        if self.algorithm.snapshots is None:
            return
        peak = self.algorithm.snapshots.peak
        save_snapshot(self.run.path, epoch, peak)
        shown = peak.pair()
        self.run.log_picture(epoch, "uncertainty", png(shown), *shown.shape[:2])

    def _take_changes(self, epoch: int) -> None:
        """Apply the changes requested since the epoch before, and record when they took effect.

        `about` goes into every checkpoint: a resumed run has the same settings, and takes each
        request only once.
        """
        history = self.about.setdefault("changes", [])
        for asked in requests(self.run.path, after=len(history)):
            apply(self.algorithm, asked["set"])
            self.about.setdefault("settings", {}).update(asked["set"])
            history.append({"epoch": epoch, **asked})
            words = ", ".join(
                f"{name}={value:g}" for name, value in asked["set"].items()
            ) or asked.get("refused", "")
            self.run.log_text(epoch, "changes", f"from epoch {epoch} on: {words}")
            console.print(f"from epoch {epoch} on: {words}")
        if history:
            write_json_atomic(self.run.path / "history.json", history)

    def _judge(self, evaluation: dict[str, Any], epoch: int) -> dict[str, float]:
        """Return the metrics of an evaluation, and save the agent if it is the best so far."""
        metrics = evaluation_metrics(evaluation)
        value = metrics.get("evaluation/intrinsic_return")
        best = self.about["best_return"]
        if value is not None and (best is None or value > best):
            self.about["best_return"] = value
            about = {"epoch": epoch, "evaluation_return": value, "games": self.games}
            save_policy(self.run.path / "best", self.algorithm.network(), about)
        return metrics

    def _save(self, epoch: int) -> None:
        state = plain_state(self.algorithm)
        about = json.loads(json.dumps(self.about))
        save_checkpoint(
            self.run.path,
            epoch,
            self.algorithm.network(),
            state,
            about,
            keep_last=self.config.keep_last,
        )


def plain_state(algorithm: AutoExplore) -> dict[str, Any]:
    """Return the state for a checkpoint: learner, optimizer, replay buffer, screens, epoch."""
    state = algorithm.get_state(components=["learner_group"])
    # Statistics of a process that ended mean nothing to the next one, and are not plain data.
    state.pop("metrics_logger", None)
    state["learner_group"]["learner"].pop("metrics_logger", None)
    return state


def training_metrics(result: dict[str, Any]) -> dict[str, float]:
    """Convert RLlib's result of an epoch to metrics; `steps` counts the collected steps."""
    runners = result["env_runners"]
    games = {
        game: {name: float(value) for name, value in sums.items()}
        for game, sums in runners["games"].items()
    }
    total = {
        name: sum(sums[name] for sums in games.values())
        for name in ("reward", "scored", "steps", "dropped")
    }
    metrics = {f"explore/{name}": float(value) for name, value in result["learning"].items()}
    metrics |= {
        f"explore/intrinsic_return/{game}": sums["reward"] / sums["envs"]
        for game, sums in games.items()
    }
    metrics["explore/reward"] = total["reward"] / max(total["scored"], 1.0)
    metrics["explore/epsilon"] = float(result["epsilon"])
    metrics["explore/replay_steps"] = float(result["replay_steps"])
    metrics["explore/fragments_dropped"] = total["dropped"]
    metrics["explore/sample_seconds"] = float(result["seconds"]["sample"])
    metrics["explore/learn_seconds"] = float(result["seconds"]["learn"])
    metrics["explore/env_steps_per_second"] = total["steps"] / max(
        metrics["explore/sample_seconds"], 1e-9
    )
    metrics["steps"] = total["steps"]
    return metrics


def evaluation_metrics(evaluation: dict[str, Any]) -> dict[str, float]:
    """Compute the intrinsic return of `evaluation_steps` steps by game, and its mean over games.

    A game that ends early is played again within these steps, so that a short life earns no more
    and no less by itself. Games of which a fragment had no score have no return, and then there is
    no mean either.
    """
    games = evaluation.get("env_runners", {}).get("games", {})
    whole = {game: sums for game, sums in games.items() if not sums["dropped"]}
    returns = {game: float(sums["reward"]) / float(sums["envs"]) for game, sums in whole.items()}
    metrics = {f"evaluation/intrinsic_return/{game}": value for game, value in returns.items()}
    if returns and len(returns) == len(games):
        metrics["evaluation/intrinsic_return"] = sum(returns.values()) / len(returns)
    return metrics

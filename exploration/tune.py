"""Population-based training of explorers (Jaderberg et al. 2017) with Ray Tune.

Every `evaluate_every` epochs the worst agents copy weights, optimizer and replay buffer of the best
ones and perturb their settings. Each agent learns with its own `top_fraction`, but all are compared
by evaluations at the paper's fraction, without epsilon and at temperature 1; otherwise the smallest
fraction would always look best.

<out>/config.json   settings
<out>/rows.jsonl    metrics of every epoch of every agent
<out>/trials/       Tune's own folder; its state is a pickle: resume only your own runs
<out>/tune.json     curves, changes of settings, and the best agent; written last
<out>/best/         the best agent, for `load_policy`
"""

import dataclasses
import json
import logging
import os
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ray import tune as ray_tune
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.search.basic_variant import BasicVariantGenerator

from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError
from envs.utils.progress import Bar, progress
from envs.utils.ray_session import ray_session
from envs.utils.run_dir import RunDir
from exploration.agent.checkpoint import (
    complete_checkpoints,
    load_checkpoint,
    save_agent_checkpoint,
)
from exploration.agent.policy import load_network, save_policy
from exploration.algorithm import AutoExplore
from exploration.config import ExploreConfig
from exploration.metrics import RETURN, evaluation_metrics, training_metrics
from exploration.mutable_settings import apply_settings, current_settings, settings_in_effect
from exploration.reward.factory import RewardConfig
from exploration.train import configure, game_name, open_scorers, plain_state, with_actions

METRIC = "evaluation_return"
RANGES: dict[str, tuple[float, float]] = {
    "lr": (1e-5, 3e-3),
    "entropy_coeff": (1e-4, 0.1),
    "epsilon": (0.005, 0.3),
    "temperature": (0.5, 2.0),
    "top_fraction": (0.05, 1.0),
}
"""Range of each tuned setting. Initial values are drawn log-uniformly."""
ROWS = "rows.jsonl"
QUANTILE = 0.25
"""Fraction of the agents that copy another one."""
RESAMPLE = 0.25
"""Probability that a perturbed setting is drawn again from its range."""


class TuneTrial(AutoExplore):
    """AutoExplore as Tune runs it, with plain metrics and the checkpoints of
    `exploration.agent.checkpoint`."""

    @property
    def name(self) -> str:
        """Name of the trial in every file of the run; RLlib drops Tune's id in an actor."""
        storage: Any = self._storage
        return str(storage.trial_dir_name)

    def setup(self, config: Any) -> None:
        """Build the algorithm with a constant epsilon."""
        super().setup(config)
        self._begin()
        self.fresh = plain_state(self)

    def _begin(self) -> None:
        self.last_return = 0.0
        # Agent whose checkpoint this one copied, until the next epoch is recorded.
        self.copied: str | None = None
        # Makes epsilon constant, and restores the learning rate after a copy of the optimizer.
        apply_settings(self, current_settings(self.config))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Reset to a new agent with these settings; Tune may then load a checkpoint."""
        if not super().reset_config(new_config):
            return False
        self.set_state(self.fresh)
        self._begin()
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch; return its metrics, the settings, and the newest evaluation return (0
        before the first)."""
        epoch = self.iteration + 1
        result = super().step()
        if epoch % self.config.evaluation_interval == 0:
            evaluation = evaluation_metrics(result["evaluation"])
            self.last_return = evaluation.get(RETURN, self.last_return)
        copied, self.copied = self.copied, None
        return training_metrics(result, self.config.action_names or ()) | {
            METRIC: self.last_return,
            "screens": sum(map(len, self.screens.values())),
            "settings": settings_in_effect(self),
            "copied": copied,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save a checkpoint of `exploration.agent.checkpoint` in Tune's folder."""
        about = {
            "settings": current_settings(self.config),
            "games": list(self.config.games),
            METRIC: self.last_return,
            "trial": self.name,
        }
        folder, state = Path(checkpoint_dir), plain_state(self)
        save_agent_checkpoint(folder, self.iteration, self.network(), state, about, keep_last=1)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Load weights, optimizer and replay buffer of an agent; keep this trial's settings."""
        _, state, about = load_checkpoint(complete_checkpoints(Path(checkpoint))[-1])
        self.set_state(state)
        self._begin()
        self.last_return = float(about[METRIC])
        self.copied = about["trial"] if about["trial"] != self.name else None


class ProgressCallback(ray_tune.Callback):
    """Callback that moves the progress bar and records every epoch in ROWS.

    Tune's own files lose some epochs when an agent is paused. Bar and path are attributes of the
    class, because Tune pickles callbacks.
    """

    bar: ClassVar[Bar | None] = None
    rows: ClassVar[Path | None] = None
    best: ClassVar[float] = 0.0

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """Record an epoch of an agent."""
        cls = ProgressCallback
        if cls.bar is None or cls.rows is None:
            return
        names = ("settings", "copied", METRIC, "screens", "explore/reward", "pid")
        row = {name: result[name] for name in names}
        row |= {"trial": trial_label(trial.trial_id), "epoch": result["training_iteration"]}
        with cls.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        cls.best = max(cls.best, float(result[METRIC]))
        cls.bar.advance(note=f"best return {cls.best:.2f}")


@ray_session()
def tune(
    games: Sequence[str],
    model_path: Path | str,
    out: Path | str,
    *,
    config: ExploreConfig,
    scorer: str = "serve",
    trials: int = 4,
    resume: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Train a population of agents; at each evaluation the worst of them copy the best.

    The first agent starts with the settings of `config`, the others with settings drawn from
    RANGES. With the scorer "serve" all share one reward service. Returns the contents of
    <out>/tune.json. `resume` continues the newest checkpoint of each agent. Runs on the connected
    Ray, or on a local one; on a cluster `out` must be shared storage. Raises InputError for invalid
    settings.
    """
    if trials < 2:
        raise InputError(f"{trials} trials: a population needs 2 or more")
    if config.evaluate_every >= config.epochs:
        raise InputError(
            f"agents are compared every {config.evaluate_every} epochs, but trained for "
            f"{config.epochs}: give a shorter interval"
        )
    names = [game_name(game) for game in games]
    config = with_actions(config, names, model_path)
    out = Path(out)
    run_settings: dict[str, Any] = {"games": names, "model": str(model_path), "scorer": scorer}
    run_settings |= {"seed": seed, "trials": trials, **dataclasses.asdict(config)}
    written = json.loads(json.dumps({"tune": run_settings}))
    if resume and (out / "config.json").exists():
        if json.loads((out / "config.json").read_text()) != written:
            raise InputError(f"{out} was started with other settings: resume it as it was started")
        if (out / "tune.json").exists():
            return dict(json.loads((out / "tune.json").read_text()))
    reward = RewardConfig(scorer=scorer)
    reward.check(model_path, config.network.actions)  # before anything is started
    scorers = open_scorers(reward, model_path, out, config, seed)
    with RunDir(out, written, resume=resume) as run, scorers as make_scorer:
        logging.getLogger("ray.rllib").setLevel(logging.ERROR)
        space = configure(config, names, make_scorer, seed=seed).to_dict()
        tuner = _tuner(out, config, trials, space, resume=resume, seed=seed)
        results = _fit(tuner, out, trials, config.epochs)
        summary = summarize_population(out)
        _log(run, summary)
    best = next(result for result in results if Path(result.path).name == summary["best"])
    network = load_network(complete_checkpoints(Path(best.checkpoint.path))[-1])
    save_policy(out / "best", network, {"games": names, "evaluation_return": best.metrics[METRIC]})
    write_json_atomic(out / "tune.json", summary)
    return summary


def _fit(tuner: ray_tune.Tuner, out: Path, trials: int, epochs: int) -> list[Any]:
    """Train the population under a progress bar; return Tune's result of every agent.

    Raises KeyboardInterrupt after Ctrl+C, which Tune catches to save its state.
    """
    total = trials * epochs
    done = min(sum(map(len, read_rows(out).values())), total)
    with progress(f"tune {trials} agents", total, done=done) as bar:
        ProgressCallback.bar, ProgressCallback.rows = bar, out / ROWS
        try:
            results = tuner.fit()
        finally:
            ProgressCallback.bar = ProgressCallback.rows = None
    for error in results.errors:
        raise error
    finished = [rows for rows in read_rows(out).values() if max(rows) == epochs]
    if len(finished) < trials:
        raise KeyboardInterrupt
    return [results[index] for index in range(len(results))]


def _tuner(
    out: Path, config: ExploreConfig, trials: int, space: dict[str, Any], *, resume: bool, seed: int
) -> ray_tune.Tuner:
    """Build the Tuner of a new run, or restore that of an interrupted one."""
    # Tune prints tables of settings, which `verbose` does not silence.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    random.seed(seed)  # PBT uses the global generators
    np.random.seed(seed)
    folder = out.absolute() / "trials"
    domains = {name: ray_tune.loguniform(*limits) for name, limits in RANGES.items()}
    if resume and ray_tune.Tuner.can_restore(str(folder)):
        return ray_tune.Tuner.restore(
            str(folder), trainable=TuneTrial, param_space=space | domains, resume_errored=True
        )
    scheduler = PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=config.evaluate_every,
        hyperparam_mutations=domains,
        quantile_fraction=QUANTILE,
        resample_probability=RESAMPLE,
        custom_explore_fn=within_ranges,
        synch=True,  # compare agents at the same epoch, even if they run one after another
    )
    first = {name: float(space[name]) for name in RANGES}
    return ray_tune.Tuner(
        TuneTrial,
        param_space=space | domains,
        tune_config=ray_tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=trials,
            scheduler=scheduler,
            reuse_actors=True,
            search_alg=BasicVariantGenerator(points_to_evaluate=[first], random_state=seed),
            trial_dirname_creator=lambda trial: trial_label(trial.trial_id),
        ),
        run_config=ray_tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            stop={"training_iteration": config.epochs},
            checkpoint_config=ray_tune.CheckpointConfig(
                checkpoint_frequency=config.evaluate_every, checkpoint_at_end=True, num_to_keep=4
            ),
            failure_config=ray_tune.FailureConfig(max_failures=2),
            callbacks=[ProgressCallback()],
            verbose=0,
        ),
    )


def trial_label(trial_id: str) -> str:
    """Return the number of a trial, its name in every file of a run: ab12c_00003 -> 00003."""
    return trial_id.rsplit("_", 1)[-1]


def within_ranges(config: dict[str, Any]) -> dict[str, Any]:
    """Clip the tuned settings of a perturbed configuration to RANGES."""
    return config | {name: float(np.clip(config[name], *limits)) for name, limits in RANGES.items()}


def read_rows(out: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Read the metrics of every agent: trial -> epoch -> row. The last row of an epoch counts."""
    file = out / ROWS
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    trials: dict[str, dict[int, dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["trial"]):
        trials.setdefault(row["trial"], {})[row["epoch"]] = row
    return trials


def summarize_population(out: Path) -> dict[str, Any]:
    """Summarize a run: curves of every agent, changes of settings, and the best agent."""
    trials: dict[str, dict[str, Any]] = {}
    changes: list[dict[str, Any]] = []
    for name, by_epoch in read_rows(out).items():
        rows = [by_epoch[epoch] for epoch in sorted(by_epoch)]
        trials[name] = {
            "epochs": [row["epoch"] for row in rows],
            METRIC: [row[METRIC] for row in rows],
            "reward": [row["explore/reward"] for row in rows],
            "screens": [row["screens"] for row in rows],
            "settings": {key: [row["settings"][key] for row in rows] for key in RANGES},
        }
        for before, after in pairwise(rows):
            values = {key: [before["settings"][key], after["settings"][key]] for key in RANGES}
            changed = {key: [old, new] for key, (old, new) in values.items() if old != new}
            if changed or after["copied"]:
                change = {"trial": name, "from_epoch": after["epoch"], "copied": after["copied"]}
                changes.append(change | {"settings": changed})
    best = max(trials, key=lambda name: trials[name][METRIC][-1], default=None)
    changes.sort(key=lambda change: change["from_epoch"])
    return {"trials": trials, "changes": changes, "best": best}


def _log(run: RunDir, summary: dict[str, Any]) -> None:
    """Log the curves of all trials as metrics of the run."""
    values: dict[int, dict[str, float]] = {}
    for name, trial in summary["trials"].items():
        curves = {key: trial[key] for key in (METRIC, "reward", "screens")} | trial["settings"]
        for index, epoch in enumerate(trial["epochs"]):
            metrics = {f"{name}/{key}": curve[index] for key, curve in curves.items()}
            values.setdefault(epoch, {}).update(metrics)
    for epoch in sorted(values):
        run.log(epoch, values[epoch])

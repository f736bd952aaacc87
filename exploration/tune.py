"""Population-based training of explorers (Jaderberg et al. 2017) with Ray Tune.

Every `every` epochs the worst agents copy weights, optimizer and replay buffer of the best ones and
perturb their settings. Agents learn from rewards of their own `top_fraction`, but are compared by
evaluations at the paper's fraction, without epsilon and at temperature 1: otherwise the smallest
fraction would always look the best. Evaluation at `cpu` samples actions, as the preset has it:
there the most likely action alone is often one button for ever.

<out>/config.json   as every run
<out>/rows.jsonl    every epoch of every agent, as it was played
<out>/trials/       Tune's own folder; its state is a pickle: resume only your own runs
<out>/tune.json     what changed when, and the best agent; written last
<out>/best/         that agent; `load_policy` plays it
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
from exploration.agent.checkpoint import complete_checkpoints, load_checkpoint, save_checkpoint
from exploration.agent.policy import load_network, save_policy
from exploration.algorithm import AutoExplore
from exploration.config import ExploreConfig
from exploration.mutable_settings import apply, current, in_effect
from exploration.reward.factory import RewardConfig
from exploration.train import (
    configure,
    evaluation_metrics,
    game_name,
    plain_state,
    training_metrics,
)

METRIC = "evaluation_return"
RANGES: dict[str, tuple[float, float]] = {
    "lr": (1e-5, 3e-3),
    "entropy_coeff": (1e-4, 0.1),
    "epsilon": (0.005, 0.3),
    "temperature": (0.5, 2.0),
    "top_fraction": (0.05, 1.0),
}
"""Range of each setting, from which its first values are drawn log-uniformly."""
ROWS = "rows.jsonl"
QUANTILE = 0.25
RESAMPLE = 0.25


class TuneTrial(AutoExplore):
    """AutoExplore as Tune runs it: its results are plain figures, its checkpoints those of
    `exploration.agent.checkpoint`."""

    copied: str | None
    """Agent whose checkpoint this one took over, until its next epoch has been recorded."""

    @property
    def name(self) -> str:
        """Name of the trial in every file of the run; RLlib drops Tune's id in an actor."""
        storage: Any = self._storage
        return str(storage.trial_dir_name)

    def setup(self, config: Any) -> None:
        super().setup(config)
        apply(self, current(self.config))  # epsilon is one number here, not the start of a schedule
        self.fresh = plain_state(self)
        self.judged, self.copied = 0.0, None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Reset to a new agent with these settings; Tune then loads a checkpoint, if it has one."""
        if not super().reset_config(new_config):
            return False
        self.set_state(self.fresh)
        self.judged, self.copied = 0.0, None
        apply(self, current(self.config))
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch -> its metrics, its settings, and the return of the newest evaluation (0
        before the first)."""
        epoch = self.iteration + 1
        result = super().step()
        if epoch % self.config.evaluation_interval == 0:
            self.judged = evaluation_metrics(result["evaluation"]).get(
                "evaluation/intrinsic_return", self.judged
            )
        screens = sum(len(keys) for keys in self.screens.values())
        copied, self.copied = self.copied, None
        about = {
            METRIC: self.judged,
            "screens": screens,
            "settings": in_effect(self),
            "copied": copied,
        }
        return training_metrics(result) | about

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save a checkpoint of `exploration.agent.checkpoint` inside Tune's folder."""
        about = {
            "settings": current(self.config),
            "games": list(self.config.games),
            METRIC: self.judged,
        }
        about["trial"] = self.name
        save_checkpoint(
            Path(checkpoint_dir),
            self.iteration,
            self.network(),
            plain_state(self),
            about,
            keep_last=1,
        )

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Load another agent's weights, optimizer and replay buffer; the settings stay this trial's
        own."""
        _, state, about = load_checkpoint(complete_checkpoints(Path(checkpoint))[-1])
        self.set_state(state)
        self.judged = float(about[METRIC])
        self.copied = about["trial"] if about["trial"] != self.name else None
        apply(self, current(self.config))  # the optimizer came with the other's learning rate


class ProgressCallback(ray_tune.Callback):
    """Moves the progress bar and keeps the figures of every epoch: Tune's own files lose some when
    an agent is paused.

    Tune pickles callbacks, so bar and folder are the class's, not the object's.
    """

    bar: ClassVar[Bar | None] = None
    rows: ClassVar[Path | None] = None
    best: ClassVar[float] = 0.0

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """Record an epoch that an agent has finished."""
        if ProgressCallback.rows is not None:
            row = {
                name: result[name]
                for name in ("settings", "copied", METRIC, "screens", "explore/reward", "pid")
            }
            row |= {"trial": short_name(trial.trial_id), "epoch": result["training_iteration"]}
            with ProgressCallback.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
        ProgressCallback.best = max(ProgressCallback.best, float(result[METRIC]))
        if ProgressCallback.bar is not None:
            ProgressCallback.bar.advance(note=f"best return {ProgressCallback.best:.2f}")


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
    """Train `trials` agents; at each evaluation the worst of them copy the best.

    The first agent starts with the settings of `config`, the others with ones drawn from RANGES.
    With the scorer "serve" all share one reward service. Returns what <out>/tune.json holds. With
    `resume` an interrupted run goes on from the newest checkpoint of each agent. Runs on the
    connected Ray, or on a local one; on a cluster `out` must be on storage that all its machines
    share. Raises InputError for invalid settings.
    """
    if trials < 2:
        raise InputError(f"{trials} trials: a population needs 2 or more")
    if config.evaluate_every >= config.epochs:
        raise InputError(
            f"agents are compared every {config.evaluate_every} epochs, but trained for "
            f"{config.epochs}: give a shorter interval"
        )
    names = [game_name(game) for game in games]
    out = Path(out)
    told = {
        "games": names,
        "model": str(model_path),
        "scorer": scorer,
        "seed": seed,
        "trials": trials,
    }
    asked = json.loads(json.dumps({"tune": told | dataclasses.asdict(config)}))
    if resume and (out / "config.json").exists():
        if json.loads((out / "config.json").read_text()) != asked:
            raise InputError(f"{out} was started with other settings: resume it as it was started")
        if (out / "tune.json").exists():
            return dict(json.loads((out / "tune.json").read_text()))
    source = RewardConfig(scorer=scorer)
    # A model that cannot be used is named here, before anything is started.
    source.check(model_path)
    opened = source.open(
        model_path, out / "reward", steps=config.maskgit_steps, replicas=config.replicas, seed=seed
    )
    with RunDir(out, asked, resume=resume) as run, opened as factory:
        logging.getLogger("ray.rllib").setLevel(logging.ERROR)
        space = configure(config, names, factory, seed=seed).to_dict()
        results = _fit(out, config, trials, space, resume=resume, seed=seed)
        found = summary(out)
        _log(run, found)
    best = next(result for result in results if Path(result.path).name == found["best"])
    network = load_network(complete_checkpoints(Path(best.checkpoint.path))[-1])
    save_policy(out / "best", network, {"games": names, "evaluation_return": best.metrics[METRIC]})
    write_json_atomic(out / "tune.json", found)
    return found


def _fit(
    out: Path, config: ExploreConfig, trials: int, space: dict[str, Any], *, resume: bool, seed: int
) -> list[Any]:
    """Train the population under a progress bar; return Tune's result of every agent.

    Raises KeyboardInterrupt where Ctrl+C ended it: Tune catches it, saves its state and returns.
    """
    tuner = _tuner(out, config, trials, space, resume=resume, seed=seed)
    total = trials * config.epochs
    done = min(sum(len(rows) for rows in read_rows(out).values()), total)
    with progress(f"tune {trials} agents", total, done=done) as bar:
        ProgressCallback.bar, ProgressCallback.rows = bar, out / ROWS
        try:
            results = tuner.fit()
        finally:
            ProgressCallback.bar = ProgressCallback.rows = None
    for error in results.errors:
        raise error
    finished = [rows for rows in read_rows(out).values() if max(rows) == config.epochs]
    if len(finished) < trials:
        raise KeyboardInterrupt
    return [results[index] for index in range(len(results))]


def _tuner(
    out: Path, config: ExploreConfig, trials: int, space: dict[str, Any], *, resume: bool, seed: int
) -> ray_tune.Tuner:
    """Build the Tuner of a new run, or restore that of an interrupted one."""
    # Its boxes of settings, which `verbose` does not silence.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    random.seed(seed)  # PBT draws from the global generators
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
        synch=True,  # agents are compared at the same age, also where they run in turn
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
            trial_dirname_creator=lambda trial: short_name(trial.trial_id),
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


def short_name(trial_id: str) -> str:
    """ab12c_00003 -> 00003: the same in every file of a run."""
    return trial_id.rsplit("_", 1)[-1]


def within_ranges(config: dict[str, Any]) -> dict[str, Any]:
    """Clip every tuned setting of a varied configuration to RANGES."""
    return config | {name: float(np.clip(config[name], *limits)) for name, limits in RANGES.items()}


def read_rows(out: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Read the metrics of every agent: trial -> epoch -> row. The last row of an epoch counts."""
    file = out / ROWS
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    trials: dict[str, dict[int, dict[str, Any]]] = {}
    for row in sorted(
        (json.loads(line) for line in lines if line.endswith("\n")), key=lambda row: row["trial"]
    ):
        trials.setdefault(row["trial"], {})[row["epoch"]] = row
    return trials


def summary(out: Path) -> dict[str, Any]:
    """Summarise a run: curves of every agent, and each change of settings with the agent that was
    copied."""
    histories: dict[str, dict[str, Any]] = {}
    changes: list[dict[str, Any]] = []
    for name, rows in read_rows(out).items():
        epochs = sorted(rows)
        histories[name] = {
            "epochs": epochs,
            METRIC: [rows[epoch][METRIC] for epoch in epochs],
            "reward": [rows[epoch]["explore/reward"] for epoch in epochs],
            "screens": [rows[epoch]["screens"] for epoch in epochs],
            "settings": {key: [rows[epoch]["settings"][key] for epoch in epochs] for key in RANGES},
        }
        for before, epoch in pairwise(epochs):
            old, new, source = (
                rows[before]["settings"],
                rows[epoch]["settings"],
                rows[epoch]["copied"],
            )
            moved = {key: [old[key], new[key]] for key in RANGES if old[key] != new[key]}
            if moved or source:
                changes.append(
                    {"trial": name, "from_epoch": epoch, "copied": source, "settings": moved}
                )
    best = max(histories, key=lambda name: histories[name][METRIC][-1]) if histories else None
    return {
        "trials": histories,
        "changes": sorted(changes, key=lambda change: change["from_epoch"]),
        "best": best,
    }


def _log(run: RunDir, found: dict[str, Any]) -> None:
    """Log the curves of all trials as the run's metrics."""
    epochs = sorted({epoch for history in found["trials"].values() for epoch in history["epochs"]})
    for place, epoch in enumerate(epochs):
        values: dict[str, float] = {}
        for name, history in found["trials"].items():
            if place < len(history["epochs"]):
                values |= {
                    f"{name}/{key}": history[key][place] for key in (METRIC, "reward", "screens")
                }
                values |= {
                    f"{name}/{key}": series[place] for key, series in history["settings"].items()
                }
        run.log(epoch, values)

"""Settings of an agent that may change while it learns: their limits, and their way to every
process.

A user changes them with `autoexplore tune set RUN name=value`: the request is a line of
<run>/changes.jsonl, which the run reads before each epoch. Tune changes them through
`AutoExplore.reset_config`. Both end in `apply`.
"""

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from envs.utils.errors import InputError

CHANGES = "changes.jsonl"
FIXED_IN_EVALUATION = ("top_fraction",)
"""Settings that do not change in evaluation: agents are compared by the paper's fraction."""


@dataclass(frozen=True)
class Limits:
    """Smallest and largest value of a setting."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


MUTABLE_SETTINGS: dict[str, Limits] = {
    "lr": Limits(1e-8, 1.0),
    "entropy_coeff": Limits(0.0, 10.0),
    "epsilon": Limits(0.0, 1.0),
    "temperature": Limits(0.0, 100.0),
    "top_fraction": Limits(1e-6, 1.0),
}
"""A change of `epsilon` replaces its schedule by a constant."""


def check(values: dict[str, Any]) -> dict[str, float]:
    """Convert the values to floats.

    Raises InputError for an immutable setting and for a value out of its limits.
    """
    checked = {}
    for name, value in values.items():
        if name not in MUTABLE_SETTINGS:
            raise InputError(
                f"{name!r} cannot be changed while a run learns: "
                f"choose among {', '.join(MUTABLE_SETTINGS)}"
            )
        limits = MUTABLE_SETTINGS[name]
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not limits.holds(number):
            raise InputError(
                f"{name}={value}: must be a number from {limits.low:g} to {limits.high:g}"
            )
        checked[name] = number
    return checked


def apply(algorithm: Any, values: dict[str, Any]) -> None:
    """Set new values in a running algorithm: its config, every learner, every runner, every
    evaluation runner.

    Nothing is rebuilt. Raises InputError as `check` does, before anything has changed.
    """
    changes = check(values)
    if "epsilon" in changes:
        changes["final_epsilon"] = changes["epsilon"]
    _write(algorithm.config, changes)
    for answer in algorithm.learner_group.foreach_learner(partial(_tell_learner, changes=changes)):
        if not answer.ok:
            raise answer.get()
    algorithm.env_runner_group.foreach_env_runner(partial(_tell_runner, changes=changes))
    if algorithm.eval_env_runner_group is not None:
        same = {name: value for name, value in changes.items() if name not in FIXED_IN_EVALUATION}
        algorithm.eval_env_runner_group.foreach_env_runner(partial(_tell_runner, changes=same))


def current(config: Any) -> dict[str, float]:
    """Return the values that a configuration has now."""
    return {name: float(getattr(config, name)) for name in MUTABLE_SETTINGS}


def in_effect(algorithm: Any) -> dict[str, float]:
    """Return the values that learners and runners really use."""
    values = current(algorithm.config)
    for answer in algorithm.learner_group.foreach_learner(_learner_says):
        values |= answer.get() if answer.ok else {}
    for said in algorithm.env_runner_group.foreach_env_runner(_runner_says):
        values |= said or {}
    return values


def _learner_says(learner: Any) -> dict[str, float]:
    (optimizer, *_) = learner._named_optimizers.values()
    rate = float(learner._get_optimizer_lr(optimizer))
    return {"lr": rate, "entropy_coeff": float(learner.config.loss.entropy_coeff)}


def _runner_says(runner: Any) -> dict[str, float]:
    if runner.module is None:  # idle, where there are remote runners
        return {}
    acting = {
        "epsilon": float(runner.module.epsilon),
        "temperature": float(runner.module.temperature),
    }
    return acting | {"top_fraction": float(runner.config.top_fraction)}


def _write(config: Any, changes: dict[str, float]) -> None:
    """Write into the same object, although it is frozen: everything that holds it must see the new
    values."""
    vars(config).update(changes)


def _tell_learner(learner: Any, changes: dict[str, float]) -> None:
    from ray.rllib.utils.schedules.scheduler import Scheduler

    _write(learner.config, changes)
    if "lr" in changes:
        for optimizer in learner._named_optimizers.values():
            # RLlib sets an optimizer's rate from its schedule after every update: the schedule is
            # what must change.
            rate = Scheduler(
                fixed_value_or_schedule=changes["lr"], framework="torch", device=learner._device
            )
            learner._optimizer_lr_schedules[optimizer] = rate
            learner._set_optimizer_lr(optimizer, changes["lr"])


def _tell_runner(runner: Any, changes: dict[str, float]) -> None:
    _write(runner.config, changes)


def request(run: Path, pairs: Sequence[str], *, epochs_done: int) -> dict[str, float]:
    """Ask the exploration run in a folder to change settings, each given as `name=value`, at its
    next epoch.

    `epochs_done`: of its newest checkpoint. The request is one line of <run>/changes.jsonl and
    stays there. Raises InputError where the folder holds no exploration run or a finished one, and
    as `check` does; then nothing is asked.
    """
    given = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    if not pairs or len(given) != len(pairs):
        raise InputError(
            f"{' '.join(pairs) or 'nothing to set'}: write each change once, as name=value"
        )
    values = check(given)
    epochs = _epochs(run)
    if epochs_done >= epochs:
        raise InputError(
            f"{run} is finished ({epochs} epochs): settings can change only while a run learns"
        )
    line = json.dumps({"time": round(time.time(), 3), "set": values}) + "\n"
    # One write to a file opened for appending: two requests at the same moment both get their line.
    handle = os.open(run / CHANGES, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, line.encode())
        os.fsync(handle)
    finally:
        os.close(handle)
    return values


def _epochs(run: Path) -> int:
    """Read the number of epochs of a run."""
    try:
        config = json.loads((run / "config.json").read_text())
        return int(config["epochs"])
    except (
        FileNotFoundError,
        NotADirectoryError,
        json.JSONDecodeError,
        KeyError,
        TypeError,
    ) as error:
        raise InputError(
            f"{run} holds no exploration run: give the --out of `autoexplore explore`"
        ) from error


def requests(run: Path, after: int) -> list[dict[str, Any]]:
    """Read the requests of a run after its first `after` ones; a last line without its end is left
    for later.

    Each is {"time": seconds, "set": values}. A line that was damaged by hand sets nothing, but
    counts.
    """
    file = run / CHANGES
    if not file.exists():
        return []
    lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [_request(line) for line in lines[after:]]


def _request(line: str) -> dict[str, Any]:
    try:
        asked = json.loads(line)
        return {"time": float(asked["time"]), "set": check(asked["set"])}
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        return {"time": 0.0, "set": {}, "refused": str(error)}

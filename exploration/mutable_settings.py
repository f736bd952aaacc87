"""Settings that may change while an agent learns, and their way to every process.

`autoexplore tune set RUN name=value` appends a request to <run>/changes.jsonl, which the run reads
before each epoch. Ray Tune changes settings through `AutoExplore.reset_config`.
"""

import json
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from envs.utils.errors import InputError

CHANGES = "changes.jsonl"
FIXED_IN_EVALUATION = ("top_fraction",)
"""Settings that never change in evaluation: agents are compared by the paper's fraction."""
MUTABLE_SETTINGS: dict[str, tuple[float, float]] = {
    "lr": (1e-8, 1.0),
    "entropy_coeff": (0.0, 10.0),
    "epsilon": (0.0, 1.0),
    "temperature": (0.0, 100.0),
    "top_fraction": (1e-6, 1.0),
}
"""Smallest and largest value of each setting. A new `epsilon` replaces its schedule by a constant.
"""


def check_changes(values: dict[str, Any]) -> dict[str, float]:
    """Convert the values to floats.

    Raises InputError for an immutable setting and for a value out of its limits.
    """
    numbers = {}
    for name, value in values.items():
        if name not in MUTABLE_SETTINGS:
            raise InputError(
                f"{name!r} cannot be changed while a run learns: "
                f"choose among {', '.join(MUTABLE_SETTINGS)}"
            )
        low, high = MUTABLE_SETTINGS[name]
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError):
            numbers[name] = math.nan
        if not low <= numbers[name] <= high:
            raise InputError(f"{name}={value}: must be a number from {low:g} to {high:g}")
    return numbers


def apply_settings(algorithm: Any, values: dict[str, Any]) -> None:
    """Set new values in the config of a running algorithm and in all its learners and runners.

    Raises InputError like `check_changes`, before anything has changed.
    """
    changes = check_changes(values)
    if "epsilon" in changes:
        changes["final_epsilon"] = changes["epsilon"]
    _write(algorithm, changes)
    answers = algorithm.learner_group.foreach_learner(partial(_write_learner, changes=changes))
    for answer in answers:
        if not answer.ok:
            raise answer.get()
    algorithm.env_runner_group.foreach_env_runner(partial(_write, changes=changes))
    if algorithm.eval_env_runner_group is not None:
        mutable = {name: v for name, v in changes.items() if name not in FIXED_IN_EVALUATION}
        algorithm.eval_env_runner_group.foreach_env_runner(partial(_write, changes=mutable))


def current_settings(config: Any) -> dict[str, float]:
    """Return the values in a config."""
    return {name: float(getattr(config, name)) for name in MUTABLE_SETTINGS}


def settings_in_effect(algorithm: Any) -> dict[str, float]:
    """Return the values that learners use, and those of the newest rollout."""
    values = current_settings(algorithm.config)
    values["entropy_coeff"] = algorithm.updates.bonus.coefficient
    for answer in algorithm.learner_group.foreach_learner(_read_learner):
        values |= answer.get() if answer.ok else {}
    return values | algorithm.settings_played


def _read_learner(learner: Any) -> dict[str, float]:
    (optimizer, *_) = learner._named_optimizers.values()
    return {"lr": float(learner._get_optimizer_lr(optimizer))}


def _write(owner: Any, changes: dict[str, float]) -> None:
    """Write into a config in place, although it is frozen, so that every holder sees the values."""
    vars(owner.config).update(changes)


def _write_learner(learner: Any, changes: dict[str, float]) -> None:
    from ray.rllib.utils.schedules.scheduler import Scheduler

    _write(learner, changes)
    if "lr" not in changes:
        return
    for optimizer in learner._named_optimizers.values():
        # RLlib sets the learning rate from its schedule after every update.
        learner._optimizer_lr_schedules[optimizer] = Scheduler(
            fixed_value_or_schedule=changes["lr"], framework="torch", device=learner._device
        )
        learner._set_optimizer_lr(optimizer, changes["lr"])


def request_change(run: Path, pairs: Sequence[str], *, epochs_done: int) -> dict[str, float]:
    """Request new settings, each written `name=value`, from the next epoch of a run on.

    `epochs_done`: the epoch of the run's newest checkpoint. Raises InputError, without a request,
    for a folder without a run, for a finished run, and for invalid settings.
    """
    given = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    if not pairs or len(given) != len(pairs):
        raise InputError(
            f"{' '.join(pairs) or 'nothing to set'}: write each change once, as name=value"
        )
    values = check_changes(given)
    try:
        epochs = int(json.loads((run / "config.json").read_text())["epochs"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{run} holds no exploration run: give the --out of `autoexplore explore`"
        ) from error
    if epochs_done >= epochs:
        raise InputError(
            f"{run} is finished ({epochs} epochs): settings can change only while a run learns"
        )
    # One write in append mode, so that two requests at the same time both get their line.
    with (run / CHANGES).open("a") as file:
        file.write(json.dumps({"time": round(time.time(), 3), "set": values}) + "\n")
    return values


def read_requests(run: Path, after: int) -> list[dict[str, Any]]:
    """Read the requests of a run after its first `after` ones: {"time": seconds, "set": values}.

    A last line that is not complete yet is left for later. A damaged line counts, but sets nothing.
    """
    file = run / CHANGES
    if not file.exists():
        return []
    lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [_parse_request(line) for line in lines[after:]]


def _parse_request(line: str) -> dict[str, Any]:
    try:
        request = json.loads(line)
        return {"time": float(request["time"]), "set": check_changes(request["set"])}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return {"time": 0.0, "set": {}, "refused": str(error)}

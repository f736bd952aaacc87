"""Policies of your own, by their import path, e.g. `my_package.module:Policy`.

The current folder and PYTHONPATH are searched, in this process and in each one that plays. On a
cluster, the machines need the module as well: through `working_dir` or `py_modules` of the job's
`runtime_env`, in a shared folder, or in their image.
"""

import importlib
import inspect
import operator
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.collect.policies import UNTRAINED, GamePolicy, PolicySpec, builtin_policy
from envs.controls import ACTIONS
from envs.games.base import GameEnv
from envs.utils.errors import InputError

IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
OTHER_POLICIES = {
    *("random", "sticky", "dirichlet", "zipf", "hold"),
    *("checkpoint", "expert", "rllib", "archive"),
}
"""Kinds of policies, which are not looked up as modules."""


def named_policy(name: str, actions: Sequence[str] = ACTIONS) -> PolicySpec:
    """Return the policy of a name of `builtin_policy`, or of an import path.

    Raises: InputError for another name, and for what `imported_policy` and `builtin_policy` refuse.
    """
    own = IMPORT_PATH.fullmatch(name) and name.partition(":")[0] not in OTHER_POLICIES
    return imported_policy(name) if own else builtin_policy(name, actions)


def imported_policy(path: str) -> PolicySpec:
    """Return the policy of an import path, `module:name` of a class or function.

    It is called without arguments, or with `actions=`, the number of actions, if it has a parameter
    of that name, and returns a `Policy`: `reset(seed)`, then `act(frame)` for every frame, uint8
    (64, 64, 3), which returns an action from 0 to actions - 1. An episode is reproducible if
    its actions depend on nothing but the seed and the frames. Its identity is the import path:
    a class that has changed under the same path counts as the same policy, so record what it plays
    in a new folder.

    Raises: InputError if it cannot be imported or has no `act` or `reset`.
    """
    folder = str(Path.cwd())
    _import_factory(path, folder)
    return PolicySpec(path, partial(ImportedPolicy, path, folder))


class ImportedPolicy(GamePolicy):
    """Policy of an import path. Its errors become an InputError of one line."""

    def __init__(self, path: str, folder: str) -> None:
        """Import the class or function. `folder` is searched first."""
        self._path, self._factory = path, _import_factory(path, folder)
        self._policy: Any = None
        self._game, self._actions = "", 0

    def begin_game(self, game: GameEnv) -> None:
        """Make the policy, anew for a game with another number of actions."""
        actions = len(game.action_names)
        self._game = game.game
        if self._policy is None or self._actions != actions:
            options = {"actions": actions} if "actions" in _parameters(self._factory) else {}
            policy = self._call("its construction", self._factory, **options)
            _check_methods(self._path, policy)
            self._policy, self._actions = policy, actions

    def reset(self, seed: int) -> None:
        """Begin an episode."""
        self._call("reset", self._policy.reset, seed)

    def act(self, frame_HWC: NDArray[np.uint8]) -> int:
        """Return the action for the newest frame, checked."""
        # A copy, because a policy that writes into its frame would change the recorded one.
        answer = self._call("act", self._policy.act, frame_HWC.copy())
        try:
            action = operator.index(answer)
        except TypeError:
            action = -1
        if not 0 <= action < self._actions:
            raise InputError(
                f"policy {self._title()}: act returned {_shown(answer)} in {self._game}: return a "
                f"whole number from 0 to {self._actions - 1}"
            )
        return action

    def _title(self) -> str:
        name = getattr(self._policy, "name", None)
        return f"{name} ({self._path})" if isinstance(name, str) else self._path

    def _call(self, what: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except Exception as error:
            module = sys.modules[self._path.partition(":")[0]]
            raise InputError(
                f"policy {self._title()}: {what} failed in {self._game}: "
                f"{_describe(error, module.__file__)}"
            ) from error


def add_import_folder(folder: str) -> None:
    """Search a folder first when modules are imported, as `python -m` does the current one."""
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _import_factory(path: str, folder: str) -> Callable[..., Any]:
    """Return the class or function of an import path. Raises: InputError if it cannot be used."""
    name, _, attribute = path.partition(":")
    add_import_folder(folder)
    try:
        module = importlib.import_module(name)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{name}.".startswith(f"{missing}."):
            raise InputError(
                f"policy {path!r}: there is no module {missing} in {folder} or on PYTHONPATH "
                f"(policies that need none: {UNTRAINED})"
            ) from error
        raise InputError(
            f"policy {path!r}: module {name} cannot be imported: {_describe(error)}"
        ) from error
    factory = getattr(module, attribute, None)
    if factory is None:
        raise InputError(f"policy {path!r}: {module.__file__ or name} has no {attribute}")
    if not callable(factory):
        raise InputError(f"policy {path!r}: {attribute} is neither a class nor a function")
    if isinstance(factory, type):
        _check_methods(path, factory)
    parameters = _parameters(factory)
    needed = [
        parameter.name
        for parameter in parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and (parameter.name != "actions" or parameter.kind == parameter.POSITIONAL_ONLY)
    ]
    if needed:
        raise InputError(
            f"policy {path!r}: {attribute} needs {', '.join(needed)}: only a parameter `actions` "
            "is filled in, give the others a default"
        )
    return factory


def _parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class or function; none for those that are written in C."""
    try:
        return dict(inspect.signature(factory).parameters)
    except ValueError:
        return {}


def _check_methods(path: str, policy: Any) -> None:
    for method in ("act", "reset"):
        if not callable(getattr(policy, method, None)):
            kind = policy if isinstance(policy, type) else type(policy)
            raise InputError(
                f"policy {path!r}: {kind.__name__} has no method {method}: a policy has "
                "reset(seed) and act(frame)"
            )


def _describe(error: Exception, file: str | None = None) -> str:
    """Return the type, text and place of an error in one line; in `file`, if it passed there."""
    passed = list(traceback.extract_tb(error.__traceback__))
    frames = [frame for frame in passed if not frame.filename.startswith("<frozen")]
    place = next((frame for frame in reversed(frames) if frame.filename == file), frames[-1])
    text, where = " ".join(str(error).split()), f"{place.filename}, line {place.lineno}"
    if isinstance(error, SyntaxError):
        text, where = error.msg, f"{error.filename}, line {error.lineno}"
    return f"{type(error).__name__}{f': {text}' if text else ''} ({where})"


def _shown(answer: Any) -> str:
    """Return a value as text, its type if that is long."""
    text = " ".join(repr(answer).split())
    return text if len(text) <= 60 else f"a {type(answer).__name__}"

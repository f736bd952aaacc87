"""Defaults of the command line: a preset, and over it the settings of a file that --config names.

The flags of a command are the fields of its `Args`, which hold the configuration dataclass of the
library itself. The preset becomes the default instance, so that --help shows its values and no
setting is declared twice.
"""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
import yaml

from envs.utils.errors import InputError

T = TypeVar("T")
Flat = Annotated[T, tyro.conf.arg(name="")]
"""A configuration inside `Args` whose settings become flags without a prefix."""


def flag_value(argv: Sequence[str], flag: str, default: str) -> str:
    """Return the value of a flag that decides the defaults of the others, e.g. --preset."""
    value = default
    for index, word in enumerate(argv):
        if word == flag and index + 1 < len(argv):
            value = argv[index + 1]
        elif word.startswith(f"{flag}="):
            value = word.removeprefix(f"{flag}=")
    return value


def default_args(
    args_class: type[T],
    argv: Sequence[str],
    *,
    translate: Callable[[dict[str, Any]], Mapping[str, Any]] = dict,
    **known: Any,
) -> T:
    """Return the default instance of a command's arguments: `known`, and the --config file over it.

    translate: turns what a run wrote into its config.json into fields of `args_class`.
    """
    required = {
        field.name: tyro.MISSING
        for field in dataclasses.fields(typing.cast(Any, args_class))
        if field.default is field.default_factory is dataclasses.MISSING
    }
    defaults = args_class(**{**required, **known})
    file = flag_value(argv, "--config", "")
    return override(defaults, translate(read_config(Path(file))), file) if file else defaults


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings of a YAML or JSON file. Raises InputError where it holds none."""
    try:
        text = path.read_text()
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"--config {path}: cannot be read ({error})") from None
    if not isinstance(values, dict):
        raise InputError(f"--config {path}: expected settings, name: value")
    return {str(name): value for name, value in values.items()}


def override(config: T, values: Mapping[str, Any], source: str, prefix: str = "") -> T:
    """Return `config` with the settings of a file; nested configurations take nested mappings.

    Raises InputError for an unknown name, with the nearest known one, and for a wrong type.
    """
    owner: Any = config
    flat = _flat_fields(owner)
    # A setting of a flattened configuration may stand at the top, as its flag does.
    owners = {
        field.name: name for name in flat for field in dataclasses.fields(getattr(owner, name))
    }
    own = {field.name for field in dataclasses.fields(owner)}
    hints = typing.get_type_hints(type(owner))
    changes: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name in own and dataclasses.is_dataclass(getattr(owner, name)):
            if not isinstance(value, Mapping):
                raise InputError(
                    f"--config {source}: {prefix}{name} = {value!r}: expected settings"
                )
            inner.setdefault(name, {}).update(value)
        elif name in own:
            changes[name] = _convert(hints[name], value, f"--config {source}: {prefix}{name}")
        elif name in owners:
            inner.setdefault(owners[name], {})[name] = value
        else:
            near = difflib.get_close_matches(name, sorted(own | owners.keys()), n=1, cutoff=0.0)[0]
            raise InputError(
                f"--config {source}: unknown setting {prefix}{name}: did you mean {prefix}{near}?"
            )
    for name, settings in inner.items():
        below = prefix if name in flat else f"{prefix}{name}."
        changes[name] = override(getattr(owner, name), settings, source, below)
    replaced: T = dataclasses.replace(owner, **changes)
    return replaced


def _flat_fields(config: Any) -> list[str]:
    """Return the fields that hold a `Flat` configuration."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    marked = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return [name for name, marks in marked.items() if marks == Flat.__metadata__]


def _convert(hint: Any, value: Any, what: str) -> Any:
    """Return a value of a file as the type of its field. Raises InputError where it has another."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return _convert(next(kind for kind in options if kind is not type(None)), value, what)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [options[0]] * len(value) if options[-1] is Ellipsis else options
        if len(kinds) == len(value):
            return tuple(
                _convert(kind, item, what) for kind, item in zip(kinds, value, strict=True)
            )
    if origin is typing.Literal and value in options:
        return value
    if (origin is dict and isinstance(value, dict)) or hint is Any:
        return value
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML takes 1e-4 for a text
        except ValueError:
            pass
    if hint in (int, str, bool) and type(value) is hint:
        return value
    expected = " or ".join(map(repr, options)) if origin is typing.Literal else str(hint)
    raise InputError(f"{what} = {value!r}: expected {getattr(hint, '__name__', expected)}")

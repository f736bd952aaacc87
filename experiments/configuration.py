"""Defaults of the command line: a preset, and the settings of a --config file that override it.

The flags of a command are the fields of its `Args`, which hold the configuration dataclasses of the
library. The preset is the default instance, so that --help shows its values and no setting is
declared twice.
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
"""Configuration inside `Args` whose settings become flags without a prefix."""


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
    """Return the default arguments of a command: `known`, overridden by the --config file.

    translate: converts the config.json of a run into fields of `args_class`.
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
    """Return the settings of a YAML or JSON file. Raises InputError if it holds none."""
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

    Raises InputError for a value of a wrong type and for an unknown name, with the nearest known
    one.
    """
    owner: Any = config
    hints = typing.get_type_hints(type(owner), include_extras=True)
    fields = {field.name for field in dataclasses.fields(owner)}
    flat = [name for name in fields if _is_flat(hints[name])]
    # A setting of a flat configuration may be given at the top level, as its flag is.
    flat_owners = {
        field.name: name for name in flat for field in dataclasses.fields(getattr(owner, name))
    }
    changes: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        where = f"--config {source}: {prefix}{name}"
        if name in fields and dataclasses.is_dataclass(getattr(owner, name)):
            if not isinstance(value, Mapping):
                raise InputError(f"{where} = {value!r}: expected settings")
            nested.setdefault(name, {}).update(value)
        elif name in fields:
            changes[name] = _convert(hints[name], value, where)
        elif name in flat_owners:
            nested.setdefault(flat_owners[name], {})[name] = value
        else:
            known = sorted(fields | flat_owners.keys())
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise InputError(
                f"--config {source}: unknown setting {prefix}{name}: did you mean {prefix}{near}?"
            )
    for name, settings in nested.items():
        below = prefix if name in flat else f"{prefix}{name}."
        changes[name] = override(getattr(owner, name), settings, source, below)
    replaced: T = dataclasses.replace(owner, **changes)
    return replaced


def _is_flat(hint: Any) -> bool:
    return getattr(hint, "__metadata__", ()) == Flat.__metadata__


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Return a value of a file as the type of its field. Raises InputError for another type."""
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return _convert(next(kind for kind in options if kind is not type(None)), value, where)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [options[0]] * len(value) if options[-1] is Ellipsis else options
        if len(kinds) == len(value):
            pairs = zip(kinds, value, strict=True)
            return tuple(_convert(kind, item, where) for kind, item in pairs)
    if origin is typing.Literal and value in options:
        return value
    if (origin is dict and isinstance(value, dict)) or hint is Any:
        return value
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and (number := _number(value)) is not None:
        return number
    if hint in (int, str, bool) and type(value) is hint:
        return value
    expected = " or ".join(map(repr, options)) if origin is typing.Literal else str(hint)
    raise InputError(f"{where} = {value!r}: expected {getattr(hint, '__name__', expected)}")


def _number(value: Any) -> float | None:
    """Return a value of a file as a float, None if it is no number. YAML reads 1e-4 as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None

"""Settings of a stage: a frozen dataclass, filled from JSON or YAML and from ``--set name=value``.

The dataclasses are the one place where a setting has its default, its unit and its check; the
workflow's schema repeats the names so that a typo in a config is caught before anything runs.
"""

import argparse
import dataclasses
import json
import math
import re
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cryon2n.errors import InputError

T = TypeVar("T")
# YAML 1.1 takes 1e-05, which is how JSON writes small numbers, for text.
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def add_settings_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--settings`` and ``--set`` to a stage's command."""
    parser.add_argument(
        "--settings",
        default="{}",
        metavar="FILE_OR_JSON",
        help="settings of this stage: a YAML/JSON file, or the JSON itself",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change one setting; may be given several times",
    )


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--config-json``, by which the workflow gives a command its whole config."""
    parser.add_argument("--config-json", required=True, metavar="JSON", help="the workflow's config, as JSON")


def config_from_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the config given with ``--config-json``."""
    try:
        config = json.loads(args.config_json)
    except ValueError as error:
        raise InputError(f"--config-json: not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise InputError(f"--config-json: wanted a mapping, found {type(config).__name__}")
    return config


def settings_from_arguments(cls: type[T], args: argparse.Namespace) -> T:
    """Build the settings `cls` from the parsed ``--settings`` and ``--set``."""
    text, where = args.settings, "--settings"
    if not text.lstrip().startswith("{"):
        where = text
        try:
            text = Path(text).read_text()
        except OSError as error:
            raise InputError(f"{where}: cannot read the settings ({error.strerror}); give a YAML file") from None
    values = _parse_mapping(text, where)
    for pair in args.set:
        name, sep, value = pair.partition("=")
        if not sep:
            raise InputError(f"--set {pair}: wanted NAME=VALUE")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"--set {pair}: the value is not valid YAML or JSON") from None
    return build(cls, values, where)


def build(cls: type[T], values: dict[str, Any], where: str = "settings") -> T:
    """Build the dataclass `cls` from a mapping; unknown names and wrong types raise `InputError`."""
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise InputError(
            f"{where}: unknown setting {', '.join(map(repr, unknown))} of {cls.__name__}; "
            f"known are {', '.join(sorted(fields))}"
        )
    hints = typing.get_type_hints(cls)
    return cls(**{name: _convert(value, hints[name], f"{where}: {name}") for name, value in values.items()})


def _parse_mapping(text: str, where: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not valid YAML or JSON ({error})") from None
    if not isinstance(values, dict):
        raise InputError(f"{where}: wanted a mapping of settings, found {type(values).__name__}")
    return values


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Check `value` against the type `hint`; ints pass as floats, lists as tuples."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        origin = typing.get_origin(option) or option
        if option is type(None) and value is None:
            return None
        if origin is float and isinstance(value, str) and _EXPONENT.fullmatch(value):
            return float(value)
        if origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            if math.isfinite(value):
                return float(value)
        if origin is tuple and isinstance(value, (list, tuple)):
            inner = typing.get_args(option)[0]
            return tuple(_convert(v, inner, where) for v in value)
        if origin is dict and isinstance(value, dict):
            return value
        if origin in (int, str, bool) and type(value) is origin:
            return value
    wanted = " or ".join(getattr(o, "__name__", str(o)) for o in options)
    raise InputError(f"{where}: found {value!r}, wanted {wanted}")

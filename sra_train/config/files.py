"""The only way into a configuration: a YAML file, flags over it, and mistakes said in one line.

`load_config(file, overrides)`: the command line hands over dotted names (``training.epochs=3``), the Python API may
build `TrainConfig` directly. An unknown key is refused with the nearest known one.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from sra_data.errors import ConfigError
from sra_train.config.sections import TrainConfig, options_type


def load_config(file: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """Read a YAML file, put `overrides` (dotted names) over it and check the whole.

    Args:
        file: YAML, or none for the defaults.
        overrides: Dotted name -> value; strings are read as YAML values (``"1e-4"``, ``"[1, 2]"``, ``"none"``).

    Raises:
        ConfigError: If the file cannot be read, a key is unknown or a value does not fit.
    """
    values = read_yaml(Path(file)) if file is not None else {}
    where = str(file) if file is not None else "config"
    for name, value in (overrides or {}).items():
        put(values, name, parse_value(value) if isinstance(value, str) else value)
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {first_complaint(error, values)}") from None


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: If it is missing, not YAML or not a mapping.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot read the configuration ({error.strerror}); check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not YAML: {' '.join(str(error).split())}; mend the file") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{file}: a configuration is a mapping, this is a {type(values).__name__}; see --print-config"
        )
    return values


def parse_value(text: str) -> Any:
    """A flag's text as YAML would read it; ``1e-4`` is a number too, ``none`` is null."""
    if text.lower() == "none":
        return None
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return text if value is None and text.strip() not in ("", "~", "null") else value


def put(values: dict[str, Any], name: str, value: Any) -> None:
    """Set the dotted `name` in nested dictionaries; a bare ``method: sra`` opens up to ``{name: sra}``."""
    *parents, last = name.split(".")
    for parent in parents:
        inner = values.get(parent)
        if isinstance(inner, str) and parent == "method":
            inner = {"name": inner}
        if not isinstance(inner, dict):
            inner = {}
        values[parent] = inner = dict(inner)
        values = inner
    if value is True and isinstance(values.get(last), dict):
        return  # a bare switch (`--lora`) turns on what the file has already spelled out
    values[last] = value


def first_complaint(error: ValidationError, values: Mapping[str, Any]) -> str:
    """The first thing wrong in words: dotted name, value, why, and the nearest known key where one is unknown."""
    complaints = error.errors(include_url=False, include_context=False)
    first = complaints[0]
    loc = [str(part) for part in first["loc"] if part != "options"]
    name = ".".join(loc)
    more = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = known_keys(loc[:-1], values)
        near = difflib.get_close_matches(loc[-1], known, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"{name}: unknown key; {remedy}{more}"
    reason = first["msg"].removeprefix("Value error, ")
    reason = reason[0].lower() + reason[1:]
    return f"{name}={first['input']!r}: {reason}; see `sra-train run --print-config`{more}"


def known_keys(path: list[str], values: Mapping[str, Any]) -> list[str]:
    """The keys the section at `path` may have."""
    if not path:
        return list(TrainConfig.model_fields)
    if path[0] == "method":
        method = values.get("method", "sra")
        name = method if isinstance(method, str) else method.get("name", "sra")
        return ["name", *options_type(name).model_fields]
    section: type[BaseModel] = TrainConfig
    for part in path:
        if part.isdigit():  # the place in a list, whose entries' section was found already
            continue
        if part not in section.model_fields:
            return []
        annotation = section.model_fields[part].annotation
        for kind in (annotation, *get_args(annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                section = kind
    return list(section.model_fields)

"""The only way into a configuration: a YAML file, flags over it, and mistakes said in one line.

`load_config(file, overrides)`: the command line hands over dotted names (``training.epochs=3``), the Python API may
build `TrainConfig` directly. An unknown key is refused with the nearest known one. A preset lies under both.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from sra_data.errors import ConfigError
from sra_train.config.presets import Preset, preset_called
from sra_train.config.sections import GenerationConfig, TrainConfig, options_type


def load_config(
    file: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    beneath: Mapping[str, Any] | None = None,
    not_from_file: Collection[str] = (),
) -> TrainConfig:
    """Read a YAML file, put `overrides` (dotted names) over it and check the whole.

    Args:
        file: YAML, or none for the defaults.
        overrides: Dotted name -> value; strings are read as YAML values (``"1e-4"``, ``"[1, 2]"``, ``"none"``).
        preset: Name of settings that lie under the file.
        beneath: Dotted name -> value, under all of that: other defaults than a run's own.
        not_from_file: Sections and keys of the file's first level that are not read.

    Raises:
        ConfigError: If the file cannot be read, there is no such preset, a key is unknown or a value does not fit.
    """
    where = str(file) if file is not None else "config"
    values: dict[str, Any] = {}
    chosen = None if preset is None else preset_called(preset)
    for name, value in {**(beneath or {}), **(chosen.settings if chosen else {})}.items():
        put(values, name, value)
    written = read_yaml(Path(file)) if file is not None else {}
    # A section under which nothing is written, or all of it commented out, is that of the defaults.
    lay_over(
        values, {name: value for name, value in written.items() if name not in not_from_file and value is not None}
    )
    try:
        for name, value in (overrides or {}).items():
            put(values, name, parse_value(value) if isinstance(value, str) else value)
        if chosen is not None:
            refuse_another_method(chosen, values["method"])
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {first_complaint(error, values)}") from None
    except ConfigError as error:
        raise error if file is None else ConfigError(f"{where}: {error}") from None


def lay_over(values: dict[str, Any], upper: Mapping[str, Any]) -> None:
    """Put nested `upper` over `values`: section by section, and whole where one of the two is no section."""
    for name, value in upper.items():
        lower = values.get(name)
        if name == "method" and isinstance(value, str) and isinstance(lower, dict):
            value = {"name": value}
        if isinstance(lower, dict) and isinstance(value, Mapping):
            lay_over(lower, value)
        else:
            values[name] = value


def refuse_another_method(preset: Preset, method: Any) -> None:
    """The options of a preset are its method's and no other's.

    Raises:
        ConfigError: If file or flags name another.
    """
    name = method.get("name") if isinstance(method, Mapping) else method
    if name != preset.method:
        raise ConfigError(
            f"--preset {preset.name}: is of the method {preset.method}, but method={name} is asked for; leave one of"
            " them out"
        )


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: If it is missing, not YAML or not a mapping.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot read the configuration ({error.strerror}); check the path") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # bytes that are no text, a date that is none
        raise ConfigError(f"{file}: not YAML: {' '.join(str(error).split())}; mend the file") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{file}: a configuration is a mapping, this is a {type(values).__name__}; see --print-config"
        )
    return values


def pairs(settings: Iterable[str] | None) -> dict[str, Any]:
    """``key=value`` flags as a mapping; the values are read as YAML later.

    Raises:
        ConfigError: If one has no ``=``.
    """
    found = {}
    for setting in settings or []:
        name, sign, value = setting.partition("=")
        if not sign:
            raise ConfigError(f"--set {setting}: no '=' in it; write --set key=value, say --set method.temperature=1")
        if not name.strip():
            raise ConfigError(f"--set {setting}: no key before its '='; write --set key=value")
        found[name.strip()] = value
    return found


def parse_value(text: str) -> Any:
    """A flag's text as YAML would read it; ``1e-4`` is a number too, ``none`` is null."""
    if text.lower() == "none":
        return None
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    return text if value is None and text.strip() not in ("", "~", "null") else value


def put(values: dict[str, Any], name: str, value: Any) -> None:
    """Set the dotted `name` in nested dictionaries; a bare ``method: sra`` opens up to ``{name: sra}``.

    Raises:
        ConfigError: If what stands on the way is no section.
    """
    *parents, last = name.split(".")
    for parent in parents:
        inner = values.get(parent)
        if isinstance(inner, str) and parent == "method":
            inner = {"name": inner}
        if not isinstance(inner, dict | bool | None):
            raise ConfigError(f"{name}: {parent}={inner!r} holds no keys; see `sra-train run --print-config`")
        values[parent] = inner = dict(inner) if isinstance(inner, dict) else {}
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
    return f"{name}={first['input']!r}: {_reason(first)}; see `sra-train run --print-config`{more}"


def _reason(complaint: Mapping[str, Any]) -> str:
    """Why a value does not fit, as the rest of a sentence."""
    reason: str = complaint["msg"].removeprefix("Value error, ")
    return reason[0].lower() + reason[1:]


def generation_of(**flags: Any) -> GenerationConfig:
    """How answers are drawn, from options of a command line.

    Raises:
        ConfigError: If a value does not fit; named as on the command line.
    """
    try:
        return GenerationConfig(**flags)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        flag = f"--{str(first['loc'][0]).replace('_', '-')}"
        raise ConfigError(f"{flag} {first['input']}: {_reason(first)}; write another number") from None


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

"""What decides a teacher's numbers, in one sha256: configuration, weights, adapter, and code that came with the model.

A Hub model is named by its commit, a local folder by the content of its weights. An adapter is named by its content
wherever it lies: its configuration (`lora_alpha` scales what it adds) and its weights. Where remote code is run, its
files count too: those of a local folder, and those that its configuration takes from other repositories.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from sra_data.corpus.loading import split_revision
from sra_data.errors import ModelError
from sra_data.model_files import is_folder

VOLATILE_CONFIG = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "_commit_hash", "use_cache")
# Where an adapter was made, not what it does.
VOLATILE_ADAPTER = ("base_model_name_or_path", "revision", "peft_version", "inference_mode", "auto_mapping")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
RUN_CLASSES = ("AutoConfig", "AutoModelForCausalLM")
READ_BYTES = 1 << 24


def fingerprint(name: str, config: Any, commit: str | None, adapter: Path | None, *, runs_code: bool) -> str:
    """sha256 hex of a teacher.

    Args:
        name: its folder or Hub id.
        config: its configuration.
        commit: of the Hub; None for a folder.
        adapter: the adapter's folder, where there is one.
        runs_code: whether code that comes with the model is run.
    """
    settings = {key: value for key, value in config.to_dict().items() if key not in VOLATILE_CONFIG}
    if isinstance(settings.get("auto_map"), dict):
        # transformers writes into it where the code was found, which changes nothing.
        settings["auto_map"] = {key: _class_of(value) for key, value in settings["auto_map"].items()}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    is_local = is_folder(name)
    digest.update(json.dumps(weight_files(Path(name)) if is_local else [name, commit]).encode())
    if adapter is not None:
        digest.update(json.dumps([adapter_settings(adapter), weight_files(adapter)], sort_keys=True).encode())
    if runs_code:
        files = [*(code_files(Path(name)) if is_local else ()), *_borrowed_code(name, config)]
        if files:
            digest.update(json.dumps(files).encode())
    return digest.hexdigest()


def weight_files(folder: Path) -> list[tuple[str, int, str]]:
    """(name, bytes, xxh3_128 of the content) of a folder's weight files, by name."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES and path.is_file())  # no pipe
    return [(path.name, path.stat().st_size, _content(path)) for path in paths]


def code_files(folder: Path) -> list[tuple[str, str]]:
    """(path within it, xxh3_128 of the content) of a folder's Python files, by path."""
    paths = sorted(path for path in folder.rglob("*.py") if path.is_file())
    return [(path.relative_to(folder).as_posix(), _content(path)) for path in paths]


def adapter_settings(folder: Path) -> dict[str, Any]:
    """What an adapter's configuration says of what it does; empty where there is none, which peft refuses."""
    path = folder / ADAPTER_CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ModelError(
            f"--adapter {folder}: its {ADAPTER_CONFIG} is no JSON ({error}); save the adapter again"
        ) from None
    found = {key: value for key, value in found.items() if key not in VOLATILE_ADAPTER}
    # peft keeps names of layers as sets, and writes them in any order.
    return {key: sorted(value, key=str) if isinstance(value, list) else value for key, value in found.items()}


def adapter_folder(adapter: str) -> tuple[Path, str]:
    """Where an adapter lies, fetched where it is on the Hub, and its name with the commit that was found.

    Raises:
        ModelError: If it is not to be had.
    """
    if is_folder(adapter):
        return Path(adapter), adapter
    from transformers.utils import cached_file

    name, revision = split_revision(adapter)
    try:
        path = cached_file(name, ADAPTER_CONFIG, revision=revision)
        quiet = {"_raise_exceptions_for_missing_entries": False}
        if not any(cached_file(name, weights, revision=revision, **quiet) for weights in ADAPTER_WEIGHTS):
            raise OSError(f"it has none of {', '.join(ADAPTER_WEIGHTS)}")
    except (OSError, ValueError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"--adapter {adapter}: cannot be had ({reason.rstrip('.')}); give the folder or Hub id of an adapter"
        ) from error
    folder = Path(str(path)).parent
    # In the Hub's cache the folder of a snapshot is named after its commit.
    return folder, f"{name}@{folder.name}" if folder.parent.name == "snapshots" else adapter


def _borrowed_code(name: str, config: Any) -> Iterator[tuple[str, str]]:
    """(repository and file, content) of the code that a configuration takes from other repositories."""
    from transformers.utils import cached_file

    classes = getattr(config, "auto_map", None) or {}
    for value in sorted({str(classes[kind]) for kind in RUN_CLASSES if kind in classes}):
        place, found, inside = value.partition("--")
        if found and place != name and not is_folder(place):
            file = f"{inside.partition('.')[0]}.py"
            revision = getattr(config, "code_revision", None)
            try:
                yield f"{place}/{file}", _content(Path(str(cached_file(place, file, revision=revision))))
            except OSError:
                yield f"{place}/{file}", ""  # loading says what is wrong, where it needs it


def _class_of(value: Any) -> Any:
    """ "place--module.Class" of a local place as "module.Class"; another repository is part of what is run."""
    if not isinstance(value, str):
        return value
    place, found, inside = value.partition("--")
    return inside if found and is_folder(place) else value


def _content(path: Path) -> str:
    """xxh3_128 of a file, read a block at a time."""
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            hasher.update(block)
    return hasher.hexdigest()

"""The small files of a model's folder, read before a library believes them.

A model folder may come from a stranger. transformers takes its config.json as it is: a count of layers makes lists of
that length, a name of weights may lead out of the folder, an attention implementation may be code of somebody else.
Here the file is read within bounds and such values are refused, in one line. Whether the model that it describes is
the one beside it is the matter of `models/declared.py`.

Files of a Hub id are those of its cache, fetched where they are missing; without a network there are none, and whoever
opens the model says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sra_data.errors import ModelError, one_line

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
LARGEST_JSON = 64 << 20  # bytes; the largest index of weights is some ten
LARGEST_CONFIG = 4 << 20
# A configuration class makes a list with an entry for each of these; vocabularies and positions are numbers alone.
COUNTED = re.compile(r"(^|_)(layers?|labels|experts|blocks|heads?|groups|codebooks|depths?)$")
MOST_COUNTED = 100_000
# Names in these are code of the Hub where they hold a slash ("somebody/their-kernel").
IMPLEMENTATION = re.compile(r"^_?(attn|experts)_implementation(_\w+)?$")
WEIGHTS_NAME = "transformers_weights"  # which file holds the weights, where it is not model.safetensors
USE_ANOTHER = "use a config.json as `save_pretrained` writes it"
LONGEST_SHOWN = 40


def is_folder(name: str) -> bool:
    """Whether a model's name is that of a folder here: a name that no file system takes, or none at all, is not."""
    try:
        return name != "" and Path(name).is_dir()
    except OSError:  # a name too long, a folder that may not be looked into
        return False


def find_file(name: str, file: str, revision: str | None = None) -> Path | None:
    """A file of a model's folder or Hub id; None where there is none, or the Hub is not to be reached."""
    if is_folder(name):
        path = Path(name) / file
        return path if path.is_file() else None
    from transformers.utils import cached_file

    quiet = {f"_raise_exceptions_for_{what}": False for what in ("gated_repo", "missing_entries", "connection_errors")}
    try:
        found = cached_file(name, file, revision=revision, **quiet)
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found)


def commit_of(name: str, revision: str | None) -> str | None:
    """The commit of a model of the Hub that a revision means now; None for a folder."""
    found = None if is_folder(name) else find_file(name, CONFIG, revision)
    # In the Hub's cache the folder of a snapshot is named after its commit.
    return found.parent.name if found is not None and found.parent.parent.name == "snapshots" else None


def read_object(path: Path, *, who: str, largest: int = LARGEST_JSON) -> dict[str, Any]:
    """The object in a JSON file of a model's folder.

    Raises:
        ModelError: If it is none, or longer than `largest` bytes.
    """
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
        if len(content) > largest:
            raise ValueError(f"longer than {largest} bytes")
        found = json.loads(content)
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__} in place of an object")
    except (OSError, ValueError, RecursionError) as error:
        reason = one_line(error, 120)
        raise ModelError(f"{who}: {path.name} cannot be read ({reason}); download or save it again") from None
    return found


def refuse_absurd_config(name: str, revision: str | None, *, who: str, trust_remote_code: bool) -> None:
    """Refuse a config.json that no library should be given.

    Args:
        name: the model's folder or Hub id; one without a config.json is let through.
        revision: of the Hub id.
        who: "teacher X", for the message.
        trust_remote_code: whether names of code on the Hub are let through.

    Raises:
        ModelError: Naming the key and its value; or if the model has no name at all.
    """
    if not name.strip():
        raise ModelError(f"{who.strip()} {name!r}: a model without a name; give a Hub id or a folder".lstrip())
    path = find_file(name, CONFIG, revision)
    if path is None:
        return
    for key, value in _entries(read_object(path, who=who, largest=LARGEST_CONFIG)):
        shown = _short(value)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and COUNTED.search(key) and not abs(value) <= MOST_COUNTED:
            raise ModelError(f"{who}: {CONFIG} says {key} {shown}, at most {MOST_COUNTED} are read; {USE_ANOTHER}")
        if IMPLEMENTATION.match(key) and "/" in str(value) and not trust_remote_code:
            raise ModelError(f"{who}: {CONFIG} says {key} {shown}, code of the Hub; run it with --trust-remote-code")
        if key == WEIGHTS_NAME and not is_weights_name(value):
            raise ModelError(f"{who}: {CONFIG} says {key} {shown}, no *.safetensors of its folder; {USE_ANOTHER}")


def is_weights_name(name: object, *, allow_pickle: bool = False) -> bool:
    """Whether a name of weights stays in its folder and is that of a file that holds nothing but numbers."""
    if not isinstance(name, str) or name in ("", ".", "..") or any(c in "/\\" or ord(c) < 32 for c in name):
        return False
    return name.endswith(".safetensors") or (allow_pickle and name.endswith(".bin"))


def _entries(found: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key of an object and of the objects in it, with its value."""
    waiting: list[Any] = [found]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one.items()
        inner = one.values() if isinstance(one, dict) else one
        waiting += [item for item in inner if isinstance(item, dict | list)]


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."

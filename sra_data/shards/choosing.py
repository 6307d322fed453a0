"""Which of several folders a word of the user's means: the only one, one by name or its start, or one by its model.

Every command that reads a folder with several sides, teachers or alignments asks here, so that all of them take the
same words and refuse with the same list.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sra_data.errors import ShardError
from sra_data.model_files import is_folder


def model_name(name: str) -> str:
    """How a model is named in a manifest: a local folder by its whole path, a Hub id as it is."""
    return str(Path(name).resolve()) if is_folder(name) else name


def names_of_model(name: str, revision: str | None) -> tuple[str, ...]:
    """What a model is known by: its name, and name@revision where a revision is known."""
    return (name, f"{name}@{revision}") if revision else (name,)


def folder_name(model: str, inputs: Any, *, otherwise: str) -> str:
    """``<model>-<8 hex>``: the last word of a model's name, and a hash of what the folder depends on.

    Args:
        model: Hub id or folder.
        inputs: JSON values; equal inputs give equal names.
        otherwise: the word where nothing of the model's name can be one.
    """
    stem = re.sub(r"[^A-Za-z0-9._]+", "-", Path(model).name).strip("-.") or otherwise
    return f"{stem}-{hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:8]}"


def choose(
    wanted: str | None, known: Mapping[str, Sequence[str]], *, where: Path, what: str, flag: str, command: str
) -> str:
    """The folder that is meant.

    Args:
        wanted: the whole name of a folder, the name of a model (with or without its revision), or the start of a
            folder's name, the first of these that fits any; None for the only one.
        known: folder -> names of the models it is known by; see `names_of_model`.
        where: the folder of shards.
        what: "teacher", "side" or "alignment", for the message.
        flag: the option that names one.
        command: what makes another.

    Raises:
        ShardError: If there is none, or several fit; lists what is there.
    """
    if wanted is None:
        fitting = list(known)
    else:
        asked, bare = model_name(wanted), wanted.partition("@")[0]
        by_rule = (
            [name for name in known if name == wanted],
            [name for name, models in known.items() if asked in models],
            [name for name, models in known.items() if bare in models],
            [name for name in known if name.startswith(wanted)],
        )
        fitting = next((found for found in by_rule if found), [])
    if len(fitting) == 1:
        return fitting[0]
    problem = f"no {what}" if not fitting else f"{len(fitting)} {what}s"
    named = "" if wanted is None else f" {wanted}"
    there = ", ".join(fitting or known) or "none"
    remedy = f"choose one with {flag}" if known else f"run `{command}`"
    if known and not fitting:
        remedy += f", or make it with `{command}`"
    raise ShardError(f"{where}: {problem}{named} (there {'is' if len(known) == 1 else 'are'} {there}); {remedy}")

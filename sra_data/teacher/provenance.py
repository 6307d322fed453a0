"""By what a teacher was made to speak: device, dtype, attention, library versions; kept with every unit of its pages.

Two units of one teacher must have been made alike where numbers depend on it by more than rounding of the last bit:
the kind of device, the dtype and the attention implementation. Versions of libraries and the device's name are
recorded, and a mixture of them is said, not refused: a security update in the middle of a week's run is no reason to
throw the week away.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sra_data.errors import ShardError
from sra_data.models.attention import PREFIX
from sra_data.models.decoder import text_config
from sra_data.teacher.loading import LoadedTeacher

Environment = Mapping[str, str]

MUST_AGREE = ("device", "dtype", "attention")
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


def environment_of(teacher: LoadedTeacher) -> dict[str, str]:
    """The environment a teacher in memory speaks in; libraries that are not installed are left out."""
    device = teacher.device
    attention = str(getattr(text_config(teacher.model), "_attn_implementation", None) or "its own")
    found = {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": str(teacher.dtype).removeprefix("torch."),
        "attention": attention.removeprefix(PREFIX),
    }
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def environments_in(notes: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The environments of units, each once, in order; units of before they were kept have none."""
    found: list[dict[str, str]] = []
    for note in notes:
        one = note.get("environment")
        if one and one not in found:
            found.append(dict(one))
    return found


def refuse_mixture(environments: Sequence[Environment], *, where: str) -> None:
    """Refuse units that were made by environments whose numbers differ.

    Raises:
        ShardError: Naming what differs, and both values.
    """
    for other in environments[1:]:
        first = environments[0]
        unlike = [name for name in MUST_AGREE if first.get(name) != other.get(name)]
        if unlike:
            differing = ", ".join(f"{name} {first.get(name)} and {other.get(name)}" for name in unlike)
            raise ShardError(
                f"{where}: units made with unlike {differing}; make the rest as the first were (--device, --dtype), or "
                "delete the folder and cache again"
            )


def describe(environments: Sequence[Environment]) -> list[str]:
    """Environments in words, one line; a mixture is said aloud."""
    if not environments:
        return []
    told = [_in_words(one) for one in environments]
    if len(told) == 1:
        return [f"made by {told[0]}"]
    return [f"units made by {len(told)} environments that differ in versions or device: {'; '.join(told)}"]


def _in_words(environment: Environment) -> str:
    versions = " ".join(f"{name} {environment[name]}" for name in LIBRARIES if name in environment)
    return f"{environment.get('device_name')}, {environment.get('dtype')}, {environment.get('attention')}, {versions}"

"""What the cards of models and of shards share: names fit for strangers, and the licence a thing comes with.

A card travels: where a folder lay on somebody's disk says nothing to its reader, and a Hub id is only named as one
where it surely is one. A licence is what the model's or the data set's own card says; where none can be read it is
unknown, and nothing is claimed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Of `Source.describe`: a Hub data set is only surely one where it names a split. (1: its id)
HUB_DATA = re.compile(r"([A-Za-z0-9][\w.-]*(?:/[\w.-]+)?)(?::[^\s:/]+){1,2} \(\d+ files?\)")
COUNTED = re.compile(r"(.*?)( \(\d+ files?\))?", re.DOTALL)
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
LICENCE_FIELDS = ("license", "license_name", "license_link")
MOST_BYTES = 1 << 20  # of a card that is read
MOST_CHARACTERS = 200  # of a licence's name or link


def short_name(model: str) -> str:
    """A Hub id as it is; of a folder its own name."""
    return Path(model).name if Path(model).is_dir() or Path(model).is_absolute() else model


def hub_model(model: str) -> str | None:
    """The Hub id, without a revision; None for a folder, or for what may be one."""
    name = model.partition("@")[0]
    return name if short_name(model) == model and HUB_ID.fullmatch(name) else None


def short_source(source: str) -> str:
    """A source in words (`Source.describe`), of a file or a folder its own name alone."""
    if hub_data(source) is not None:
        return source
    found = COUNTED.fullmatch(source)
    assert found is not None
    return Path(found[1]).name + (found[2] or "")


def hub_data(source: str) -> str | None:
    """The Hub data set that a source is, or None."""
    found = HUB_DATA.fullmatch(source)
    return None if found is None or found[1] == "builtin" else found[1]


def licence_of(
    name: str, revision: str | None = None, *, kind: Literal["model", "dataset"] = "model"
) -> dict[str, str]:
    """What a model's or data set's own card says of its licence: `license`, and for "other" its name and link.

    Args:
        name: Hub id or folder.
        revision: of the Hub id.
        kind: which of the two the Hub is asked for.

    Returns:
        Nothing where there is no card, the Hub cannot be reached, or what stands there is no licence.
    """
    try:
        place = Path(name) / "README.md" if Path(name).is_dir() else _downloaded(name, revision, kind)
        with open(place, encoding="utf-8", errors="replace") as file:
            return _licence_in(file.read(MOST_BYTES))
    except Exception:  # whatever the Hub's client or a stranger's YAML raises: no reason to lose a finished run
        return {}


def _downloaded(name: str, revision: str | None, kind: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, "README.md", revision=revision, repo_type=kind))


def _licence_in(card: str) -> dict[str, str]:
    """The licence in a card's metadata."""
    from huggingface_hub import ModelCard

    said: dict[str, Any] = ModelCard(card, ignore_metadata_errors=True).data.to_dict()
    found = {key: said[key] for key in LICENCE_FIELDS if isinstance(said.get(key), str)}
    if not LICENCE.fullmatch(found.get("license", "")):
        return {}
    return {key: value for key, value in found.items() if len(value) <= MOST_CHARACTERS and value.isprintable()}


def licence_in_words(licence: dict[str, str]) -> str:
    """It for a table."""
    name, link = licence.get("license_name"), licence.get("license_link")
    return " ".join([licence["license"], *([f"({name})"] if name else []), *([link] if link else [])])

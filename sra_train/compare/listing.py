"""What can be compared: every method and every preset, a line each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sra_train.config import PRESETS


@dataclass(frozen=True)
class Listing:
    """Methods and presets, a line each."""

    methods: dict[str, str]
    presets: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """With the settings of each preset."""
        presets = [
            {"name": name, "about": about, "settings": PRESETS[name].settings} for name, about in self.presets.items()
        ]
        return {"methods": [{"name": name, "about": about} for name, about in self.methods.items()], "presets": presets}

    def lines(self) -> list[str]:
        """In words."""
        width = max(map(len, [*self.methods, *self.presets]))
        return [
            "methods:",
            *(f"  {name:<{width}}  {about}" for name, about in self.methods.items()),
            "presets (a method with options; also `sra-train run --preset NAME`):",
            *(f"  {name:<{width}}  {about}" for name, about in self.presets.items()),
        ]


def list_methods() -> Listing:
    """Every registered method, by its options' first sentence, and every preset."""
    return Listing(registered_methods(), {name: preset.about for name, preset in PRESETS.items()})


def registered_methods() -> dict[str, str]:
    """Name -> first sentence of the options' docstring."""
    import sra_train.methods  # registers all of them
    from sra_train.methods.base import METHODS

    assert sra_train.methods is not None
    return {name: first_sentence(METHODS[name].options_type.__doc__) for name in sorted(METHODS)}


def first_sentence(text: str | None) -> str:
    """Of a docstring, in one line."""
    return " ".join((text or "").strip().partition("\n\n")[0].split()).partition(". ")[0].rstrip(".")

"""Named settings: a method with its options, under one word.

A preset lies under the file and the flags of a run: whatever these say wins. To add one, add it to `PRESETS`; the
command line, `sra-train compare` and `--list-methods` read it from there. `ABLATIONS` names the tables that are made
of several. Nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sra_data.errors import ConfigError


@dataclass(frozen=True)
class Preset:
    """One of them.

    Attributes:
        name: as it is asked for.
        method: the method's name.
        about: one line.
        options: of the method, by name; the others keep their defaults.
        others: further settings of a run, by dotted name.
    """

    name: str
    method: str
    about: str
    options: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """All of it as dotted names of a configuration."""
        return {"method.name": self.method, **{f"method.{key}": value for key, value in self.options.items()}} | dict(
            self.others
        )


def _sra(name: str, about: str, **options: Any) -> Preset:
    return Preset(name, "sra", about, options)


_ALL = (
    _sra("paper", "SRA as published: cross entropy, L_cos, L_geo and L_KD at centres of mass"),
    # The one place where it is said what is recommended: it was ahead of fine-tuning in every setting of
    # pipelines/compare/RESULTS.md, with its interval in all but one.
    Preset("tuned", "boundary", "next-token distributions wherever both sides have read the same text"),
    Preset(
        "strict-cos",
        "strict",
        "L_cos of SRA, and next-token distributions where the next token is the same text on both sides",
        {"lambda_cos": 1.0},
    ),
    _sra("sra-kd-only", "SRA with L_KD alone", cos=False, geo=False),
    _sra("sra-cos-only", "SRA with L_cos alone", kd=False, geo=False),
    _sra("sra-geo-only", "SRA with L_geo alone", kd=False, cos=False),
    _sra("sra-no-cos", "SRA without L_cos: L_KD and L_geo", cos=False),
    _sra("sra-no-geo", "SRA without L_geo: L_KD and L_cos", geo=False),
    _sra("sra-no-kd", "SRA without L_KD: L_cos and L_geo", kd=False),
    _sra("sra-mean-pooling", "SRA with the mean of a span's states, spans weighed by salience", pooling="mean"),
    _sra("sra-uniform-salience", "SRA with attention pooling, all spans weighing alike", salience_power=0.0),
    _sra(
        "sra-uniform-mean",
        "SRA with the mean of a span's states, all spans weighing alike",
        pooling="mean",
        salience_power=0.0,
    ),
)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}

# ablation -> title of a table -> its rows; fine-tuning stands beside all of them
ABLATIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "paper": {
        "terms": ("sra-kd-only", "sra-no-cos", "sra-no-geo", "sra-no-kd", "paper"),
        "weighting": ("sra-uniform-mean", "sra-mean-pooling", "sra-uniform-salience", "paper"),
    }
}
YARDSTICK = "sft"


def preset_called(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ConfigError: If there is none; lists them.
    """
    if name not in PRESETS:
        raise ConfigError(f"--preset {name}: no such preset; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def ablation_called(name: str) -> dict[str, tuple[str, ...]]:
    """The tables of the ablation of that name.

    Raises:
        ConfigError: If there is none; lists them.
    """
    if name not in ABLATIONS:
        raise ConfigError(f"--ablation {name}: no such ablation; choose one of {', '.join(ABLATIONS)}")
    return ABLATIONS[name]

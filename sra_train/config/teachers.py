"""Whom the student learns from: the teachers of a run and their weights, in the short form or spelled out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pydantic import Field
from pydantic import model_validator as validate_model

from sra_data.errors import ConfigError
from sra_train.config.section import Section


class TeacherChoice(Section):
    """A teacher of the run; written ``name`` or ``name:0.5`` (with its weight) too."""

    name: str = Field(min_length=1, description="its folder in the shards, the start of that, or its Hub id or folder")
    weight: float | None = Field(
        default=None,
        allow_inf_nan=True,  # refused in the words of `shared_weights`
        description="share of what is distilled; by default an equal part of what the others leave",
    )

    @validate_model(mode="before")
    @classmethod
    def from_text(cls, value: Any) -> Any:
        """Read the short form; a colon that no number follows is part of the name."""
        if not isinstance(value, str):
            return value
        name, colon, weight = value.rpartition(":")
        try:
            return {"name": name, "weight": float(weight)} if colon else {"name": value}
        except ValueError:
            return {"name": value}


def shared_weights(teachers: Sequence[TeacherChoice]) -> list[float]:
    """The weights of `teachers`: as given; the others share what is left alike.

    Raises:
        ConfigError: If one is not positive, or they do not sum to 1.
    """
    given = [teacher.weight for teacher in teachers if teacher.weight is not None]
    for teacher in teachers:
        if teacher.weight is not None and not 0 < teacher.weight < math.inf:
            raise ConfigError(f"data.teachers: {teacher.name} has the weight {teacher.weight:g}; it must be above 0")
    without = len(teachers) - len(given)
    total = sum(given)
    listed = ", ".join(f"{weight:g}" for weight in given)
    if not without and teachers and abs(total - 1) > 1e-6:
        raise ConfigError(f"data.teachers: the weights {listed} sum to {total:g}; they must sum to 1")
    if without and total > 1 - 1e-6:
        raise ConfigError(
            f"data.teachers: the weights {listed} sum to {total:g} and leave nothing for the teachers without one;"
            " they must sum to less than 1"
        )
    return [(1 - total) / without if teacher.weight is None else teacher.weight for teacher in teachers]

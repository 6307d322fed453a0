"""Pairs of layers: which of the student's learns from which of the teacher's, and the projectors between them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import nn

from sra_data.errors import ConfigError
from sra_train.contract import ModelShape

Layer = int | Literal["last"]


class LayerPair(BaseModel):
    """A student's layer that learns from a teacher's; written ``12:24`` or ``12:24:0.5`` (with its weight) too.

    Layers count as in Hugging Face's `hidden_states`: 1 is the first block's output, ``last`` the last layer's after
    the final norm.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    student: Layer = "last"
    teacher: Layer = "last"
    weight: float = 1.0

    @model_validator(mode="before")
    @classmethod
    def from_text(cls, value: Any) -> Any:
        """Read the short form."""
        if not isinstance(value, str):
            return value
        layer = r"(last|\d+)"
        match = re.fullmatch(rf"{layer}:{layer}(?::([0-9.eE+-]+))?", value.strip())
        if match is None:
            raise ConfigError(
                f"layer_pairs: {value!r} is no pair of layers; write student:teacher or student:teacher:weight, "
                "such as last:last or 6:12:0.5"
            )
        student, teacher, weight = match.groups()
        return {"student": _layer(student), "teacher": _layer(teacher), "weight": float(weight or 1.0)}

    @model_validator(mode="after")
    def check(self) -> LayerPair:
        """Refuse layers without attention and weights that are none."""
        for side, layer in (("student", self.student), ("teacher", self.teacher)):
            if layer != "last" and layer < 1:
                raise ConfigError(
                    f"layer_pairs: {side} layer {layer}; they count from 1 (layer 0, the embeddings, has no attention)"
                )
        if not self.weight > 0:
            raise ConfigError(f"layer_pairs: weight {self.weight} must be positive; leave the pair out instead")
        return self


@dataclass(frozen=True)
class MappedLayers:
    """One layer pair with ``last`` resolved."""

    student: int
    teacher: int
    weight: float


def check_layer_pairs(layer_pairs: Sequence[LayerPair]) -> None:
    """Refuse no pair, a pair named twice, and weights that do not sum to 1.

    Raises:
        ConfigError: With the remedy.
    """
    if not layer_pairs:
        raise ConfigError("layer_pairs is empty; name at least one pair, such as last:last")
    pairs = [(pair.student, pair.teacher) for pair in layer_pairs]
    for student, teacher in pairs:
        if pairs.count((student, teacher)) > 1:
            raise ConfigError(f"layer_pairs: {student}:{teacher} is named twice; add up the weights in one pair")
    total = sum(pair.weight for pair in layer_pairs)
    if abs(total - 1) > 1e-6:
        weights = ", ".join(f"{pair.weight:g}" for pair in layer_pairs)
        raise ConfigError(f"layer_pairs: the weights {weights} sum to {total:g}; they must sum to 1")


def map_layers(
    layer_pairs: Sequence[LayerPair], *, student: ModelShape, teacher: ModelShape, name: str
) -> list[MappedLayers]:
    """The pairs with ``last`` resolved, for the teacher called `name`.

    Raises:
        ConfigError: If a model has no such layer.
    """
    return [
        MappedLayers(
            _resolved(pair.student, student, "student", ""),
            _resolved(pair.teacher, teacher, "teacher", f" ({name})"),
            pair.weight,
        )
        for pair in layer_pairs
    ]


def orthogonal_projector(rows: int, columns: int, *, seed: int) -> nn.Parameter:
    """A projector [rows, columns] with orthogonal rows or columns, the same for the same seed on any machine."""
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(nn.init.orthogonal_(torch.empty(rows, columns), generator=generator))


def _layer(text: str) -> Layer:
    return "last" if text == "last" else int(text)


def _resolved(layer: Layer, shape: ModelShape, side: str, name: str) -> int:
    found = shape.num_layers if layer == "last" else layer
    if found > shape.num_layers:
        raise ConfigError(f"layer_pairs: {side} layer {found}; the {side} has layers 1 to {shape.num_layers}{name}")
    return found

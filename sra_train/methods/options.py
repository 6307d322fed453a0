"""What a user may choose of SRA, and which choices contradict each other.

Every contradiction is a `ConfigError` of one line, raised while the configuration is read: before a model is loaded.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sra_data.errors import ConfigError

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


class SFTOptions(BaseModel):
    """Cross entropy only: nothing to choose."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SRAOptions(BaseModel):
    """The options of SRA; the defaults are the published ones (method.md, sections 3 to 6)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: float = Field(0.5, description="share of cross entropy; 0.6 in the published LoRA runs")
    cos: bool = Field(True, description="span representations (L_cos)")
    geo: bool = Field(True, description="geometry between spans (L_geo)")
    kd: bool = Field(True, description="distributions (L_KD)")
    lambda_geo: float = Field(50.0, description="weight of L_geo beside L_cos and L_KD")
    layer_pairs: tuple[LayerPair, ...] = Field((LayerPair(),), description="student:teacher[:weight], weights sum to 1")
    pooling: Literal["attention", "mean", "last"] = Field("attention", description="how a span's state is made")
    salience_power: float = Field(1.0, description="p of the span weights; 0 is uniform")
    kd_position: Literal["center_of_mass", "boundary"] = "center_of_mass"
    kd_source: Literal["head", "top_k"] = "head"
    kd_vocabulary: Literal["renormalised", "rest"] = Field(
        "renormalised", description="with kd_source=head; top_k always has its rest as one outcome"
    )
    kd_divergence: Literal["forward", "reverse", "js"] = "forward"
    kd_reduction: Literal["sum", "mean", "salience"] = Field("sum", description="over an example's spans")
    temperature: float = 2.0

    @model_validator(mode="after")
    def check(self) -> SRAOptions:
        """Refuse values and combinations that mean nothing."""
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha={self.alpha}: must lie in [0, 1], the share of cross entropy in the loss")
        if not (self.cos or self.geo or self.kd):
            raise ConfigError("cos, geo and kd are all off, so nothing is distilled; choose method=sft for that")
        for name in ("lambda_geo", "salience_power"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                remedy = "; 0 weighs all spans alike" if name == "salience_power" else ""
                raise ConfigError(f"{name}={value}: must be a finite number that is not negative{remedy}")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature={self.temperature}: must be a positive finite number")
        self._check_layer_pairs()
        return self

    def _check_layer_pairs(self) -> None:
        if not self.layer_pairs:
            raise ConfigError("layer_pairs is empty; name at least one pair, such as last:last")
        pairs = [(pair.student, pair.teacher) for pair in self.layer_pairs]
        for student, teacher in pairs:
            if pairs.count((student, teacher)) > 1:
                raise ConfigError(f"layer_pairs: {student}:{teacher} is named twice; add up the weights in one pair")
        total = sum(pair.weight for pair in self.layer_pairs)
        if abs(total - 1) > 1e-6:
            weights = ", ".join(f"{pair.weight:g}" for pair in self.layer_pairs)
            raise ConfigError(f"layer_pairs: the weights {weights} sum to {total:g}; they must sum to 1")


def _layer(text: str) -> Layer:
    return "last" if text == "last" else int(text)

"""SRA: span representations, their geometry and their distributions, beside cross entropy (docs/method.md, section 5).

    L = alpha CE + (1 - alpha) (L_cos + lambda_geo L_geo + L_KD)

This file holds the options and puts the terms together; each term stands alone in its own file of `terms/`: spans.py,
cosine.py, geometry.py, distributions.py, cross_entropy.py. Every term is a sum over the examples of this micro-batch
divided by the totals of the GLOBAL step. Rows of weight 0 have no span and no label here, so they reach no term.

Every contradiction between options is a `ConfigError` of one line, raised while the configuration is read: before a
model is loaded.

Shapes: B examples, N student tokens, P teacher positions, K spans, S real spans of the batch, D_s / D_t hidden sizes.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from sra_data.errors import ConfigError
from sra_train.contract import (
    Batch,
    CacheNeeds,
    LossTerms,
    MethodSetting,
    ModelShape,
    StepTotals,
    StudentNeeds,
    StudentOutput,
    TeacherKnowledge,
)
from sra_train.methods.base import Method, register
from sra_train.methods.terms.cosine import cosine_loss
from sra_train.methods.terms.cross_entropy import CrossEntropyTerm, LabelledRows, count_labels, sum_per_example
from sra_train.methods.terms.divergence import Divergence
from sra_train.methods.terms.geometry import geometry_loss
from sra_train.methods.terms.head_loss import HeadTerm, RowGroup, head_losses, product_dtype
from sra_train.methods.terms.kd import Distillation, KDPosition, KDSource, KDVocabulary
from sra_train.methods.terms.spans import Pooling, SpanRows, SpanStates

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


class SRAOptions(BaseModel):
    """The options of SRA; the defaults are the published ones (docs/method.md, sections 3 to 6)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: float = Field(0.5, description="share of cross entropy; 0.6 in the published LoRA runs")
    cos: bool = Field(True, description="span representations (L_cos)")
    geo: bool = Field(True, description="geometry between spans (L_geo)")
    kd: bool = Field(True, description="distributions (L_KD)")
    lambda_geo: float = Field(50.0, description="weight of L_geo beside L_cos and L_KD")
    layer_pairs: tuple[LayerPair, ...] = Field((LayerPair(),), description="student:teacher[:weight], weights sum to 1")
    pooling: Pooling = Field("attention", description="how a span's state is made")
    salience_power: float = Field(1.0, description="p of the span weights; 0 is uniform")
    kd_position: KDPosition = "center_of_mass"
    kd_source: KDSource = "head"
    kd_vocabulary: KDVocabulary = Field(
        "renormalised", description="with kd_source=head; top_k always has its rest as one outcome"
    )
    kd_divergence: Divergence = "forward"
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


@dataclass(frozen=True)
class MappedLayers:
    """One layer pair with ``last`` resolved."""

    student: int
    teacher: int
    weight: float


@register("sra")
class SRA(Method):
    """Span representation alignment; its parameters are one projector W [D_s, D_t] per layer pair (with L_cos)."""

    options_type = SRAOptions

    def __init__(self, options: SRAOptions, setting: MethodSetting) -> None:
        """Refuses layers a model does not have, and a KD term without the teacher's knowledge (ConfigError)."""
        super().__init__()
        if setting.teacher is None:
            raise ConfigError("method=sra: the shards hold no teacher's pages; run `sra-data cache-teacher`")
        self.options = options
        self.student, self.teacher = setting.student, setting.teacher
        self.pairs = [
            MappedLayers(
                _resolve(pair.student, self.student, "student"),
                _resolve(pair.teacher, self.teacher, "teacher"),
                pair.weight,
            )
            for pair in options.layer_pairs
        ]
        self.last_pair = max(self.pairs, key=lambda pair: (pair.student, pair.teacher))
        self.projectors = nn.ParameterList(
            _orthogonal(self.student.hidden_size, self.teacher.hidden_size, setting.seed + place)
            for place in range(len(self.pairs) if options.cos else 0)
        )
        self.distillation = Distillation(options, _knowledge(setting)) if options.kd else None

    @property
    def _cos_pairs(self) -> list[MappedLayers]:
        return self.pairs if self.options.cos else []

    @property
    def _kd_pools(self) -> bool:
        return self.options.kd and self.options.kd_position == "center_of_mass"

    @property
    def _pooled_layers(self) -> tuple[set[int], set[int]]:
        """Student's and teacher's layers whose spans are pooled."""
        pairs = [*self._cos_pairs, *([self.last_pair] if self.options.geo else [])]
        student, teacher = {pair.student for pair in pairs}, {pair.teacher for pair in pairs}
        if self._kd_pools:
            student.add(self.student.num_layers)
            if self.options.kd_source == "head":  # the top k were taken at the pooled state already
                teacher.add(self.teacher.num_layers)
        return student, teacher

    @property
    def _salience_layers(self) -> set[int]:
        """Teacher's layers whose attention weighs the spans."""
        if self.options.salience_power == 0:
            return set()
        layers = {pair.teacher for pair in self._cos_pairs}
        if self.options.geo or (self.options.kd and self.options.kd_reduction == "salience"):
            layers.add(self.last_pair.teacher)
        return layers

    @property
    def needs(self) -> CacheNeeds:
        options = self.options
        hidden = set(self._pooled_layers[1])
        if options.kd and options.kd_source == "head":
            hidden.add(self.teacher.num_layers)
        attention = self._salience_layers | (self._pooled_layers[1] if options.pooling == "attention" else set())
        top_k = options.kd and options.kd_source == "top_k"
        return CacheNeeds(
            layers=tuple(sorted(hidden | attention)),
            hidden=bool(hidden),
            attention=bool(attention),
            top_k=top_k,
            log_tail_temperatures=(options.temperature,) if top_k else (),
            head=options.kd and options.kd_source == "head",
            token_rows=self._token_rows,
            span_rows="kd_source=top_k with kd_position=center_of_mass" if top_k and self._kd_pools else "",
        )

    @property
    def _token_rows(self) -> str:
        """The option that reads single tokens of the teacher; pooled spans serve where there is none."""
        if self.options.kd and not self._kd_pools:
            return "kd_position=boundary"
        pools_otherwise = self.options.pooling != "attention" and bool(self._pooled_layers[1])
        return f"pooling={self.options.pooling}" if pools_otherwise else ""

    @property
    def student_needs(self) -> StudentNeeds:
        pooled = self._pooled_layers[0]
        return StudentNeeds(
            layers=tuple(sorted(pooled | {self.student.num_layers})),
            attention_layers=tuple(sorted(pooled)) if self.options.pooling == "attention" else (),
        )

    def forward(self, output: StudentOutput, batch: Batch, totals: StepTotals) -> LossTerms:
        """The loss of one micro-batch.

        Raises:
            ShardError: If the batch lacks a column of the cache that the options read.
        """
        options = self.options
        spans = SpanStates(output, batch, pooling=options.pooling, salience_power=options.salience_power)
        with torch.autocast(batch.weight.device.type, enabled=False):
            cos, geo = self._cos(spans), self._geo(spans)
        head_total, ce_sum, kd = self._head_terms(spans, totals)
        share = (1 - self.options.alpha) / max(totals.examples, 1)
        spans_total = (batch.weight * (cos + self.options.lambda_geo * geo)).sum() * share
        per_example = {"ce_sum": ce_sum, "labels": count_labels(batch).to(ce_sum.dtype)}
        terms = {"ce": (batch.weight * ce_sum).sum() / max(totals.labels, 1)}
        for name, values in (("cos", cos), ("geo", geo), ("kd", kd)):
            if getattr(self.options, name):
                per_example[name] = values.detach()
                terms[name] = (batch.weight * values.detach()).sum() / max(totals.examples, 1)
        return LossTerms(head_total + spans_total, terms, per_example, spans.counts())

    def _cos(self, spans: SpanStates) -> Tensor:
        """L_cos of each example, over the layer pairs [B]."""
        total = spans.nothing()
        for pair, projector in zip(self._cos_pairs, self.projectors, strict=True):
            student = spans.student(pair.student)
            projected = student @ projector.to(student.dtype)  # [B, K, D_t]
            total = total + pair.weight * cosine_loss(
                projected, spans.teacher(pair.teacher), spans.salience(pair.teacher)
            )
        return total

    def _geo(self, spans: SpanStates) -> Tensor:
        """L_geo of each example, at the last mapped layers [B]."""
        if not self.options.geo:
            return spans.nothing()
        pair = self.last_pair
        return geometry_loss(spans.student(pair.student), spans.teacher(pair.teacher), spans.salience(pair.teacher))

    def _head_terms(self, spans: SpanStates, totals: StepTotals) -> tuple[Tensor, Tensor, Tensor]:
        """What the student's head says: the differentiable sum of CE and KD, CE sums [B] and L_KD [B]."""
        batch, head = spans.batch, spans.output.head
        states = spans.output.hidden[self.student.num_layers]
        ce_factor = self.options.alpha / max(totals.labels, 1)
        order = columns = None
        groups: list[RowGroup] = []
        fused: LabelledRows | None = None
        kd_rows = None
        if self.distillation is not None:
            kd_rows = spans.rows(self._span_weights(spans))
            kd_factor = (1 - self.options.alpha) / max(totals.examples, 1)
            order, columns = self.distillation.student_order(head.vocabulary_size)
            coefficients = batch.weight[kd_rows.example] * kd_rows.weights * kd_factor
            terms: list[HeadTerm] = [self._kd_term(spans, kd_rows, coefficients, product_dtype(states))]
            if self._kd_pools:
                pooled = spans.student(self.student.num_layers)[kd_rows.example, kd_rows.span]
                groups.append(RowGroup(pooled, terms, self.distillation.student_columns(head.vocabulary_size)))
            else:
                fused = LabelledRows.at(batch, kd_rows.student_positions)
                terms.append(_cross_entropy(fused, batch, ce_factor, columns))
                groups.append(RowGroup(fused.states(states), terms))
        plain = LabelledRows.all_of(batch, without=None if fused is None else fused.positions)
        groups.append(RowGroup(plain.states(states), [_cross_entropy(plain, batch, ce_factor, columns)]))
        total, values = head_losses(head, groups, dtype=product_dtype(states), order=order)
        ce_sum = plain.sums(values[-1][0], batch)
        if fused is not None:
            ce_sum = ce_sum + fused.sums(values[0][1], batch)
        if kd_rows is None:
            return total, ce_sum, spans.nothing()
        return total, ce_sum, sum_per_example(kd_rows.weights * values[0][0], kd_rows.example, len(batch.weight))

    def _kd_term(self, spans: SpanStates, rows: SpanRows, coefficients: Tensor, dtype: torch.dtype) -> HeadTerm:
        """The distributions taught at `rows`."""
        assert self.distillation is not None
        if self.options.kd_source == "top_k":
            return self.distillation.top_k_term(
                spans.batch, rows.example, rows.teacher_positions, coefficients, spans.output.head.vocabulary_size
            )
        layer = self.teacher.num_layers
        if self._kd_pools:
            states = spans.teacher(layer)[rows.example, rows.span]
        else:
            states = spans.teacher_hidden(layer)[rows.example, rows.teacher_positions]
        return self.distillation.head_term(states.to(dtype), coefficients, dtype)

    def _span_weights(self, spans: SpanStates) -> Tensor:
        """How much each span's divergence counts within its example [B, K]."""
        mask = spans.mask.to(spans.batch.weight.dtype)
        if self.options.kd_reduction == "salience":
            return spans.salience(self.last_pair.teacher)
        if self.options.kd_reduction == "mean":
            return mask / mask.sum(1, keepdim=True).clamp_min(1)
        return mask


def _cross_entropy(rows: LabelledRows, batch: Batch, factor: float, columns: Tensor | None) -> CrossEntropyTerm:
    """The term over `rows`; `columns` [V] say where an id stands in the head's order."""
    targets = rows.targets if columns is None else columns[rows.targets]
    return CrossEntropyTerm(targets, rows.coefficients(batch, factor))


def _layer(text: str) -> Layer:
    return "last" if text == "last" else int(text)


def _resolve(layer: Layer, shape: ModelShape, side: str) -> int:
    found = shape.num_layers if layer == "last" else layer
    if found > shape.num_layers:
        raise ConfigError(f"layer_pairs: {side} layer {found}; the {side} has layers 1 to {shape.num_layers}")
    return found


def _orthogonal(rows: int, columns: int, seed: int) -> nn.Parameter:
    """A projector [rows, columns] with orthogonal rows or columns, the same for the same seed on any machine."""
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(nn.init.orthogonal_(torch.empty(rows, columns), generator=generator))


def _knowledge(setting: MethodSetting) -> TeacherKnowledge:
    if setting.knowledge is None:
        raise ConfigError("kd=true: the shards hold no shared vocabulary and head; run `sra-data cache-teacher`")
    return setting.knowledge

"""SRA: span representations, their geometry and their distributions, beside cross entropy (docs/method.md, section 5).

    L = alpha CE + (1 - alpha) sum_j lambda_j (L_cos + lambda_geo L_geo + L_KD) of teacher j

This file holds the options and puts the terms together: `SpanTeacher` those of one teacher, `SRA` all of them. Each
term stands alone in its own file of `terms/`: spans.py, cosine.py, geometry.py, distributions.py, cross_entropy.py.
Every term is a sum over the examples of this micro-batch divided by the totals of the GLOBAL step, whether a teacher
has the example or not: one that it lacks adds nothing to its terms.

Every contradiction between options is a `ConfigError` of one line, raised while the configuration is read: before a
model is loaded.

Shapes: B examples, N student tokens, P teacher positions, K spans, S real spans of the batch, D_s / D_t hidden sizes.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from sra_data.errors import ConfigError
from sra_train.contract import (
    Batch,
    CacheNeeds,
    KnowledgeNeeds,
    MethodSetting,
    ModelShape,
    RowKind,
    SpanChoice,
    StepTotals,
    StudentNeeds,
    StudentOutput,
    TeacherBatch,
    TeacherSetting,
)
from sra_train.methods.base import TaughtMethod, register
from sra_train.methods.terms.cosine import cosine_loss
from sra_train.methods.terms.cross_entropy import sum_per_example
from sra_train.methods.terms.divergence import Divergence
from sra_train.methods.terms.geometry import geometry_loss
from sra_train.methods.terms.head_loss import HeadTerm, product_dtype
from sra_train.methods.terms.head_terms import HeadTerms, TaughtRows, head_terms
from sra_train.methods.terms.kd import (
    EVENTS,
    Distillation,
    KDPosition,
    KDSource,
    KDVocabulary,
    check_distillation,
)
from sra_train.methods.terms.layers import LayerPair, MappedLayers, check_layer_pairs, map_layers, orthogonal_projector
from sra_train.methods.terms.spans import Pooling, SpanStates
from sra_train.methods.terms.teachers import Taught

TERMS = ("cos", "geo", "kd")


class SRAOptions(BaseModel):
    """The options of SRA; the defaults are the published ones (docs/method.md, sections 3 to 6)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: float = Field(0.5, description="share of cross entropy; 0.6 in the published LoRA runs")
    cos: bool = Field(True, description="span representations (L_cos)")
    geo: bool = Field(True, description="geometry between spans (L_geo)")
    kd: bool = Field(True, description="distributions (L_KD)")
    lambda_geo: float = Field(50.0, description="weight of L_geo beside L_cos and L_KD")
    layer_pairs: tuple[LayerPair, ...] = Field(
        (LayerPair(),),
        description="student:teacher[:weight], weights sum to 1; last: after the final norm (research code: before)",
    )
    spans: SpanChoice = Field("all", description="single: spans of one token on both sides alone (token level)")
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
    student_top_k: int = Field(
        0, description="with outcomes that are events: only the student's likeliest so many stand alone; 0 for all"
    )

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
        if self.kd:
            check_distillation(self)
        check_layer_pairs(self.layer_pairs)
        return self

    @property
    def kd_pools(self) -> bool:
        """Whether distributions are taught at centres of mass."""
        return self.kd and self.kd_position == "center_of_mass"

    @property
    def kd_reads_head(self) -> bool:
        """Whether the teacher's distributions come from its head."""
        return self.kd and self.kd_source == "head"


class SpanTeacher(nn.Module):
    """The terms of one teacher; its parameters are one projector W [D_s, D_t] per layer pair (with L_cos)."""

    def __init__(self, options: SRAOptions, student: ModelShape, setting: TeacherSetting, *, seed: int) -> None:
        """Refuses layers a model does not have, and knowledge of the teacher that is not there (ConfigError)."""
        super().__init__()
        self.options, self.name, self.weight = options, setting.name, setting.weight
        self.last_layers = student.num_layers, setting.shape.num_layers
        self.pairs = map_layers(options.layer_pairs, student=student, teacher=setting.shape, name=setting.name)
        self.last_pair = max(self.pairs, key=lambda pair: (pair.student, pair.teacher))
        self.projectors = nn.ParameterList(
            orthogonal_projector(student.hidden_size, setting.shape.hidden_size, seed=seed + place)
            for place in range(len(self._cos_pairs))
        )
        vocabulary = student.vocabulary_size
        self.distillation = (
            Distillation(options, setting.knowledge, student_vocabulary=vocabulary) if options.kd else None
        )

    @property
    def _cos_pairs(self) -> list[MappedLayers]:
        return self.pairs if self.options.cos else []

    @property
    def pooled_layers(self) -> tuple[set[int], set[int]]:
        """Student's and teacher's layers whose spans are pooled."""
        pairs = [*self._cos_pairs, *([self.last_pair] if self.options.geo else [])]
        student, teacher = {pair.student for pair in pairs}, {pair.teacher for pair in pairs}
        if self.options.kd_pools:
            student.add(self.last_layers[0])
            if self.options.kd_source == "head":  # the top k were taken at the pooled state already
                teacher.add(self.last_layers[1])
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
        """What is read of the teacher's pages."""
        options, pooled = self.options, self.pooled_layers[1]
        hidden = pooled | ({self.last_layers[1]} if options.kd_reads_head else set())
        attention = self._salience_layers | (pooled if options.pooling == "attention" else set())
        top_k = options.kd and options.kd_source == "top_k"
        centers = RowKind(
            "kd_source=top_k with kd_position=center_of_mass", "set kd_position=boundary or kd_source=head"
        )
        return CacheNeeds(
            hidden=tuple(sorted(hidden)),
            attention=tuple(sorted(attention)),
            temperatures=(options.temperature,) if top_k else (),
            tokens=self._reads_tokens(),
            centers=centers if top_k and options.kd_pools else None,
            spans=options.spans,
        )

    def _reads_tokens(self) -> RowKind | None:
        """The option that reads single tokens of the teacher; pooled spans serve where there is none."""
        if self.options.kd and not self.options.kd_pools:
            return RowKind("kd_position=boundary", "set kd_position=center_of_mass")
        if self.options.pooling != "attention" and self.pooled_layers[1]:
            return RowKind(f"pooling={self.options.pooling}", "set pooling=attention")
        return None

    def forward(
        self, output: StudentOutput, batch: Batch, pages: TeacherBatch, totals: StepTotals, *, with_labels: bool
    ) -> Taught:
        """What this teacher adds; `with_labels`: the cross entropy comes along, in the same pass over the head."""
        options = self.options
        spans = SpanStates(output, batch, pages, pooling=options.pooling, salience_power=options.salience_power)
        share = (1 - options.alpha) * self.weight / max(totals.examples, 1)
        with torch.autocast(batch.weight.device.type, enabled=False):
            cos, geo = self._cos(spans), self._geo(spans)
        weights = self._span_weights(spans)
        found = self._head_terms(spans, weights, totals, share, with_labels=with_labels)
        values = {"cos": cos.detach(), "geo": geo.detach()}
        if found is not None and found.taught is not None:
            rows = pages.span_rows
            divergences = weights[rows.example, rows.span] * found.taught
            values["kd"] = sum_per_example(divergences, rows.example, len(batch.weight))
        total = (batch.weight * (cos + options.lambda_geo * geo)).sum() * share
        if found is not None:
            total = found.total + total
        on = {name: values[name] for name in TERMS if getattr(options, name)}
        return Taught(total, None if found is None else found.ce_sum, on, spans.counts())

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

    def _head_terms(
        self, spans: SpanStates, weights: Tensor, totals: StepTotals, share: float, *, with_labels: bool
    ) -> HeadTerms | None:
        """What the student's head says; None where nothing is asked of it."""
        if self.distillation is None and not with_labels:
            return None
        hidden = spans.output.hidden[self.last_layers[0]]
        return head_terms(
            spans.output.head,
            hidden,
            spans.batch,
            ce_factor=self.options.alpha / max(totals.labels, 1) if with_labels else None,
            taught=self._taught_rows(spans, weights, share, product_dtype(hidden), with_labels=with_labels),
        )

    def _taught_rows(
        self, spans: SpanStates, weights: Tensor, share: float, dtype: torch.dtype, *, with_labels: bool
    ) -> TaughtRows | None:
        """The distributions taught at the spans; `weights` [B, K] say how much each counts in its example."""
        if self.distillation is None:
            return None
        rows, pools = spans.pages.span_rows, self.options.kd_pools
        at = rows.example, rows.span
        coefficients = spans.batch.weight[rows.example] * weights[at] * share
        ids = None if with_labels else self.distillation.ids_read
        term: HeadTerm
        if self.options.kd_source == "top_k":
            term = self.distillation.top_k_term(spans.pages, rows, coefficients)
        else:
            layer = self.last_layers[1]
            last = rows.example, rows.teacher_positions
            states = spans.teacher(layer)[at] if pools else spans.teacher_hidden(layer)[last]
            term = self.distillation.head_term(states.to(dtype), coefficients, dtype, ids_alone=ids is not None)
        return TaughtRows(
            term=term,
            rows=rows,
            other_labels=spans.pages.other_labels,
            pooled=self._longer_spans(spans) if pools else None,
            ids=ids,
        )

    def _longer_spans(self, spans: SpanStates) -> Tensor:
        """The student's states of spans of several tokens [S', D_s]; one token's pooled state is its own."""
        rows = spans.pages.span_rows
        longer = slice(rows.num_single, None)
        return spans.student(self.last_layers[0])[rows.example[longer], rows.span[longer]]

    def _span_weights(self, spans: SpanStates) -> Tensor:
        """How much each span's divergence counts within its example [B, K]."""
        mask = spans.mask.to(spans.batch.weight.dtype)
        if not self.options.kd or self.options.kd_reduction == "sum":
            return mask
        if self.options.kd_reduction == "salience":
            return spans.salience(self.last_pair.teacher)
        return mask / mask.sum(1, keepdim=True).clamp_min(1)


@register("sra")
class SRA(TaughtMethod):
    """Span representation alignment with one teacher or several."""

    options_type = SRAOptions

    def __init__(self, options: SRAOptions, setting: MethodSetting) -> None:
        """Refuses what `SpanTeacher` refuses, and to be without a teacher (ConfigError)."""
        super().__init__(
            options, setting, lambda teacher: SpanTeacher(options, setting.student, teacher, seed=setting.seed)
        )

    @classmethod
    def knowledge_needs(cls, options: SRAOptions) -> KnowledgeNeeds:
        return KnowledgeNeeds(
            head=options.kd_reads_head, images=options.kd_reads_head and options.kd_vocabulary in EVENTS
        )

    @classmethod
    def term_names(cls, options: SRAOptions) -> tuple[str, ...]:
        return tuple(name for name in TERMS if getattr(options, name))

    @property
    def student_needs(self) -> StudentNeeds:
        pooled = set.union(*(teacher.pooled_layers[0] for teacher in self.teachers))
        return StudentNeeds(
            layers=tuple(sorted(pooled | {self.last_layer})),
            attention_layers=tuple(sorted(pooled)) if self.options.pooling == "attention" else (),
        )

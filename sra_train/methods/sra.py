"""SRA: span representations, their geometry and their distributions, beside cross entropy (method.md, section 5).

    L = alpha CE + (1 - alpha) (L_cos + lambda_geo L_geo + L_KD)

This file puts the terms together; each stands alone in its own: cosine.py, geometry.py, distributions.py,
cross_entropy.py. Every term is a sum over the examples of this micro-batch divided by the totals of the GLOBAL step.
Rows of weight 0 have no span and no label here, so they reach no term.

Shapes: B examples, N student tokens, P teacher positions, K spans, S real spans of the batch, D_s / D_t hidden sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sra_data.errors import ConfigError, ShardError
from sra_data.spans.pooling import center_of_mass, salience, span_last, span_mass, span_mean
from sra_train.data.batch import Batch, StepTotals, StudentOutput
from sra_train.methods.base import (
    CacheNeeds,
    LossTerms,
    Method,
    MethodSetting,
    ModelShape,
    StudentNeeds,
    TeacherKnowledge,
    register,
)
from sra_train.methods.cosine import cosine_loss
from sra_train.methods.cross_entropy import CrossEntropyTerm, LabelledRows, count_labels, sum_per_example
from sra_train.methods.geometry import geometry_loss
from sra_train.methods.head_loss import HeadTerm, RowGroup, head_losses, product_dtype
from sra_train.methods.kd import Distillation
from sra_train.methods.options import Layer, SRAOptions


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
        spans = SpanStates(self.options, output, batch)
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


@dataclass(frozen=True)
class SpanRows:
    """The real spans of a batch as rows [S]."""

    example: Tensor
    span: Tensor
    weights: Tensor
    student_positions: Tensor  # of the last token, into the flattened [B x N]
    teacher_positions: Tensor  # of the last token, into P


class SpanStates:
    """Pooled spans of both sides, made once for all terms of one forward."""

    def __init__(self, options: SRAOptions, output: StudentOutput, batch: Batch) -> None:
        self.options, self.output, self.batch = options, output, batch
        real = batch.weight > 0
        self.mask = batch.span_mask & real[:, None]  # [B, K]
        self._student_ids = torch.where(real[:, None], batch.student_span_ids, -1)
        self._teacher_ids = torch.where(real[:, None], batch.teacher_span_ids, -1)
        self._pooled: dict[tuple[str, int], Tensor] = {}
        self._salience: dict[int, Tensor] = {}
        self._fallbacks: dict[str, Tensor] = {}

    def student(self, layer: int) -> Tensor:
        """[B, K, D_s], with gradient to the student's hidden states."""
        if ("student", layer) not in self._pooled:
            attention = self.output.attention.get(layer)
            hidden = self.output.hidden[layer]
            pooled = self._pool("student", hidden, self._student_ids, attention, self.batch.student_span_last)
            self._pooled["student", layer] = pooled
        return self._pooled["student", layer]

    def teacher(self, layer: int) -> Tensor:
        """[B, K, D_t]."""
        if ("teacher", layer) not in self._pooled:
            attention = self._attention(layer) if self.options.pooling == "attention" else None
            hidden = self.teacher_hidden(layer)
            pooled = self._pool("teacher", hidden, self._teacher_ids, attention, self.batch.teacher_span_last)
            self._pooled["teacher", layer] = pooled
        return self._pooled["teacher", layer]

    def _pool(self, side: str, hidden: Tensor, ids: Tensor, attention: Tensor | None, last: Tensor) -> Tensor:
        num_spans = self.mask.shape[1]
        if self.options.pooling == "mean":
            return span_mean(hidden, ids, num_spans)
        if self.options.pooling == "last":
            return span_last(hidden, last, self.mask)
        assert attention is not None, f"no attention of the {side}"
        centers = center_of_mass(hidden, ids, attention, num_spans)
        name = f"zero_mass_spans_{side}"
        self._fallbacks[name] = self._fallbacks.get(name, 0) + centers.num_fallbacks
        return centers.states

    def salience(self, layer: int) -> Tensor:
        """w_k at a layer of the teacher [B, K]."""
        if layer not in self._salience:
            if self.options.salience_power == 0:
                mass = self.mask.to(self.batch.weight.dtype)
            else:
                mass = span_mass(self._teacher_ids, self._attention(layer), self.mask.shape[1])
            self._salience[layer] = salience(mass, self.mask, self.options.salience_power)
        return self._salience[layer]

    def teacher_hidden(self, layer: int) -> Tensor:
        """Cached states [B, P, D_t]."""
        return _column(self.batch.teacher_hidden, layer, "hidden states")

    def _attention(self, layer: int) -> Tensor:
        return _column(self.batch.teacher_attention, layer, "attention")

    def rows(self, weights: Tensor) -> SpanRows:
        """The real spans; `weights` [B, K] come along."""
        example, span = self.mask.nonzero(as_tuple=True)
        last = self.batch.student_span_last[example, span]
        return SpanRows(
            example=example,
            span=span,
            weights=weights[example, span],
            student_positions=example * self.batch.labels.shape[1] + last,
            teacher_positions=self.batch.teacher_span_last[example, span],
        )

    def nothing(self) -> Tensor:
        """Zeros [B]."""
        return torch.zeros_like(self.batch.weight)

    def counts(self) -> dict[str, Tensor]:
        """Events of this micro-batch."""
        without = (self.batch.weight > 0) & ~self.mask.any(1)
        return {"spans": self.mask.sum(), "examples_without_span": without.sum(), **self._fallbacks}


def _cross_entropy(rows: LabelledRows, batch: Batch, factor: float, columns: Tensor | None) -> CrossEntropyTerm:
    """The term over `rows`; `columns` [V] say where an id stands in the head's order."""
    targets = rows.targets if columns is None else columns[rows.targets]
    return CrossEntropyTerm(targets, rows.coefficients(batch, factor))


def _column(columns: dict[int, Tensor], layer: int, what: str) -> Tensor:
    if layer not in columns:
        raise ShardError(
            f"teacher's pages: no {what} of layer {layer}, which the method reads; "
            f"run `sra-data cache-teacher --layers {layer}` into a new folder"
        )
    return columns[layer]


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

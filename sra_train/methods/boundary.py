"""Boundary: next-token distributions wherever both models have read the same text (docs/method.md, section 10).

    L = alpha CE + (1 - alpha) sum_j lambda_j D_j,     D_j = KL( events of teacher j || events of the student ) at rows

A row is a shared boundary: the end of a span, or the start of a response, so that the FIRST token is taught too and
the end of the response. What is compared are events about the bytes that follow (section 6), for the next tokens are
different pieces of the same text. With lambda_cos = 0 nothing else is read of the teacher: no attention, no projector.

    + lambda_cos L_cos, where asked for: the span representations of SRA (section 5) beside the distributions

`strict.py` is the same at fewer rows. Shapes: B examples, S rows of the batch, D_s / D_t hidden sizes.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from sra_data.errors import ConfigError
from sra_train.contract import (
    Aligned,
    AlignedRows,
    Batch,
    CacheNeeds,
    KnowledgeNeeds,
    MethodSetting,
    ModelShape,
    RowKind,
    StepTotals,
    StudentNeeds,
    StudentOutput,
    TeacherBatch,
    TeacherSetting,
)
from sra_train.methods.base import TaughtMethod, register
from sra_train.methods.terms.aligned import Reduction, divisor, item_counts, item_weights, per_label, teacher_states
from sra_train.methods.terms.cosine import cosine_loss
from sra_train.methods.terms.cross_entropy import sum_per_example
from sra_train.methods.terms.divergence import Divergence
from sra_train.methods.terms.head_loss import HeadTerm, product_dtype
from sra_train.methods.terms.head_terms import TaughtRows, head_terms
from sra_train.methods.terms.kd import EVENTS, Distillation, KDPosition, KDSource, KDVocabulary, check_distillation
from sra_train.methods.terms.layers import orthogonal_projector
from sra_train.methods.terms.spans import SpanStates
from sra_train.methods.terms.teachers import Taught


class BoundaryOptions(BaseModel):
    """Distributions over events about the next bytes, at every shared boundary."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: float = Field(0.5, description="share of cross entropy")
    kd_source: KDSource = "head"
    kd_vocabulary: KDVocabulary = Field(
        "first_piece", description="what is compared with kd_source=head; top_k always has its rest as one outcome"
    )
    kd_divergence: Divergence = "forward"
    kd_reduction: Reduction = Field(
        "token", description="token: over the labels of the step, as cross entropy; mean or sum: over an example's rows"
    )
    temperature: float = 1.0
    student_top_k: int = Field(
        0, description="with outcomes that are events: only the student's likeliest so many stand alone; 0 for all"
    )

    lambda_cos: float = Field(0.0, description="weight of SRA's span representations (L_cos) beside; 0: none")

    @model_validator(mode="before")
    @classmethod
    def top_k_has_a_rest(cls, value: Any) -> Any:
        """With kd_source=top_k the outcomes are the cached ids and their rest; to say one is to say both."""
        if isinstance(value, dict) and value.get("kd_source") == "top_k":
            return {"kd_vocabulary": "rest", **value}
        return value

    @model_validator(mode="after")
    def check(self) -> BoundaryOptions:
        """Refuse values and combinations that mean nothing."""
        if not 0 <= self.alpha < 1:
            raise ConfigError(f"alpha={self.alpha}: must lie in [0, 1); with 1 nothing is distilled: method=sft")
        if not 0 <= self.lambda_cos < math.inf:
            raise ConfigError(f"lambda_cos={self.lambda_cos}: must be a finite number that is not negative")
        check_distillation(self)
        return self

    @property
    def kd_position(self) -> KDPosition:
        """Distributions of the next token, always."""
        return "boundary"


class BoundaryTeacher(nn.Module):
    """The terms of one teacher; with L_cos there is one projector W [D_s, D_t] to be trained."""

    def __init__(
        self,
        options: BoundaryOptions,
        student: ModelShape,
        setting: TeacherSetting,
        *,
        aligned: Aligned,
        method: str,
        seed: int,
    ) -> None:
        """Refuses knowledge of the teacher that is not there (ConfigError)."""
        super().__init__()
        self.options, self.name, self.weight = options, setting.name, setting.weight
        self.last_layers = student.num_layers, setting.shape.num_layers
        self.aligned, self.method = aligned, method
        self.distillation = Distillation(options, setting.knowledge, student_vocabulary=student.vocabulary_size)
        widths = student.hidden_size, setting.shape.hidden_size
        self.projector = orthogonal_projector(*widths, seed=seed) if options.lambda_cos else None

    @property
    def needs(self) -> CacheNeeds:
        """What is read of the teacher's pages."""
        with_head, last = self.options.kd_source == "head", self.last_layers[1]
        return CacheNeeds(
            hidden=(last,) if with_head or self.options.lambda_cos else (),
            attention=(last,) if self.options.lambda_cos else (),
            temperatures=() if with_head else (self.options.temperature,),
            aligned=self.aligned,
            tokens=RowKind(f"method={self.method}", "choose method=sra"),
        )

    def forward(
        self, output: StudentOutput, batch: Batch, pages: TeacherBatch, totals: StepTotals, *, with_labels: bool
    ) -> Taught:
        """What this teacher adds; `with_labels`: the cross entropy comes along, in the same pass over the head."""
        options, rows = self.options, pages.aligned
        assert rows is not None, "the reader fills what `needs` asks for"
        hidden = output.hidden[self.last_layers[0]]
        weights = item_weights(rows.example, batch, options.kd_reduction)
        share = (1 - options.alpha) * self.weight / divisor(options.kd_reduction, totals)
        ids = None if with_labels else self.distillation.ids_read
        coefficients = batch.weight[rows.example] * weights * share
        term = self._term(pages, rows, coefficients, product_dtype(hidden), ids_alone=ids is not None)
        found = head_terms(
            output.head,
            hidden,
            batch,
            ce_factor=options.alpha / max(totals.labels, 1) if with_labels else None,
            taught=TaughtRows(term=term, rows=rows, other_labels=rows.other_labels, pooled=None, ids=ids),
        )
        assert found.taught is not None
        values = {"kd": sum_per_example(weights * found.taught, rows.example, len(batch.weight))}
        counts = item_counts(rows.example, batch, pages, name="boundaries", single="boundary")
        total = found.total
        if self.projector is not None:
            spans = SpanStates(output, batch, pages, pooling="attention", salience_power=1.0)
            cos = self._cos(spans, self.projector)
            factor = options.lambda_cos * (1 - options.alpha) * self.weight / max(totals.examples, 1)
            total = total + (batch.weight * cos).sum() * factor
            values["cos"], counts = cos.detach(), counts | spans.counts()
        return Taught(total, found.ce_sum, values, counts)

    def _cos(self, spans: SpanStates, projector: Tensor) -> Tensor:
        """L_cos of each example at the last layers [B], as SRA has it."""
        with torch.autocast(spans.batch.weight.device.type, enabled=False):
            student, teacher = spans.student(self.last_layers[0]), spans.teacher(self.last_layers[1])
            return cosine_loss(student @ projector.to(student.dtype), teacher, spans.salience(self.last_layers[1]))

    def _term(
        self, pages: TeacherBatch, rows: AlignedRows, coefficients: Tensor, dtype: torch.dtype, *, ids_alone: bool
    ) -> HeadTerm:
        """The teacher's distributions at the rows."""
        if self.options.kd_source == "top_k":
            return self.distillation.top_k_term(pages, rows, coefficients)
        states = teacher_states(pages, self.last_layers[1], rows, dtype)
        return self.distillation.head_term(states, coefficients, dtype, ids_alone=ids_alone)


@register("boundary")
class Boundary(TaughtMethod):
    """Distributions at every shared boundary, with one teacher or several."""

    options_type: ClassVar[type[BaseModel]] = BoundaryOptions
    aligned: ClassVar[Aligned] = "boundary"

    def __init__(self, options: BoundaryOptions, setting: MethodSetting) -> None:
        """Refuses what `BoundaryTeacher` refuses, and to be without a teacher (ConfigError)."""

        def of(teacher: TeacherSetting) -> BoundaryTeacher:
            return BoundaryTeacher(
                options, setting.student, teacher, aligned=self.aligned, method=self.name, seed=setting.seed
            )

        super().__init__(options, setting, of)
        self.per_label = per_label(options.kd_reduction, "kd")

    @classmethod
    def knowledge_needs(cls, options: BoundaryOptions) -> KnowledgeNeeds:
        with_head = options.kd_source == "head"
        return KnowledgeNeeds(head=with_head, images=with_head and options.kd_vocabulary in EVENTS)

    @classmethod
    def term_names(cls, options: BoundaryOptions) -> tuple[str, ...]:
        return ("kd", "cos") if options.lambda_cos else ("kd",)

    @property
    def student_needs(self) -> StudentNeeds:
        last = (self.last_layer,)
        return StudentNeeds(layers=last, attention_layers=last if self.options.lambda_cos else ())

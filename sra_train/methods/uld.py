"""ULD: next-token distributions compared by rank, blind to what the ids mean (docs/method.md, section 10).

    L = alpha CE + (1 - alpha) sum_j lambda_j D_j,     D_j = mean over rows of sum_i | p_(i) - q_(i) |

After "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs", arXiv 2402.12030. The i-th
token of a response is compared with the teacher's i-th of the same response, the end included, as far as both go: with
unlike tokenizers the two soon stand at different places of the text, which the method bears on purpose.

Choices that the paper leaves open or that comparisons made otherwise: rows of an example are averaged (kd_reduction),
and the shares are 0.5 and 0.5, as in the comparisons this project repeats; the paper adds 1.5 times the distance to the
whole cross entropy, which is alpha=0.4 at 2.5 times the learning rate. Distributions are whole, not truncated.

Shapes: B examples, S rows of the batch, D_t the teacher's hidden size.
"""

from __future__ import annotations

import math
from typing import ClassVar

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
    StepTotals,
    StudentOutput,
    TeacherBatch,
    TeacherSetting,
)
from sra_train.methods.base import TaughtMethod, register
from sra_train.methods.terms.aligned import (
    Reduction,
    divisor,
    item_counts,
    item_weights,
    per_label,
    teacher_states,
)
from sra_train.methods.terms.cross_entropy import sum_per_example
from sra_train.methods.terms.head_loss import HeadTerm, product_dtype
from sra_train.methods.terms.head_terms import TaughtRows, head_terms
from sra_train.methods.terms.sorted_distance import SortedDistanceTerm
from sra_train.methods.terms.teacher_head import TeacherHead, chunked
from sra_train.methods.terms.teachers import Taught


class ULDOptions(BaseModel):
    """Sorted next-token distributions, response starts aligned."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: float = Field(0.5, description="share of cross entropy")
    temperature: float = Field(1.0, description="of both distributions, before they are sorted")
    kd_reduction: Reduction = Field(
        "mean", description="mean or sum: over an example's rows; token: over the labels of the step, as cross entropy"
    )

    @model_validator(mode="after")
    def check(self) -> ULDOptions:
        """Refuse values that mean nothing."""
        if not 0 <= self.alpha < 1:
            raise ConfigError(f"alpha={self.alpha}: must lie in [0, 1); with 1 nothing is distilled: method=sft")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature={self.temperature}: must be a positive finite number")
        return self


class ULDTeacher(nn.Module):
    """The term of one teacher; nothing in it is trained."""

    def __init__(self, options: ULDOptions, student: ModelShape, setting: TeacherSetting) -> None:
        """Refuses a teacher whose head is not known (ConfigError)."""
        super().__init__()
        self.options, self.name, self.weight = options, setting.name, setting.weight
        self.last_layers = student.num_layers, setting.shape.num_layers
        self.head = TeacherHead(setting.knowledge, method="uld")

    @property
    def needs(self) -> CacheNeeds:
        """What is read of the teacher's pages."""
        return CacheNeeds(
            hidden=(self.last_layers[1],), aligned="response", tokens=RowKind("method=uld", "choose method=sra")
        )

    def forward(
        self, output: StudentOutput, batch: Batch, pages: TeacherBatch, totals: StepTotals, *, with_labels: bool
    ) -> Taught:
        """What this teacher adds; `with_labels`: the cross entropy comes along, in the same pass over the head."""
        options, rows = self.options, pages.aligned
        assert rows is not None, "the reader fills what `needs` asks for"
        weights = item_weights(rows.example, batch, options.kd_reduction)
        share = (1 - options.alpha) * self.weight / divisor(options.kd_reduction, totals)
        hidden = output.hidden[self.last_layers[0]]
        dtype = product_dtype(hidden)
        states = teacher_states(pages, self.last_layers[1], rows, dtype)
        term = self._term(states, batch.weight[rows.example] * weights * share)
        found = head_terms(
            output.head,
            hidden,
            batch,
            ce_factor=options.alpha / max(totals.labels, 1) if with_labels else None,
            taught=TaughtRows(term=term, rows=rows, other_labels=rows.other_labels, pooled=None, ids=None),
        )
        assert found.taught is not None
        values = {"uld": sum_per_example(weights * found.taught, rows.example, len(batch.weight))}
        return Taught(
            found.total, found.ce_sum, values, item_counts(rows.example, batch, pages, name="rows", single="row")
        )

    def _term(self, states: Tensor, coefficients: Tensor) -> HeadTerm:
        """The distance at the rows; `states` [S, D_t] in the dtype of the products, `coefficients` [S]."""
        head = chunked(self.head.of(states.dtype))
        return SortedDistanceTerm(states, head, coefficients, temperature=self.options.temperature)


@register("uld")
class ULD(TaughtMethod):
    """Sorted distributions with one teacher or several."""

    options_type: ClassVar[type[BaseModel]] = ULDOptions

    def __init__(self, options: ULDOptions, setting: MethodSetting) -> None:
        """Refuses what `ULDTeacher` refuses, and to be without a teacher (ConfigError)."""
        super().__init__(options, setting, lambda teacher: ULDTeacher(options, setting.student, teacher))
        self.per_label = per_label(options.kd_reduction, "uld")

    @classmethod
    def knowledge_needs(cls, options: ULDOptions) -> KnowledgeNeeds:
        return KnowledgeNeeds(head=True)

    @classmethod
    def term_names(cls, options: ULDOptions) -> tuple[str, ...]:
        return ("uld",)

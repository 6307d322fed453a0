"""ALM: probabilities of whole chunks of text, at the boundaries both tokenizers share (docs/method.md, section 10).

    L   = alpha CE + (1 - alpha) sum_j lambda_j D_j
    D_j = mean over chunks of  - a log b - (1 - a) log(1 - b),     a = p^(1/T), b = q^(1/T), T = 100
    log p = sum over the teacher's tokens of the chunk of log p(token | what is before it); log q likewise

After "Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching", arXiv 2503.20083. A chunk is a span
(section 2): the smallest piece of text that both sides cut at its two ends. Of the teacher only the probability of its
own next tokens is read: no state, no attention, no head.

What is compared is the probability of ONE outcome, the chunk that is there, against everything else. Choices of the
paper that are not built: other divergences in the place of cross entropy (with it they share the optimum), leaving out
or correcting chunks whose ends are unlike each other's for the two tokenizers (its debiasing), states of both models
beside the chunks, and weighing the losses by the size of their gradients; the shares are fixed here.

Shapes: B examples, L label rows, C chunks of the batch.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from sra_data.errors import ConfigError, ShardError
from sra_train.contract import (
    Batch,
    CacheNeeds,
    KnowledgeNeeds,
    LossTerms,
    MethodSetting,
    RowKind,
    StepTotals,
    StudentOutput,
    TeacherBatch,
    TeacherSetting,
)
from sra_train.methods.base import TaughtMethod, register
from sra_train.methods.terms.aligned import Reduction, divisor, item_counts, item_weights, per_label
from sra_train.methods.terms.chunk_likelihood import chunk_cross_entropy
from sra_train.methods.terms.cross_entropy import rows_of, sum_per_example
from sra_train.methods.terms.head_rows import sum_rows, token_log_probs
from sra_train.methods.terms.teachers import Taught, together


class ALMOptions(BaseModel):
    """Probabilities of the chunks between shared boundaries."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: float = Field(0.5, description="share of cross entropy")
    temperature: float = Field(100.0, description="T; chunk probabilities are compared as p^(1/T)")
    kd_reduction: Reduction = Field(
        "mean", description="mean or sum: over an example's chunks; token: over the labels of the step"
    )

    @model_validator(mode="after")
    def check(self) -> ALMOptions:
        """Refuse values that mean nothing."""
        if not 0 <= self.alpha < 1:
            raise ConfigError(f"alpha={self.alpha}: must lie in [0, 1); with 1 nothing is distilled: method=sft")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature={self.temperature}: must be a positive finite number")
        return self


class ALMTeacher(nn.Module):
    """The term of one teacher; nothing in it is trained, and nothing is known of the teacher."""

    def __init__(self, options: ALMOptions, setting: TeacherSetting) -> None:
        super().__init__()
        self.options, self.name, self.weight = options, setting.name, setting.weight

    @property
    def needs(self) -> CacheNeeds:
        """What is read of the teacher's pages."""
        return CacheNeeds(next_log_prob=True, chunks=True, tokens=RowKind("method=alm", "choose method=sra"))

    def forward(self, log_probs: Tensor, batch: Batch, pages: TeacherBatch, totals: StepTotals) -> Taught:
        """What this teacher adds; `log_probs` [L] of the student's labels, with gradient."""
        options, chunks = self.options, pages.chunks
        assert chunks is not None, "the reader fills what `needs` asks for"
        if pages.next_log_prob is None:
            raise ShardError(
                f"teacher {pages.name}: its pages hold no next_log_prob, which the method reads; run"
                " `sra-data cache-teacher --granularity token` into a new folder"
            )
        count = len(chunks.example)
        taught = pages.next_log_prob.reshape(-1).index_select(0, chunks.teacher_positions)
        losses = chunk_cross_entropy(
            teacher_log_probs=sum_rows(taught.to(log_probs.dtype), chunks.chunk_of_position, count),
            student_log_probs=sum_rows(log_probs.index_select(0, chunks.labels), chunks.chunk_of_label, count),
            temperature=options.temperature,
        )
        weights = item_weights(chunks.example, batch, options.kd_reduction).to(losses.dtype)
        values = sum_per_example(weights * losses, chunks.example, len(batch.weight))
        share = (1 - options.alpha) * self.weight / divisor(options.kd_reduction, totals)
        return Taught(
            total=share * (batch.weight * values).sum(),
            ce_sum=None,
            values={"alm": values.detach()},
            counts=item_counts(chunks.example, batch, pages, name="chunks", single="chunk"),
        )


@register("alm")
class ALM(TaughtMethod):
    """Chunk probabilities with one teacher or several; the student's head is read once for all of them."""

    options_type: ClassVar[type[BaseModel]] = ALMOptions

    def __init__(self, options: ALMOptions, setting: MethodSetting) -> None:
        """Refuses to be without a teacher (ConfigError)."""
        super().__init__(options, setting, lambda teacher: ALMTeacher(options, teacher))
        self.per_label = per_label(options.kd_reduction, "alm")

    @classmethod
    def knowledge_needs(cls, options: Any) -> KnowledgeNeeds:
        return KnowledgeNeeds()

    @classmethod
    def term_names(cls, options: Any) -> tuple[str, ...]:
        return ("alm",)

    def forward(self, output: StudentOutput, batch: Batch, totals: StepTotals) -> LossTerms:
        """The loss of one micro-batch.

        Raises:
            ShardError: If the batch lacks the teacher's log-probabilities.
        """
        rows = batch.label_rows
        states = rows_of(output.hidden[self.last_layer], rows.positions)
        log_probs = token_log_probs(output.head, states, rows.targets)
        ce_sum = -sum_per_example(log_probs, rows.example, len(batch.weight))
        found = [
            teacher(log_probs, batch, pages, totals)
            for teacher, pages in zip(self.teachers, batch.teachers, strict=True)
        ]
        cross_entropy = self.options.alpha / max(totals.labels, 1) * (batch.weight * ce_sum).sum()
        first = Taught(cross_entropy + found[0].total, ce_sum.detach(), found[0].values, found[0].counts)
        shares = {teacher.name: teacher.weight for teacher in self.teachers}
        return together([first, *found[1:]], shares, batch, totals, per_label=self.per_label)

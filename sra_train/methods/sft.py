"""SFT: cross entropy only, the yardstick of every distillation method. No teacher's pages are opened."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from sra_train.contract import (
    Batch,
    CacheNeeds,
    KnowledgeNeeds,
    LossTerms,
    MethodSetting,
    StepTotals,
    StudentNeeds,
    StudentOutput,
)
from sra_train.methods.base import Method, register
from sra_train.methods.terms.cross_entropy import count_labels
from sra_train.methods.terms.head_terms import head_terms


class SFTOptions(BaseModel):
    """Cross entropy only: nothing to choose."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@register("sft")
class SFT(Method):
    """CE = sum over labels of -log p, divided by the labels of the global step."""

    options_type = SFTOptions

    def __init__(self, options: SFTOptions, setting: MethodSetting) -> None:
        super().__init__()
        self.options = options
        self.last_layer = setting.student.num_layers

    @classmethod
    def knowledge_needs(cls, options: SFTOptions) -> KnowledgeNeeds | None:
        return None

    @classmethod
    def term_names(cls, options: SFTOptions) -> tuple[str, ...]:
        return ()

    @property
    def needs(self) -> tuple[CacheNeeds, ...]:
        return ()

    @property
    def student_needs(self) -> StudentNeeds:
        return StudentNeeds(layers=(self.last_layer,))

    def forward(self, output: StudentOutput, batch: Batch, totals: StepTotals) -> LossTerms:
        """The cross entropy of one micro-batch."""
        scale = 1 / max(totals.labels, 1)
        found = head_terms(output.head, output.hidden[self.last_layer], batch, ce_factor=scale, taught=None)
        ce_sum = found.ce_sum
        assert ce_sum is not None
        return LossTerms(
            total=found.total,
            terms={"ce": (batch.weight * ce_sum).sum() * scale},
            per_example={"ce_sum": ce_sum, "labels": count_labels(batch).to(ce_sum.dtype)},
        )

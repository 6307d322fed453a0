"""SFT: cross entropy only, the yardstick of every distillation method. The teacher's pages are not opened."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from sra_train.contract import Batch, CacheNeeds, LossTerms, MethodSetting, StepTotals, StudentNeeds, StudentOutput
from sra_train.methods.base import Method, register
from sra_train.methods.terms.cross_entropy import CrossEntropyTerm, LabelledRows, count_labels
from sra_train.methods.terms.head_loss import RowGroup, head_losses


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

    @property
    def needs(self) -> CacheNeeds:
        return CacheNeeds()

    @property
    def student_needs(self) -> StudentNeeds:
        return StudentNeeds(layers=(self.last_layer,))

    def forward(self, output: StudentOutput, batch: Batch, totals: StepTotals) -> LossTerms:
        """The cross entropy of one micro-batch."""
        rows = LabelledRows.all_of(batch)
        scale = 1 / max(totals.labels, 1)
        term = CrossEntropyTerm(rows.targets, rows.coefficients(batch, scale))
        total, [[losses]] = head_losses(output.head, [RowGroup(rows.states(output.hidden[self.last_layer]), [term])])
        ce_sum = rows.sums(losses, batch)
        return LossTerms(
            total=total,
            terms={"ce": (batch.weight * ce_sum).sum() * scale},
            per_example={"ce_sum": ce_sum, "labels": count_labels(batch).to(ce_sum.dtype)},
        )

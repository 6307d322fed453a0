"""Spans of a batch as states and weights, for one teacher: pooled on both sides once, for all terms of one forward.

Shapes: B examples, N student tokens, P teacher positions, K spans, D_s / D_t hidden sizes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sra_data.errors import ShardError
from sra_data.spans.pooling import center_of_mass, salience, span_last, span_mass, span_mean
from sra_train.contract import Batch, StudentOutput, TeacherBatch

Pooling = Literal["attention", "mean", "last"]


class SpanStates:
    """Pooled spans of both sides, made once for all terms of one forward."""

    def __init__(
        self, output: StudentOutput, batch: Batch, teacher: TeacherBatch, *, pooling: Pooling, salience_power: float
    ) -> None:
        self.output, self.batch, self.pages = output, batch, teacher
        self.pooling, self.salience_power = pooling, salience_power
        self.mask = teacher.span_mask  # [B, K]
        self._pooled: dict[tuple[str, int], Tensor] = {}
        self._salience: dict[int, Tensor] = {}
        self._fallbacks: dict[str, Tensor] = {}

    def student(self, layer: int) -> Tensor:
        """[B, K, D_s], with gradient to the student's hidden states."""
        if ("student", layer) not in self._pooled:
            attention = self.output.attention.get(layer)
            hidden = self.output.hidden[layer]
            ids, last = self.pages.student_span_ids, self.pages.student_span_last
            self._pooled["student", layer] = self._pool("student", hidden, ids, attention, last)
        return self._pooled["student", layer]

    def teacher(self, layer: int) -> Tensor:
        """[B, K, D_t]."""
        if ("teacher", layer) not in self._pooled:
            attention = self._attention(layer) if self.pooling == "attention" else None
            hidden = self.teacher_hidden(layer)
            ids, last = self.pages.teacher_span_ids, self.pages.teacher_span_last
            self._pooled["teacher", layer] = self._pool("teacher", hidden, ids, attention, last)
        return self._pooled["teacher", layer]

    def _pool(self, side: str, hidden: Tensor, ids: Tensor, attention: Tensor | None, last: Tensor) -> Tensor:
        num_spans = self.mask.shape[1]
        if self.pooling == "mean":
            return span_mean(hidden, ids, num_spans)
        if self.pooling == "last":
            return span_last(hidden, last, self.mask)
        assert attention is not None, f"no attention of the {side}"
        centers = center_of_mass(hidden, ids, attention, num_spans)
        name = f"zero_mass_spans_{side}"
        self._fallbacks[name] = self._fallbacks.get(name, 0) + centers.num_fallbacks
        return centers.states

    def salience(self, layer: int) -> Tensor:
        """w_k at a layer of the teacher [B, K]."""
        if layer not in self._salience:
            if self.salience_power == 0:
                mass = self.mask.to(self.batch.weight.dtype)
            else:
                mass = span_mass(self.pages.teacher_span_ids, self._attention(layer), self.mask.shape[1])
            self._salience[layer] = salience(mass, self.mask, self.salience_power)
        return self._salience[layer]

    def teacher_hidden(self, layer: int) -> Tensor:
        """Cached states [B, P, D_t]."""
        return self._column(self.pages.hidden, layer, "hidden states")

    def _attention(self, layer: int) -> Tensor:
        return self._column(self.pages.attention, layer, "attention")

    def nothing(self) -> Tensor:
        """Zeros [B]."""
        return torch.zeros_like(self.batch.weight)

    def counts(self) -> dict[str, Tensor]:
        """Events of this micro-batch."""
        real, has_teacher = self.batch.weight > 0, self.pages.has_teacher
        return {
            "spans": self.mask.sum(),
            "examples_without_span": (real & has_teacher & ~self.mask.any(1)).sum(),
            "rows_without_teacher": (real & ~has_teacher).sum(),
            **self._fallbacks,
        }

    def _column(self, columns: dict[int, Tensor], layer: int, what: str) -> Tensor:
        if layer not in columns:
            raise ShardError(
                f"teacher {self.pages.name}: its pages hold no {what} of layer {layer}, which the method reads; "
                f"run `sra-data cache-teacher --layers {layer}` into a new folder"
            )
        return columns[layer]

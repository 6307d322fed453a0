"""One example of a small world, without padding."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

END = (12, 16)  # end of sequence: the student's id, the teacher's


@dataclass
class Example:
    """One example without padding."""

    name: str
    student_hidden: dict[int, Tensor]
    teacher_hidden: dict[int, Tensor]
    student_attention: dict[int, Tensor]
    teacher_attention: dict[int, Tensor]
    student_spans: list[list[int]]
    teacher_spans: list[list[int]]
    ids: list[int]
    label_start: int  # tokens [label_start, label_stop) are labelled
    label_stop: int
    top_k_ids: Tensor | None = None
    top_k_values: Tensor | None = None
    log_tails: dict[float, Tensor] = field(default_factory=dict)
    next_log_prob: Tensor | None = None  # [P]
    closes: bool = True  # whether the last label is the end of sequence

    @property
    def spans(self) -> tuple[list[list[int]], list[list[int]]]:
        """Of the student, and of the teacher."""
        return self.student_spans, self.teacher_spans

    @property
    def labels(self) -> list[tuple[int, int]]:
        return [(token - 1, self.ids[token]) for token in range(max(self.label_start, 1), self.label_stop)]

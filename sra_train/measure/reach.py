"""What the student itself says where `cache-teacher` has asked the teacher: which of the two knows more, beforehand.

At the start of a span both have read the same text, and the student's true next token is an event for both. A teacher
that finds those tokens less probable than the untrained student does cannot teach them through that map of ids,
however good it is at its own tokens.

Legend: R boundaries, N tokens, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sra_data.models.decoder import unwrap
from sra_data.models.output_head import OutputHead
from sra_data.positions import most_positions
from sra_data.shards.pairs import cached_starts
from sra_train.contract import LabelRows
from sra_train.data.sources import Sources, TeacherSource
from sra_train.likelihood import token_nats
from sra_train.student import StudentModel

MAPS = {"first_piece": "by first piece", "equal_bytes": "by equal bytes"}


def lines_of_reach(student: StudentModel, sources: Sources, device: torch.device) -> list[str]:
    """A line for every teacher that was asked about this student's tokens; the student is on `device`."""
    found = []
    for teacher in sources.teachers:
        asked = [one for one in teacher.pages.facts.get("reach") or () if one["student"] == sources.side_name]
        if asked and asked[0].get("rows"):
            own = own_log2_prob(student, teacher, sources, asked[0]["rows"], device)
            found.append(line_of(teacher.name, asked[0], own))
    return found


@torch.no_grad()
def own_log2_prob(
    student: StudentModel, teacher: TeacherSource, sources: Sources, rows: list[int], device: torch.device
) -> float:
    """Mean log2 of the student's probability of its own next token at the boundaries of some rows."""
    columns = zip(
        sources.side.read(rows, ["ids"]),
        teacher.pair.read(rows),
        teacher.side.read(rows, ["response_spans"]),
        strict=True,
    )
    head, nats, count = OutputHead.from_model(student.model), 0.0, 0
    most = most_positions(unwrap(student.model).config)
    was_training = student.training
    student.eval()
    for ours, spans, theirs in columns:
        starts = spans.student_spans[cached_starts(spans, theirs.response_spans), 0].astype(np.int64)
        starts = starts[starts > 0]  # nothing stands before the first token to predict it from
        if len(starts) and (most is None or len(ours.ids) <= most):  # rows that are not trained on may be longer
            ids = torch.from_numpy(ours.ids.astype(np.int64)).to(device)
            places = torch.from_numpy(starts).to(device)
            targets = LabelRows(places - 1, torch.zeros_like(places), ids[places])
            said = student.body(ids[None], torch.tensor([len(ids)], device=device)).last_hidden_state
            nats += float(token_nats(hidden=said, head=head, rows=targets).sum())
            count += len(starts)
    student.train(was_training)
    return -nats / max(count, 1) / math.log(2)


def line_of(teacher: str, heard: Mapping[str, Any], own: float) -> str:
    """For people: both numbers and what they mean."""
    said = {name: heard[name]["log2_prob"] for name in MAPS}
    words = ", ".join(
        f"{value:.2f} {MAPS[name]} ({heard[name]['share']:.1%} of them)"
        for name, value in said.items()
        if value is not None
    )
    best = max((value for value in said.values() if value is not None), default=-math.inf)
    what = "it knows them better than the student" if best > own else "IT KNOWS THEM WORSE than the student"
    return (
        f"the student's next tokens at {heard['starts']:,} sampled boundaries: mean log2 p {own:.2f} of the student, "
        f"{words or 'nothing'} of {teacher}: {what}"
    )

"""Rows of both sides that predict a label: what a slow loop finds, in tables as wide as the longest example."""

from __future__ import annotations

import numpy as np
import torch

from sra_train.contract import CacheNeeds
from sra_train.data.collate import collate
from sra_train.data.pages import PageForm
from sra_train.data.response_rows import slots_of
from sra_train.data.staging import StagingBuffer
from tests.unit.methods import collated

NEEDS = CacheNeeds(ids=True, responses=True)


def batch_of(rows):
    form = PageForm("teacher-0", NEEDS, {})
    return collate([one and one.parts for one in rows], forms=[form], staging=StagingBuffer(pinned=False))


def test_rows_are_those_a_slow_loop_finds() -> None:
    two = collated.make(1, [[(3, 1)], [(1, 1), (1, 2)]])
    rows = [
        collated.make(0, [[(1, 1), (2, 3)]]),
        None,
        two,
        collated.make(2, [[(1, 2)]], closes=False).without_teacher(),
    ]
    batch = batch_of(rows)
    (pages,) = batch.teachers
    found, width = pages.responses, pages.ids.shape[1]
    student, teacher = [], []
    for slot, one in enumerate(rows):
        if one is None:
            continue
        own = sum(stop - start for start, stop in one.parts.side.label_spans.tolist())
        student += [(slot, place) for place in range(own)]
        (part,) = one.parts.teachers
        if part is None:
            continue
        labels = [token for start, stop in part.side.label_spans.tolist() for token in range(start, stop)]
        cached, ids = part.positions.tolist(), part.side.ids.tolist()
        for place, token in enumerate(labels):
            row = cached.index(token - 1)
            assert int(pages.ids[slot, row]) == ids[token - 1]
            teacher.append((slot, place, slot * width + row, ids[token]))
    assert found.student_width == 7
    assert found.teacher_width == 6
    assert found.student_slots.tolist() == [slot * 7 + place for slot, place in student]
    assert len(found.student_slots) == len(batch.label_rows.positions)
    assert found.teacher_slots.tolist() == [slot * 6 + place for slot, place, _, _ in teacher]
    assert found.teacher.example.tolist() == [slot for slot, _, _, _ in teacher]
    assert found.teacher.positions.tolist() == [position for _, _, position, _ in teacher]
    assert found.teacher.targets.tolist() == [target for _, _, _, target in teacher]


def test_a_response_that_was_cut_has_no_end_to_predict() -> None:
    """The last cached row of a response without a closing token predicts nothing."""
    batch = batch_of([collated.make(0, [[(1, 1), (2, 3)]], closes=False)])
    (pages,) = batch.teachers
    assert len(pages.responses.teacher.positions) == 4
    assert pages.ids.shape[1] == 5
    assert int(pages.next_ids[0, -1]) == -1


def test_a_batch_of_nothing_has_tables_one_wide() -> None:
    slots, width = slots_of(np.zeros(3, np.int64))
    assert (len(slots), width) == (0, 1)
    (pages,) = batch_of([None, None]).teachers
    assert len(pages.responses.teacher.positions) == 0
    assert pages.responses.student_slots.dtype == torch.int64


def test_slots_of_the_worked_example() -> None:
    slots, width = slots_of(np.array([2, 3]))
    assert (slots.tolist(), width) == ([0, 1, 3, 4, 5], 3)

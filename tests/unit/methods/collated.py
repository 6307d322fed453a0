"""Small examples as rows of shards, made a batch by the package's own `collate`, for methods that read ids.

Vocabularies, shared pairs and heads are those of `worlds.py`. An example has one or several turns; each is a prompt of
two tokens of the student's and three of the teacher's, then a response of spans of given sizes, then the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sra_data.shards.codecs import encode_float32
from sra_data.shards.pairs import PairNearest
from sra_data.shards.schema import SideRow, TeacherRow, response_positions
from sra_data.shards.store import PairSpans
from sra_train.contract import Batch, InputEmbeddings, LossTerms, StepTotals, StudentOutput, TeacherSetting, map_tensors
from sra_train.data.collate import collate
from sra_train.data.examples import ExampleParts, TeacherPart
from sra_train.data.pages import PageForm
from sra_train.data.staging import StagingBuffer
from sra_train.methods.base import Method
from tests.unit.methods import worlds

Sizes = Sequence[tuple[int, int]]  # (student's tokens, teacher's tokens) of each span
LAST = worlds.TEACHER_LAYERS
PROMPTS = (2, 3)
TEACHER_IDS = [one for one in range(worlds.END[1]) if one != 3]  # id 3 never occurs: its embedding is not kept

# What the ids stand for, and where the teacher's go: not the nearest of all, for a method takes any map.
NEAREST = PairNearest(
    student_of_teacher=np.array([0, 1, 2, 3, 2, 4, 9, 7, 8, 9, 10, 11, 1, 0, 7, -1, -1], np.int32),
    student_pieces=[*b"cat dog the th e . un like ly a i ing".split(), b""],
    teacher_pieces=[*b"cats do the t he e .a unlike lyi an in ging og ca lik y".split(), b""],
)


@dataclass(frozen=True)
class Known:
    """One example as the shards hold it, and the student's last states."""

    parts: ExampleParts
    hidden: Tensor  # [N, D_s] float64

    @property
    def name(self) -> str:
        return self.parts.side.id

    @property
    def num_labels(self) -> int:
        return int(sum(stop - start for start, stop in self.parts.side.label_spans.tolist()))

    def teacher_hidden(self, place: int = 0) -> Tensor:
        """[P, D_t] float64, as they were stored."""
        part = self.parts.teachers[place]
        assert part is not None
        return torch.from_numpy(part.pages.hidden[LAST].float32()).double()

    def without_teacher(self, place: int = 0) -> Known:
        teachers = [None if at == place else one for at, one in enumerate(self.parts.teachers)]
        return replace(self, parts=replace(self.parts, teachers=tuple(teachers)))


def make(
    seed: int, turns: Sequence[Sizes], *, closes: bool = True, widths: Sequence[int] = (worlds.TEACHER_WIDTH,)
) -> Known:
    """An example with a teacher of each width; all read the same spans but say different things."""
    random = np.random.default_rng(seed)
    name = f"example-{seed}"
    student, teacher, spans = [], [], []
    sides: list[tuple[list[tuple[int, int]], list[tuple[int, int]]]] = [([], []), ([], [])]
    for sizes in turns:
        student += random.integers(0, worlds.END[0], PROMPTS[0]).tolist()
        teacher += random.choice(TEACHER_IDS, PROMPTS[1]).tolist()
        begin = len(student), len(teacher)
        for own, other in sizes:
            spans.append((len(student), len(student) + own, len(teacher), len(teacher) + other))
            student += random.integers(0, worlds.END[0], own).tolist()
            teacher += random.choice(TEACHER_IDS, other).tolist()
            image = int(NEAREST.student_of_teacher[teacher[-1]])
            if (own, other) == (1, 1) and image >= 0:  # pieces that are near each other, as they would be
                student[-1] = image
        stop = len(student), len(teacher)
        if closes:
            student.append(worlds.END[0])
            teacher.append(worlds.END[1])
        for (responses, labels), start, end in zip(sides, begin, stop, strict=True):
            responses.append((start, end))
            labels.append((start, end + closes))
    table = np.array(spans, np.int32).reshape(-1, 4)
    of_teacher = side(name, teacher, *sides[1])
    count = len(response_positions(of_teacher.response_spans))
    pages = [
        TeacherRow(
            id=name, hidden={LAST: encode_float32(random.standard_normal((count, w)).astype(np.float32), "fp32")}
        )
        for w in widths
    ]
    pair = PairSpans(name, "ok", table[:, :2], table[:, 2:])
    parts = ExampleParts(side(name, student, *sides[0]), tuple(TeacherPart(pair, of_teacher, one) for one in pages))
    return Known(parts, torch.from_numpy(random.standard_normal((len(student), worlds.STUDENT_WIDTH))))


def side(name: str, ids: list[int], responses: list[tuple[int, int]], labels: list[tuple[int, int]]) -> SideRow:
    """A side's row; texts are of no interest here."""
    nothing = np.zeros(len(ids), np.int32)
    return SideRow(
        id=name,
        status="ok",
        ids=np.array(ids, np.int32),
        starts=nothing,
        ends=nothing,
        kinds=nothing.astype(np.uint8),
        response_ranges=np.zeros((len(responses), 2), np.int32),
        response_turns=np.arange(len(responses), dtype=np.int32),
        response_spans=np.array(responses, np.int32).reshape(-1, 2),
        label_spans=np.array(labels, np.int32).reshape(-1, 2),
    )


def batch_of(
    rows: Sequence[Known | None], method: Method, *, garbage: float = 7.0, dtype: torch.dtype = torch.float64
) -> tuple[Batch, Tensor]:
    """The batch in one dtype, and the student's last states [B, N, D_s]; padding of the states holds `garbage`."""
    forms = []
    for place, needs in enumerate(method.needs):
        like = next((part for one in rows if one and (part := one.parts.teachers[place])), None)
        width = worlds.TEACHER_WIDTH if like is None else like.pages.hidden[LAST].array.shape[1]
        columns = {f"hidden.{LAST}": ((width,), torch.float32)}
        forms.append(PageForm(f"teacher-{place}", needs, columns, end_of_sequence=worlds.END, nearest=NEAREST))
    made = collate([one and one.parts for one in rows], forms=forms, staging=StagingBuffer(pinned=False))
    batch = map_tensors(made, lambda one: one.to(dtype) if one.is_floating_point() else one)
    hidden = torch.full((*batch.input_ids.shape, worlds.STUDENT_WIDTH), garbage, dtype=dtype)
    for slot, one in enumerate(rows):
        if one is not None:
            hidden[slot, : len(one.hidden)] = one.hidden.to(dtype)
    return batch, hidden


def totals_of(rows: Sequence[Known | None]) -> StepTotals:
    real = [one for one in rows if one is not None]
    return StepTotals(labels=sum(one.num_labels for one in real), examples=len(real))


def student_embeddings(dtype: torch.dtype = torch.float64) -> Tensor:
    """[V, D_s]."""
    generator = torch.Generator().manual_seed(77)
    return torch.randn(worlds.STUDENT_VOCABULARY, worlds.STUDENT_WIDTH, generator=generator, dtype=torch.float64).to(
        dtype
    )


def teacher_embeddings(width: int = worlds.TEACHER_WIDTH, seed: int = 78) -> InputEmbeddings:
    """Of the ids that occur, times what their family multiplies them by."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([*TEACHER_IDS, worlds.END[1]])
    weight = torch.randn(len(ids), width, generator=generator, dtype=torch.float64)
    return InputEmbeddings(ids, weight, scale=1.5)


def teacher(head: worlds.Head, *, name: str = "teacher-0", weight: float = 1.0) -> TeacherSetting:
    """A teacher with input embeddings."""
    setting = worlds.teacher_setting(head, name=name, weight=weight)
    embeddings = teacher_embeddings(head.weight.shape[1])
    return replace(setting, knowledge=replace(setting.knowledge, embeddings=embeddings))


def run(
    method: Method,
    rows: Sequence[Known | None],
    head: worlds.Head,
    totals: StepTotals | None = None,
    **options: Any,
) -> tuple[LossTerms, Tensor]:
    """The losses of a batch, and the student's states they were computed from, a leaf."""
    batch, hidden = batch_of(rows, method, **options)
    hidden.requires_grad_(True)
    output = StudentOutput({worlds.STUDENT_LAYERS: hidden}, {}, head.live(), student_embeddings(hidden.dtype))
    return method(output, batch, totals or totals_of(rows)), hidden

"""A student, its method and one batch of given shards, put together as a run does it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sra_data.shards.store import ShardSet
from sra_train.choosing import choose_sources, choose_student
from sra_train.config import load_config
from sra_train.contract import Batch, MethodSetting, StepTotals
from sra_train.data.collate import collate
from sra_train.data.knowledge import teacher_settings
from sra_train.data.reader import RowReader
from sra_train.data.sources import Sources
from sra_train.data.staging import StagingBuffer
from sra_train.data.table import RowTable
from sra_train.methods.base import method_type
from sra_train.student import StudentModel, load_student, model_shape

FIVE = ("ce_sum", "labels", "cos", "geo", "kd")


@dataclass(frozen=True)
class Lesson:
    """Everything of one forward."""

    sources: Sources
    student: StudentModel
    batch: Batch
    totals: StepTotals

    def per_example(self, batch: Batch | None = None) -> dict[str, torch.Tensor]:
        """The method's numbers of every example, of the cached batch or another."""
        with torch.no_grad():
            return self.student(self.batch if batch is None else batch, self.totals)["per_example"]


@contextmanager
def lesson(
    shards: Path, student: Path, rows: Sequence[int], *, teachers: Sequence[object] = (), **options: object
) -> Iterator[Lesson]:
    """One batch of `rows` for a student in evaluation mode that learns by SRA with `options`."""
    overrides = {"data.teachers": [str(one) for one in teachers], "student.name": str(student)}
    config = load_config(overrides=overrides | {f"method.{name}": value for name, value in options.items()})
    with ShardSet.open(shards) as opened:
        chosen = choose_student(opened, config.student)
        kind = method_type(config.method.name)
        needs = kind.knowledge_needs(config.method.options)
        assert needs is not None
        sources = choose_sources(opened, config, side=chosen.side, needs=needs)
        model = load_student(chosen.name, chosen.options)
        setting = MethodSetting(model_shape(model), teacher_settings(sources, needs), seed=3)
        made = StudentModel(model, kind(config.method.options, setting)).eval()
        reader = RowReader(sources, made.method.needs)
        batch = collate(reader(list(rows)), forms=reader.forms, staging=StagingBuffer(pinned=False))
        yield Lesson(sources, made, batch, RowTable.read(sources).totals(np.array(rows)))

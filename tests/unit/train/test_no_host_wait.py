"""No host wait in a step: forward and backward ask for no size and no value that only the device knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sra_data.models.output_head import OutputHead
from sra_data.shards.store import ShardSet
from sra_data.spans import pooling
from sra_train.config import StudentConfig
from sra_train.contract import MethodSetting
from sra_train.data.collate import collate
from sra_train.data.knowledge import teacher_settings
from sra_train.data.reader import RowReader
from sra_train.data.sources import Sources, open_sources
from sra_train.data.staging import StagingBuffer
from sra_train.data.table import RowTable
from sra_train.data.text import response_text
from sra_train.methods.base import method_type
from sra_train.student import StudentModel, load_student, model_shape
from tests.synthetic_shards import STUDENT, TEACHERS, make_shards
from tests.waits import WaitCounter

BOUNDARY = {"kd_position": "boundary"}
OPTIONS = {
    "centre of mass": {},
    "rest": {"kd_vocabulary": "rest", "kd_divergence": "js"},
    "boundary": {**BOUNDARY, "kd_reduction": "mean"},
    "boundary, rest, last": {**BOUNDARY, "kd_vocabulary": "rest", "pooling": "last"},
    "boundary, top k": {**BOUNDARY, "kd_source": "top_k", "kd_divergence": "reverse", "kd_reduction": "salience"},
    "no kd": {"kd": False, "pooling": "mean"},
}
OTHERS = [
    ("uld", {}),
    ("alm", {}),
    ("multilevel-ot", {}),
    ("multilevel-ot", {"ranking": "token"}),
    ("strict", {"lambda_cos": 1.0}),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("waits"), num_teachers=2, num_skipped_by_second=3).shards


@pytest.fixture
def sources(made: Path) -> Iterator[Sources]:
    teachers: list[tuple[str | None, float]] = [(TEACHERS[0], 0.5), (TEACHERS[1], 0.5)]
    with ShardSet.open(made) as shards:
        yield open_sources(shards, side=STUDENT, teachers=teachers)


@pytest.fixture(autouse=True)
def _as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pooling checks its arguments' values on a CPU only, where nobody waits for them."""
    monkeypatch.setattr(pooling, "_check", lambda *_: None)


def student_of(folder: Path, sources: Sources, name: str, options: dict[str, object]) -> StudentModel:
    kind = method_type(name)
    chosen = kind.options_type(**options)
    needs = kind.knowledge_needs(chosen)
    model = load_student(str(folder), StudentConfig())
    teachers = () if needs is None else teacher_settings(sources, needs)
    head = OutputHead.from_model(model).detach()
    return StudentModel(model, kind(chosen, MethodSetting(model_shape(model), teachers, student_head=head)))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("sft", {}),
        ("dskd", {}),
        ("dskdv2", {}),
        ("mined", {}),
        *OTHERS,
        *(("sra", one) for one in OPTIONS.values()),
    ],
)
def test_forward_backward_and_clipping_never_wait(made, sources, method, options) -> None:
    student = student_of(made.parent / "student", sources, method, options)
    if method == "sft":
        sources = Sources(sources.shards, sources.side)
    table, reader = RowTable.read(sources), RowReader(sources, student.method.needs)
    rows, staging = np.flatnonzero(table.is_train)[:6], StagingBuffer(pinned=False)
    examples = reader(rows.tolist(), with_text=True)
    batch = collate([*examples, None], forms=reader.forms, staging=staging)
    text = response_text([*examples, None], batch, staging)
    with WaitCounter() as waits:
        losses = student(batch, table.totals(rows), text.rows)
        losses["total"].backward()
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    assert waits.found == {}
    assert norm > 0
    if method != "sft":
        assert float(losses["counts"][f"rows_without_teacher[{TEACHERS[1]}]"]) > 0


def test_the_counter_sees_what_waits() -> None:
    values = torch.tensor([1.0, 0.0, 2.0])
    with WaitCounter() as waits:
        values.nonzero()
        values[values > 0]
        float(values.sum())
        values.masked_select(values > 0)
        values[torch.tensor([0, 2])]
    assert sorted(name for name, _ in waits.found) == [
        "aten::_local_scalar_dense", "aten::index", "aten::masked_select", "aten::nonzero"
    ]  # fmt: skip
    assert sum(waits.found.values()) == 4

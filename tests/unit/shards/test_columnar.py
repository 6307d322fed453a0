"""Columns in are the rows they stand for: the fast way into a part writes what the slow one does."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_data.errors import ShardError
from sra_data.shards import columnar, writer
from sra_data.shards.columnar import EncodedRows, alignment_columns, corpus_columns
from sra_data.shards.schema import AlignmentRow, CorpusRow
from sra_data.shards.store import Unit, alignment_schema, corpus_schema, cut_row_groups, write_columns, write_part
from tests.unit.shards.builders import ALIGNMENT, full_teacher_schema, int32, make_rows
from tests.unit.shards.test_rows import corpus_and_alignment


@dataclass
class Ragged:
    """The rows of one column, one after the other."""

    values: np.ndarray
    splits: np.ndarray

    @classmethod
    def of(cls, rows: list[Any], *shape: int) -> Ragged:
        """From arrays [n, *shape]."""
        values = np.concatenate([np.zeros((0, *shape), np.int32), *rows])
        return cls(values, np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64))


def corpus_of(rows: list[CorpusRow]) -> EncodedRows:
    """The rows by column."""
    return corpus_columns(
        ids=[row.id for row in rows],
        splits=[row.split for row in rows],
        statuses=[row.status for row in rows],
        texts=[row.text for row in rows],
        response_ranges=Ragged.of([row.response_ranges for row in rows], 2),
        teacher_ids=Ragged.of([row.teacher_ids for row in rows]),
        teacher_ends=Ragged.of([row.teacher_ends for row in rows]),
        teacher_response_spans=Ragged.of([row.teacher_response_spans for row in rows], 2),
    )


def alignment_of(rows: list[AlignmentRow], **changes: Any) -> EncodedRows:
    """The rows by column."""
    columns: dict[str, Any] = {
        "ids": [row.id for row in rows],
        "statuses": [row.status for row in rows],
        "student_ids": Ragged.of([row.student_ids for row in rows]),
        "student_ends": Ragged.of([row.student_ends for row in rows]),
        "label_spans": Ragged.of([row.label_spans for row in rows], 2),
        "student_spans": Ragged.of([row.student_spans for row in rows], 2),
        "teacher_spans": Ragged.of([row.teacher_spans for row in rows], 2),
        "student_texts": [row.student_text for row in rows],
    }
    return alignment_columns(**{**columns, **changes})


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file's bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(st.lists(corpus_and_alignment(), min_size=1, max_size=6), st.integers(0, 6), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_columns_write_the_bytes_that_rows_write(
    pairs: list[tuple[CorpusRow, AlignmentRow]], border: int, most: int
) -> None:
    corpus, alignment = [list(rows) for rows in zip(*pairs, strict=True)]
    groups = cut_row_groups([row.num_positions for row in corpus], max_positions=most)
    unit = Unit(3, 10, 10 + len(pairs))
    encoded = [corpus_of(part) for part in (corpus[:border], corpus[border:]) if part]
    assert [row.num_positions for row in corpus] == np.concatenate([part.num_positions for part in encoded]).tolist()
    aligned = [alignment_of(part) for part in (alignment[:border], alignment[border:]) if part]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        notes = {"seen": 1}
        one = write_part(folder / "rows", corpus_schema(), unit, corpus, groups, notes=notes)
        assert write_columns(folder / "columns", unit, encoded, groups, notes=notes) == one
        assert files_of(folder / "columns") == files_of(folder / "rows")
        two = write_part(folder / "aligned-rows", alignment_schema(), unit, alignment, groups)
        assert write_columns(folder / "aligned-columns", unit, aligned, groups) == two
        assert files_of(folder / "aligned-columns") == files_of(folder / "aligned-rows")


def some_rows() -> list[AlignmentRow]:
    """Four rows of an alignment."""
    return make_rows(4, full_teacher_schema())[ALIGNMENT]  # type: ignore[return-value]


@pytest.mark.parametrize(
    "ids",
    [
        Ragged(np.zeros(4, np.int64), np.arange(5)),
        Ragged(np.zeros((4, 2), np.int32), np.arange(5)),
        Ragged(np.zeros(9, np.int32), np.arange(5)),
        Ragged(np.zeros(3, np.int32), np.arange(4)),
    ],
)
def test_numbers_that_do_not_fit_the_column_are_a_programmers_error(ids: Ragged) -> None:
    with pytest.raises(ValueError, match=r"student_ids|columns of"):
        alignment_of(some_rows(), student_ids=ids)


def test_too_few_rows_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="4 rows for row groups"):
        write_columns(tmp_path, Unit(0, 0, 5), [alignment_of(some_rows())], [3, 2])
    with pytest.raises(ValueError, match="do not hold rows 0:5"):
        write_columns(tmp_path, Unit(0, 0, 5), [alignment_of(some_rows())], [3, 1])
    assert list(tmp_path.iterdir()) == []


def test_a_value_too_large_for_a_part_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar, "LARGEST_VALUE", 80)
    none, no_spans = int32([]), int32([], 0, 2)
    short = AlignmentRow("short", "ok", int32([1, 2]), none, no_spans, no_spans, no_spans)
    rows = [short, short, dataclasses.replace(short, id="long", student_ids=int32(range(30)))]
    with pytest.raises(ShardError, match="example long, column student_ids: 120 bytes"):
        alignment_of(rows)


@pytest.mark.parametrize("column", ["student_ids", "student_text", "num_spans", "hashes"])
def test_what_reads_back_differently_is_not_published(
    column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came from the disk is compared with what was meant, so another table stands for a disk that lies."""
    encoded = alignment_of(some_rows())
    compare = writer._compare

    def compare_with_another(path: Path, schema: Any, groups: Any, written: pa.Table) -> None:
        place = written.column_names.index(column)
        values = written.column(column).to_pylist()
        values[2] = {"num_spans": 77, "student_text": "other"}.get(column) or bytes(len(values[2]))
        changed = pa.array(values, written.schema.field(column).type)
        compare(path, schema, groups, written.set_column(place, written.schema.field(column), changed))

    monkeypatch.setattr(writer, "_compare", compare_with_another)
    with pytest.raises(ShardError, match=f"{column}.*differently"):
        write_columns(tmp_path, Unit(0, 0, 4), [encoded], [2, 2])
    assert list(tmp_path.iterdir()) == []

"""Columns in are the rows they stand for, and columns out are the same: the fast way to and from a part."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_data.errors import ShardError
from sra_data.shards import columnar, writer
from sra_data.shards.columnar import EncodedRows, alignment_columns, corpus_columns, side_columns
from sra_data.shards.kinds import key_values
from sra_data.shards.manifest import kind_of
from sra_data.shards.part import footer_hash
from sra_data.shards.schema import AlignmentRow, ExampleRow, SideRow
from sra_data.shards.store import Receipt, Unit, cut_row_groups, read_part, write_columns, write_part
from tests.unit.shards.builders import (
    ALIGNMENT,
    STUDENT_SIDE,
    TEXT_SECTIONS,
    full_teacher_schema,
    int32,
    make_rows,
    schema_of,
)
from tests.unit.shards.test_rows import rows_of_text

UNIT = Unit(0, 0, 12)
GROUPS = [5, 4, 3]


@dataclass
class Ragged:
    """The rows of one column, one after the other."""

    values: np.ndarray
    splits: np.ndarray

    @classmethod
    def of(cls, rows: list[Any], *shape: int, dtype: type = np.int32) -> Ragged:
        """From arrays [n, *shape]."""
        values = np.concatenate([np.zeros((0, *shape), dtype), *rows])
        return cls(values, np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64))


def corpus_of(rows: list[ExampleRow], **changes: Any) -> EncodedRows:
    """The rows by column."""
    columns: dict[str, Any] = {
        "ids": [row.id for row in rows],
        "splits": [row.split for row in rows],
        "num_bytes": int32([row.num_bytes for row in rows]),
        "prompts": [row.prompt for row in rows],
        "responses": [row.response for row in rows],
        "chats": [row.chat for row in rows],
    }
    return corpus_columns(**{**columns, **changes})


def side_of(rows: list[SideRow], **changes: Any) -> EncodedRows:
    """The rows by column."""
    columns: dict[str, Any] = {
        "ids": [row.id for row in rows],
        "statuses": [row.status for row in rows],
        "token_ids": Ragged.of([row.ids for row in rows]),
        "starts": Ragged.of([row.starts for row in rows]),
        "ends": Ragged.of([row.ends for row in rows]),
        "kinds": Ragged.of([row.kinds for row in rows], dtype=np.uint8),
        "response_ranges": Ragged.of([row.response_ranges for row in rows], 2),
        "response_turns": Ragged.of([row.response_turns for row in rows]),
        "response_spans": Ragged.of([row.response_spans for row in rows], 2),
        "label_spans": Ragged.of([row.label_spans for row in rows], 2),
        "texts": [row.text for row in rows],
    }
    return side_columns(**{**columns, **changes})


def alignment_of(rows: list[AlignmentRow], **changes: Any) -> EncodedRows:
    """The rows by column."""
    columns: dict[str, Any] = {
        "ids": [row.id for row in rows],
        "statuses": [row.status for row in rows],
        "left_spans": Ragged.of([row.left_spans for row in rows], 2),
        "right_spans": Ragged.of([row.right_spans for row in rows], 2),
    }
    return alignment_columns(**{**columns, **changes})


ENCODE: dict[str, Callable[..., EncodedRows]] = {"corpus": corpus_of, "side": side_of, "alignment": alignment_of}


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file's bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_columns(folder: Path, unit: Unit, rows: list[Any]) -> None:
    """`read_part` gives the rows, to the last bit."""
    found = read_part(folder, unit)
    keys = [key_values(row) for row in rows]
    assert found.keys == {name: [one[name] for one in keys] for name in keys[0]}
    expected = {field.name: getattr(rows[0], field.name) for field in dataclasses.fields(rows[0])}
    names = [name for name in expected if name not in keys[0]]
    assert sorted(names) == sorted([*found.numbers, *found.texts])
    for name in names:
        values = [getattr(row, name) for row in rows]
        if name in found.texts:
            assert found.texts[name] == values
            continue
        numbers, splits = found.numbers[name]
        assert splits.dtype == np.int64
        assert splits.tolist() == [0, *np.cumsum([len(value) for value in values]).tolist()]
        whole = np.concatenate(values)
        assert (numbers.dtype, numbers.shape, numbers.tobytes()) == (whole.dtype, whole.shape, whole.tobytes())


@given(st.lists(rows_of_text(), min_size=1, max_size=6), st.integers(0, 6), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_columns_write_the_bytes_that_rows_write_and_come_back(
    examples: list[tuple[ExampleRow, SideRow, AlignmentRow]], border: int, most: int
) -> None:
    groups = cut_row_groups([row.num_bytes for row, _, _ in examples], most=most)
    unit = Unit(3, 10, 10 + len(examples))
    notes = {"seen": 1}
    for section, columns in zip(("corpus", STUDENT_SIDE, ALIGNMENT), zip(*examples, strict=True), strict=True):
        rows: list[Any] = list(columns)
        encoded = [ENCODE[kind_of(section)](part) for part in (rows[:border], rows[border:]) if part]
        if section == STUDENT_SIDE:
            counts = np.concatenate([part.num_positions for part in encoded])
            assert counts.tolist() == [row.num_positions for row in rows]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            one = write_part(folder / "rows", schema_of(section), unit, rows, groups, notes=notes)
            assert write_columns(folder / "columns", unit, encoded, groups, notes=notes) == one
            assert files_of(folder / "columns") == files_of(folder / "rows")
            assert_columns(folder / "columns", unit, rows)


# --------------------------------------------------------------------------- reading a part back


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of each of the folders of text, with nothing around it: no plan, no manifest."""
    folder = tmp_path_factory.mktemp("parts")
    rows = make_rows(12, full_teacher_schema())
    for section in TEXT_SECTIONS:
        write_part(folder / section, schema_of(section), UNIT, rows[section], GROUPS)
    return folder


@pytest.mark.parametrize("section", TEXT_SECTIONS)
def test_a_part_that_is_not_sealed_comes_back_as_columns(section: str, parts: Path) -> None:
    assert_columns(parts / section, UNIT, make_rows(12, full_teacher_schema())[section])


def with_a_bit_changed(value: Any) -> Any:
    """The value with one bit changed: of its first byte, or of what makes it null."""
    if value is None or value == "":
        return "a"
    if isinstance(value, int):
        return value ^ 1
    content = bytearray(value.encode() if isinstance(value, str) else value)
    content[0] ^= 1
    return content.decode() if isinstance(value, str) else bytes(content)


COLUMNS = [(section, name) for section in TEXT_SECTIONS for name in schema_of(section).arrow().names]


@pytest.mark.parametrize(("section", "column"), COLUMNS)
def test_a_flipped_bit_in_any_column_is_refused_when_a_part_is_read_back(
    section: str, column: str, parts: Path, tmp_path: Path
) -> None:
    """In what is stored, below Parquet and its compression: file and footer are whole, only the content is not."""
    rows, schema = make_rows(12, full_teacher_schema())[section], schema_of(section)
    table = pq.read_table(parts / section / "part-00000.parquet")
    values = table.column(column).to_pylist()
    row = next(row for row, value in enumerate(values) if row >= 5 and value not in (b"", 0))
    values[row] = with_a_bit_changed(values[row])
    place = table.column_names.index(column)
    changed = table.set_column(place, table.field(place), pa.array(values, table.field(place).type))
    folder = Path(shutil.copytree(parts / section, tmp_path / "folder"))
    part = folder / "part-00000.parquet"
    with pa.OSFile(str(part), "wb") as sink, writer._open_writer(sink, schema) as file:
        for start, count in zip((0, 5, 9), GROUPS, strict=True):
            file.write_table(changed.slice(start, count), row_group_size=count)
    dataclasses.replace(Receipt.load(folder, 0), footer=footer_hash(part)).save(folder)
    is_value = schema.column(column) is not None
    what = f"example {rows[row].id}, column {column}: checksum differs" if is_value else "keys or hashes: not those"
    with pytest.raises(ShardError, match=f"part-00000.parquet: {what}"):
        read_part(folder, UNIT)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_flipped_bit_anywhere_never_gives_other_columns(parts: Path, data: st.DataObject) -> None:
    section = data.draw(st.sampled_from(TEXT_SECTIONS))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(shutil.copytree(parts / section, Path(name) / "folder"))
        part = folder / "part-00000.parquet"
        content = bytearray(part.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        part.write_bytes(content)
        try:
            read_part(folder, UNIT)
        except ShardError:
            return
        assert_columns(folder, UNIT, make_rows(12, full_teacher_schema())[section])


def test_a_part_in_anothers_place_is_refused_when_read_back(parts: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(parts / "corpus", tmp_path / "corpus"))
    for ending in (".parquet", ".receipt.json"):
        shutil.copy(folder / f"part-00000{ending}", folder / f"part-00001{ending}")
    with pytest.raises(ShardError, match=r"part-00001.receipt.json: says it is of part 0; run"):
        read_part(folder, Unit(1, 12, 24))
    with pytest.raises(ShardError, match=r"part-00000.parquet: receipt: 12 rows of part 0, the plan says"):
        read_part(folder, Unit(0, 0, 13))
    with pytest.raises(ShardError, match=r"part-00002.receipt.json: missing"):
        read_part(folder, Unit(2, 24, 36))


@pytest.mark.parametrize("change", ["keys", "columns"])
def test_a_receipt_of_other_rows_is_refused_when_a_part_is_read_back(change: str, parts: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(parts / "corpus", tmp_path / "corpus"))
    other = {"keys": ("corpus", {"split": "dev"}), "columns": (ALIGNMENT, {})}[change]
    rows = [dataclasses.replace(row, **other[1]) for row in make_rows(12, full_teacher_schema())[other[0]]]
    receipt = write_part(tmp_path / "other", schema_of(other[0]), UNIT, rows, GROUPS)
    known = Receipt.load(folder, 0)
    dataclasses.replace(known, rows_root=receipt.rows_root).save(folder)
    with pytest.raises(ShardError, match="keys or hashes: not those the receipt was written for"):
        read_part(folder, UNIT)


# --------------------------------------------------------------------------- refusals


def some_rows() -> list[SideRow]:
    """Four rows of a side."""
    return make_rows(4, full_teacher_schema())[STUDENT_SIDE]


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
    with pytest.raises(ValueError, match=r"column ids|columns of|ids"):
        side_of(some_rows(), token_ids=ids)


def test_another_number_of_texts_or_keys_is_a_programmers_error() -> None:
    examples = make_rows(4, full_teacher_schema())["corpus"]
    for change in ({"prompts": ["a"]}, {"splits": ["train"]}, {"num_bytes": int32([1])}):
        with pytest.raises(ValueError, match="columns of"):
            corpus_of(examples, **change)
    kinds = Ragged(np.zeros(4, np.int32), np.arange(5))
    with pytest.raises(ValueError, match="column kinds: expected uint8"):
        side_of(some_rows(), kinds=kinds)


def test_too_few_rows_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="4 rows for row groups"):
        write_columns(tmp_path, Unit(0, 0, 5), [side_of(some_rows())], [3, 2])
    with pytest.raises(ValueError, match="do not hold rows 0:5"):
        write_columns(tmp_path, Unit(0, 0, 5), [side_of(some_rows())], [3, 1])
    assert list(tmp_path.iterdir()) == []


def test_a_value_too_large_for_a_part_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar, "LARGEST_VALUE", 80)
    none, no_spans = int32([]), int32([], 0, 2)
    short = SideRow("short", "ok", int32([1, 2]), none, none, np.zeros(0, np.uint8), no_spans, none, no_spans, no_spans)
    rows = [short, short, dataclasses.replace(short, id="long", ids=int32(range(30)))]
    with pytest.raises(ShardError, match="example long, column ids: 120 bytes"):
        side_of(rows)
    with pytest.raises(ShardError, match="example long, column chat: 90 bytes"):
        corpus_of([ExampleRow("short", "dev", 0, None, None, "é"), ExampleRow("long", "dev", 0, None, None, 45 * "é")])


@pytest.mark.parametrize("column", ["ids", "text", "num_positions", "hashes"])
def test_what_reads_back_differently_is_not_published(
    column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came from the disk is compared with what was meant, so another table stands for a disk that lies."""
    encoded = side_of(some_rows())
    compare = writer._compare

    def compare_with_another(path: Path, schema: Any, groups: Any, written: pa.Table) -> None:
        place = written.column_names.index(column)
        values = written.column(column).to_pylist()
        values[2] = {"num_positions": 77, "text": "other"}.get(column) or bytes(len(values[2]))
        changed = pa.array(values, written.schema.field(column).type)
        compare(path, schema, groups, written.set_column(place, written.schema.field(column), changed))

    monkeypatch.setattr(writer, "_compare", compare_with_another)
    with pytest.raises(ShardError, match=f"{column}.*differently"):
        write_columns(tmp_path, Unit(0, 0, 4), [encoded], [2, 2])
    assert list(tmp_path.iterdir()) == []

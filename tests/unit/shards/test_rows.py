"""Rows in are rows out: any row, any order, any selection of columns."""

from __future__ import annotations

import dataclasses
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_data.errors import ShardError
from sra_data.shards.codecs import EncodedTensor
from sra_data.shards.schema import AlignmentRow, ExampleRow, SideRow, TeacherRow, response_positions, side_text
from sra_data.shards.store import (
    FolderReader,
    ShardSet,
    Unit,
    corpus_schema,
    cut_row_groups,
    teacher_schema,
    write_part,
)
from tests.unit.shards.builders import (
    ALIGNED,
    ALIGNMENT,
    LEFT,
    RIGHT,
    SECOND_TEACHER,
    SECTIONS,
    STUDENT_SIDE,
    TEACHER,
    TEACHER_SIDE,
    TEXT_SECTIONS,
    full_teacher_schema,
    int32,
    make_rows,
    make_shards,
    write_section,
)

# Text that UTF-8 can hold: the corpus replaces lone surrogates before it comes here.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ints = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=8).map(lambda values: np.asarray(values, np.int32))
kinds = st.binary(max_size=8).map(lambda values: np.frombuffer(values, np.uint8))
statuses = st.sampled_from(["ok", "skipped:overlong"])


@st.composite
def spans(draw: st.DrawFn) -> np.ndarray:
    """Ordered half-open spans."""
    borders = sorted(draw(st.sets(st.integers(0, 60), max_size=8)))
    return int32(borders[: len(borders) // 2 * 2]).reshape(-1, 2)


@st.composite
def rows_of_text(draw: st.DrawFn) -> tuple[ExampleRow, SideRow, AlignmentRow]:
    """The three rows of one example."""
    name, optional = draw(texts), st.none() | texts
    split = draw(st.sampled_from(["train", "dev"]))
    example = ExampleRow(name, split, draw(st.integers(0, 60)), draw(optional), draw(optional), draw(optional))
    numbers = draw(ints), draw(ints), draw(ints), draw(kinds), draw(spans()), draw(ints), draw(spans()), draw(spans())
    side = SideRow(name, draw(statuses), *numbers, draw(optional))
    return example, side, AlignmentRow(name, draw(statuses), draw(spans()), draw(spans()))


def assert_equal(found: Any, expected: Any) -> None:
    """Two rows, or values of rows, are the same to the last bit."""
    assert type(found) is type(expected)
    if isinstance(expected, ExampleRow | SideRow | AlignmentRow | TeacherRow | EncodedTensor):
        for field in dataclasses.fields(expected):
            assert_equal(getattr(found, field.name), getattr(expected, field.name))
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, np.ndarray):
        assert (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())
    else:
        assert found == expected


@settings(max_examples=20, deadline=None)
@given(st.lists(rows_of_text(), min_size=1, max_size=12), st.integers(1, 60), st.randoms())
def test_any_rows_come_back(rows: list[tuple[ExampleRow, SideRow, AlignmentRow]], most: int, random: Any) -> None:
    groups = cut_row_groups([row.num_bytes for row, _, _ in rows], most=most)
    numbers = [random.randrange(len(rows)) for _ in range(9)]
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder)
        for section in TEXT_SECTIONS:  # both sides the same
            kind = {"corpus": 0, ALIGNMENT: 2}.get(section, 1)
            write_section(shards, section, [row[kind] for row in rows], [groups])
        with ShardSet.open(shards) as opened:
            readers = (opened.corpus, opened.side(RIGHT), opened.alignment(ALIGNED))
            for kind, reader in enumerate(readers):
                for found, number in zip(reader.read(numbers), numbers, strict=True):
                    assert_equal(found, rows[number][kind])


@pytest.mark.parametrize("hidden_dtype", ["bf16", "fp16", "fp32", "int8"])
def test_a_teacher_comes_back_in_any_order(hidden_dtype: str, tmp_path: Path) -> None:
    rows = make_shards(tmp_path / "shards", hidden_dtype=hidden_dtype)[TEACHER]
    numbers = [29, 0, 3, 3, 17, 5, 4, 28, 11, 12]
    with ShardSet.open(tmp_path / "shards") as shards:
        for found, number in zip(shards.teacher("big-00000000").read(numbers), numbers, strict=True):
            assert_equal(found, rows[number])


def test_two_teachers_of_two_sides_come_back_with_their_own_positions(tmp_path: Path) -> None:
    rows = make_shards(tmp_path, num_teachers=2)
    with ShardSet.open(tmp_path) as shards:
        assert list(shards) == ["corpus", STUDENT_SIDE, TEACHER_SIDE, ALIGNMENT, TEACHER, SECOND_TEACHER]
        assert [shards.side_of_teacher(name) for name in ("big-00000000", "other-11111111")] == [RIGHT, LEFT]
        for section in (TEACHER, SECOND_TEACHER):
            reader = shards.teacher(section.partition("/")[2])
            for found, written in zip(reader.read(range(30)), rows[section], strict=True):
                assert_equal(found, written)
            assert shards.head(reader.section.partition("/")[2])[1] == {"scale": "1.0"}
            assert shards.embeddings(reader.section.partition("/")[2])[0].tolist() == [1, 4]
        counts = [shards.teacher(name).index.num_positions for name in ("big-00000000", "other-11111111")]
        assert (counts[0] != counts[1]).any()


def test_a_sides_text_is_the_examples_unless_it_says_otherwise(
    sealed_set: tuple[Path, dict[str, list[Any]]],
) -> None:
    with ShardSet.open(sealed_set[0]) as shards:
        for example, side in zip(shards.corpus.read(range(30)), shards.side(LEFT).read(range(30)), strict=True):
            is_chat = example.chat is not None
            assert (side.text is not None) == is_chat == (example.prompt is None) == (example.response is None)
            expected = f"<s>{example.chat}" if is_chat else str(example.prompt) + str(example.response)
            assert side_text(side, example) == expected


def test_a_projection_holds_what_was_asked_for(sealed_set: tuple[Path, dict[str, list[Any]]]) -> None:
    folder, rows = sealed_set
    with ShardSet.open(folder) as shards:
        row = shards.teacher("big-00000000").read([1], ["hidden.4", "next_log_prob"])[0]
        assert_equal(row.hidden, {4: rows[TEACHER][1].hidden[4]})
        assert row.positions is None
        assert row.top_k_ids is None
        assert row.attention == {}
        example = shards.corpus.read([1], ["prompt"])[0]
        assert (example.prompt, example.response) == (rows["corpus"][1].prompt, None)
        assert shards.side(LEFT).read([1], ["ids"])[0].ends is None
        assert shards.alignment(ALIGNED).read([1], ["left_spans"])[0].right_spans is None
        assert shards.teacher("big-00000000").read([], None) == []
        with pytest.raises(ShardError, match=r"no column sampled.ids \(it has top_k.ids, .*, positions\)"):
            shards.teacher("big-00000000").read([1], ["sampled.ids"])


def test_values_are_aligned_and_writable(sealed_set: tuple[Path, dict[str, list[Any]]]) -> None:
    with ShardSet.open(sealed_set[0]) as shards:
        for row in shards.teacher("big-00000000").read(range(30)):
            for array in [row.hidden[2].array, row.attention[4], row.top_k_ids, row.top_k_values, row.log_tails]:
                assert array.flags.aligned
                assert array.flags.writeable


def test_a_small_cache_changes_nothing(sealed_set: tuple[Path, dict[str, list[Any]]]) -> None:
    folder, rows = sealed_set
    with FolderReader(folder, TEACHER, cache_bytes=1) as reader:
        for number in [0, 20, 1, 21, 0]:
            assert_equal(reader.read([number])[0].top_k_ids, rows[TEACHER][number].top_k_ids)


def test_the_index_tells_everything_a_plan_needs(sealed_set: tuple[Path, dict[str, list[Any]]]) -> None:
    folder, rows = sealed_set
    with ShardSet.open(folder) as shards:
        corpus, aligned = shards.corpus.index, shards.pair(student=LEFT, teacher=RIGHT).index
        left, right = shards.side(LEFT).index, shards.side(RIGHT).index
        assert [corpus.id_of(row) for row in range(30)] == [row.id for row in rows["corpus"]]
        assert corpus.row_of("id-17") == 17
        assert corpus.split.tolist() == [row.split for row in rows["corpus"]]
        assert corpus.num_bytes.tolist() == [row.num_bytes for row in rows["corpus"]]
        assert right.status.tolist() == [row.status for row in rows[TEACHER_SIDE]]
        assert corpus.in_split("dev").tolist() == [row.split == "dev" for row in rows["corpus"]]
        assert aligned.is_ok.tolist() == [row.status == "ok" for row in rows[ALIGNMENT]]
        assert right.status_counts() == {"ok": 26, "skipped:overlong": 4}
        skipped = {"skipped:right_overlong": 3, "skipped:left_special_token_text": 3}  # row 17 by both: left's first
        assert aligned.status_counts() == {"ok": 24, **skipped}
        assert right.num_positions.tolist() == [len(row.positions) for row in rows[TEACHER]]
        assert shards.teacher("big-00000000").index.num_positions.tolist() == right.num_positions.tolist()
        assert aligned.num_spans.tolist() == [len(row.left_spans) for row in rows[ALIGNMENT]]
        # Token 0 has nothing before it to be predicted from.
        labels = [sum(stop - max(start, 1) for start, stop in row.label_spans.tolist()) for row in rows[STUDENT_SIDE]]
        assert left.num_labels.tolist() == labels
        assert left.num_tokens.tolist() == [len(row.ids) for row in rows[STUDENT_SIDE]]
        starts = corpus.group_starts
        assert starts[0] == 0
        assert starts[-1] == len(corpus)
        changes = [
            row
            for row in range(1, 30)
            if (corpus.part[row], corpus.row_group[row]) != (corpus.part[row - 1], corpus.row_group[row - 1])
        ]
        assert starts[1:-1].tolist() == changes
        with pytest.raises(ShardError, match="example nobody: not in these shards"):
            corpus.row_of("nobody")
        with pytest.raises(AttributeError, match="an index of corpus has no num_tokens"):
            _ = corpus.num_tokens


def test_folders_of_text_have_the_same_row_groups(sealed_set: tuple[Path, dict[str, list[Any]]]) -> None:
    with ShardSet.open(sealed_set[0]) as shards:
        readers = [shards.side(LEFT), shards.side(RIGHT), shards.alignment(ALIGNED)]
        assert len(shards.corpus.index.group_starts) > 8
        for reader in readers:
            assert reader.index.group_starts.tolist() == shards.corpus.index.group_starts.tolist()


def test_positions_hold_the_row_before_each_response_once() -> None:
    assert response_positions(int32([[0, 3], [3, 5], [9, 11]])).tolist() == [0, 1, 2, 3, 4, 8, 9, 10]
    assert response_positions(int32([[4, 6]])).tolist() == [3, 4, 5]
    assert response_positions(np.empty((0, 2), np.int32)).tolist() == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 60))
def test_row_groups_hold_neighbours_up_to_their_size(counts: list[int], most: int) -> None:
    groups = cut_row_groups(counts, most=most)
    assert sum(groups) == len(counts)
    stops = np.cumsum([0, *groups])
    for start, stop in pairwise(stops):
        assert stop > start
        assert sum(counts[start:stop]) <= most or stop - start == 1
        if stop < len(counts):  # no group could have taken one more
            assert sum(counts[start : stop + 1]) > most


@pytest.mark.parametrize("section", SECTIONS)
def test_datasets_opens_the_parts(section: str, sealed_set: tuple[Path, dict[str, list[Any]]], tmp_path: Path) -> None:
    files = [str(sealed_set[0] / section / f"part-0000{part}.parquet") for part in range(3)]
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    assert loaded["id"] == [row.id for row in sealed_set[1][section]]
    if section == "corpus":
        for name in ("prompt", "response", "chat"):
            assert loaded[name] == [getattr(row, name) for row in sealed_set[1]["corpus"]]
    if section == TEACHER_SIDE:
        assert loaded["text"] == [row.text for row in sealed_set[1][section]]
        assert np.array_equal(np.frombuffer(loaded[0]["ids"], np.int32), sealed_set[1][section][0].ids)
    if section == TEACHER:
        bits = np.frombuffer(loaded[1]["hidden.2"], np.uint16)
        assert bits.tobytes() == sealed_set[1][TEACHER][1].hidden[2].array.tobytes()


def test_a_span_cache_has_its_own_counts(tmp_path: Path) -> None:
    rows = make_rows(4, full_teacher_schema())
    schema = teacher_schema(hidden={1: 2}, hidden_dtype="fp32", next_log_prob=False, granularity="span")
    pooled = [
        TeacherRow(row.id, hidden={1: EncodedTensor("fp32", np.ones((number, 2), np.float32))})
        for number, row in enumerate(rows["corpus"])
    ]
    for section in TEXT_SECTIONS:
        write_section(tmp_path, section, rows[section], [[4]])
    write_section(tmp_path, TEACHER, pooled, [[4]], schema=schema, made_from=(TEACHER_SIDE, ALIGNMENT))
    with ShardSet.open(tmp_path) as shards:
        teacher = shards.teacher("big-00000000")
        assert teacher.facts["granularity"] == "span"
        assert teacher.facts["made_from"].keys() == {TEACHER_SIDE, ALIGNMENT}
        assert teacher.index.num_positions.tolist() == [0, 1, 2, 3]
        assert teacher.read([2])[0].hidden[1].shape == (2, 2)
        assert teacher.read([2])[0].positions is None
        with pytest.raises(ShardError, match="cached by spans"):
            teacher.read([2], ["positions"])


def test_statistics_are_on_keys_only_and_blobs_are_one_plain_page(
    sealed_set: tuple[Path, dict[str, list[Any]]],
) -> None:
    file = pq.ParquetFile(sealed_set[0] / TEACHER / "part-00000.parquet")
    for place in range(file.metadata.num_columns):
        chunk = file.metadata.row_group(0).column(place)
        name = chunk.path_in_schema
        assert chunk.is_stats_set == (name in ("id", "num_positions"))
        assert not chunk.has_dictionary_page
        plain = name in ("id", "num_positions") or name.startswith(("hidden", "attention", "hashes"))
        assert (chunk.compression == "UNCOMPRESSED") == plain
    file.close()


@pytest.mark.parametrize("groups", [[2], [3, 0], [], [1, 1]])
def test_row_groups_that_do_not_fit_the_unit_are_a_programmers_error(groups: list[int], tmp_path: Path) -> None:
    rows = make_rows(3, full_teacher_schema())["corpus"]
    with pytest.raises(ValueError, match="do not hold rows 0:3"):
        write_part(tmp_path, corpus_schema(), Unit(0, 0, 3), rows, groups)
    assert list(tmp_path.iterdir()) == []


def test_a_value_of_another_dtype_or_shape_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    schema = full_teacher_schema()
    good = make_rows(3, schema)[TEACHER][1]
    for change in (
        {"next_log_prob": good.next_log_prob.astype(np.float64)},
        {"log_tails": good.log_tails[:1]},
        {"hidden": {}},
    ):
        with pytest.raises(ValueError, match=r"next_log_prob|float|log_tails|has no hidden"):
            write_part(tmp_path, schema, Unit(0, 0, 1), [dataclasses.replace(good, **change)], [1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [2, 4])
def test_too_few_or_too_many_rows_leave_nothing(count: int, tmp_path: Path) -> None:
    rows = make_rows(4, full_teacher_schema())["corpus"][:count]
    with pytest.raises(ValueError, match="row"):
        write_part(tmp_path, corpus_schema(), Unit(0, 0, 3), rows, [2, 1])
    assert list(tmp_path.iterdir()) == []

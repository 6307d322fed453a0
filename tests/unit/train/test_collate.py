"""Rows become batches: padded, vectorised, and the same numbers that a slow loop finds."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_data.errors import ShardError
from sra_data.shards.codecs import CODECS, encode_float32, estimate_channel_scales
from sra_data.shards.columnar import PLAIN_DTYPES
from sra_data.shards.schema import ExampleRow, SideRow, TeacherRow, response_positions
from sra_data.shards.store import PairSpans
from sra_train.contract import Batch, CacheNeeds, TeacherBatch
from sra_train.data.collate import collate
from sra_train.data.examples import ExampleParts, TeacherPart
from sra_train.data.pages import TORCH_DTYPES, PageForm, span_tensors
from sra_train.data.staging import StagingBuffer, StagingPool
from sra_train.data.text import read_part, response_text

EVERYTHING = CacheNeeds(hidden=(3,), attention=(3,), temperatures=(1.0, 2.0), next_log_prob=True, ids=True)
WIDTH = 6
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}


def spans(pairs) -> np.ndarray:
    return np.array(pairs, np.int32).reshape(-1, 2)


def side(name: str, ids: np.ndarray, *, responses=(), labels=(), ends=None, text=None, ranges=()) -> SideRow:
    nothing = np.zeros(len(ids), np.int32)
    return SideRow(
        id=name,
        status="ok",
        ids=ids.astype(np.int32),
        starts=nothing,
        ends=nothing if ends is None else np.asarray(ends, np.int32),
        kinds=nothing.astype(np.uint8),
        response_ranges=spans(ranges),
        response_turns=np.zeros(len(ranges), np.int32),
        response_spans=spans(responses),
        label_spans=spans(labels),
        text=text,
    )


def example(name="a", *, student=7, teacher=9, dtype="fp32", seed=0) -> ExampleParts:
    """A prompt of two tokens on both sides, then the response; the student closes with a special token."""
    random = np.random.default_rng(seed)
    responses = [[2, teacher - 1]]
    count = len(response_positions(spans(responses)))
    states = random.standard_normal((count, WIDTH)).astype(np.float32)
    scales = estimate_channel_scales(states) if dtype == "int8" else None
    pages = TeacherRow(
        id=name,
        hidden={3: encode_float32(states, dtype, scales)},
        attention={3: random.random(count, np.float32)},
        top_k_ids=random.integers(0, 60, (count, 2)).astype(np.int32),
        top_k_values=-random.random((count, 2)).astype(np.float16),
        log_tails=-random.random((2, count)).astype(np.float32),
        next_log_prob=-random.random(count, np.float32),
    )
    shared = PairSpans(name, "ok", spans([[2, 4], [4, student - 1]]), spans([[2, 5], [5, teacher - 1]]))
    of_teacher = side(name, np.arange(teacher) + 50, responses=responses)
    own = side(
        name,
        np.arange(student) + 10,
        labels=[[2, student]],
        ends=[2, 4, *np.linspace(5, 14, student - 3).astype(int), 0],
        ranges=[[4, 14]],
    )
    return ExampleParts(own, (TeacherPart(shared, of_teacher, pages),), ExampleRow(name, "train", 10, "pppp", "r" * 10))


def part_of(one: ExampleParts) -> TeacherPart:
    (part,) = one.teachers
    assert part is not None
    return part


def with_part(one: ExampleParts, **changes) -> ExampleParts:
    return replace(one, teachers=(replace(part_of(one), **changes),))


def form_of(needs: CacheNeeds = EVERYTHING, dtype: str = "fp32", **changes) -> PageForm:
    columns = {
        "hidden.3": ((WIDTH,), DTYPES[dtype]),
        "attention.3": ((), torch.float32),
        "top_k.ids": ((2,), torch.int32),
        "top_k.values": ((2,), torch.float16),
        "log_tails": ((), torch.float32),
        "next_log_prob": ((), torch.float32),
    }
    return PageForm("teacher-0", needs, columns, (1.0, 2.0), **changes)


def batch_of(*rows, form=None, staging=None) -> Batch:
    return collate(rows, forms=[form or form_of()], staging=staging or StagingBuffer(pinned=False))


def teacher_of(*rows, **options) -> TeacherBatch:
    (found,) = batch_of(*rows, **options).teachers
    return found


def test_a_batch_is_padded_on_the_right_and_labels_are_the_ids_at_their_place() -> None:
    batch = batch_of(example("a", student=7), example("b", student=9, teacher=12))
    assert batch.input_ids.shape == (2, 9)
    assert batch.input_ids[0].tolist() == [10, 11, 12, 13, 14, 15, 16, 0, 0]
    assert batch.lengths.tolist() == [7, 9]
    assert batch.labels[0].tolist() == [-100, -100, 12, 13, 14, 15, 16, -100, -100]
    (teacher,) = batch.teachers
    assert teacher.student_span_ids[0].tolist() == [-1, -1, 0, 0, 1, 1, -1, -1, -1]
    assert teacher.student_span_last[0].tolist() == [3, 5]
    assert teacher.span_mask.tolist() == [[True, True], [True, True]]


def test_the_teachers_spans_are_counted_in_cached_rows() -> None:
    teacher = teacher_of(example(teacher=9))
    # rows are tokens 1 (before the response) to 7; spans [2, 5) and [5, 8)
    assert teacher.teacher_span_ids[0].tolist() == [-1, 0, 0, 0, 1, 1, 1]
    assert teacher.teacher_span_last[0].tolist() == [3, 6]
    assert teacher.ids[0].tolist() == [51, 52, 53, 54, 55, 56, 57]
    assert teacher.next_ids[0].tolist() == [52, 53, 54, 55, 56, 57, 58]


def test_nothing_follows_the_last_token() -> None:
    row = example(teacher=8)
    short = side("a", np.arange(7) + 50, responses=[[2, 7]])  # no end-of-sequence behind the response
    assert teacher_of(with_part(row, side=short)).next_ids[0].tolist() == [52, 53, 54, 55, 56, -1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_hidden_states_keep_their_bits(dtype) -> None:
    row = example(dtype=dtype)
    hidden = teacher_of(row, example("b", teacher=12, dtype=dtype), form=form_of(dtype=dtype)).hidden[3]
    stored = part_of(row).pages.hidden[3]
    assert hidden.dtype == DTYPES[dtype]
    assert np.array_equal(hidden[0, : len(stored)].float().numpy(), stored.float32())
    assert not hidden[0, len(stored) :].any()


def test_log_tails_are_named_by_their_temperature_and_only_those_asked_for_are_there() -> None:
    row = example()
    teacher = teacher_of(row)
    pages = part_of(row).pages
    assert list(teacher.log_tails) == [1.0, 2.0]
    assert np.array_equal(teacher.log_tails[2.0][0].numpy(), pages.log_tails[1])
    assert np.array_equal(teacher.top_k_ids[0].numpy(), pages.top_k_ids)
    assert np.array_equal(teacher.next_log_prob[0].numpy(), pages.next_log_prob)
    one = teacher_of(row, form=form_of(CacheNeeds(temperatures=(2.0,))))
    assert list(one.log_tails) == [2.0]
    assert np.array_equal(one.log_tails[2.0][0].numpy(), pages.log_tails[1])
    assert (one.hidden, one.attention, one.next_log_prob, one.ids) == ({}, {}, None, None)


def test_an_empty_slot_weighs_nothing() -> None:
    batch = batch_of(example(), None)
    (teacher,) = batch.teachers
    assert batch.weight.tolist() == [1.0, 0.0]
    assert batch.lengths.tolist() == [7, 1]
    assert (batch.labels[1] == -100).all()
    assert not teacher.span_mask[1].any()
    assert not teacher.position_mask[1].any()
    assert set(batch.label_rows.example.tolist()) == {0}
    assert teacher.has_teacher.tolist() == [True, False]


def test_a_batch_of_nothing_but_empty_slots_has_every_tensor_and_no_weight() -> None:
    batch = batch_of(None, None)
    (teacher,) = batch.teachers
    assert batch.weight.tolist() == [0.0, 0.0]
    assert teacher.hidden[3].shape == (2, 1, WIDTH)
    assert teacher.top_k_values.shape == (2, 1, 2)
    assert len(batch.label_rows.positions) == len(teacher.span_rows.span) == 0
    assert not teacher.span_mask.any()


def test_a_row_that_a_teacher_lacks_keeps_its_labels_and_has_no_span() -> None:
    lacking = replace(example("b"), teachers=(None,))
    batch = batch_of(example("a"), lacking)
    (teacher,) = batch.teachers
    assert teacher.has_teacher.tolist() == [True, False]
    assert batch.weight.tolist() == [1.0, 1.0]
    assert batch.label_rows.example.tolist() == [0] * 5 + [1] * 5
    assert teacher.span_rows.example.tolist() == [0, 0]
    assert not teacher.hidden[3][1].any()
    assert batch_of(lacking).teachers[0].hidden[3].shape == (1, 1, WIDTH)


def test_every_teacher_has_its_own_part_of_the_batch() -> None:
    one, other = example("a", teacher=9), example("a", teacher=12, seed=1)
    both = replace(one, teachers=(*one.teachers, *other.teachers))
    forms = [form_of(), replace(form_of(CacheNeeds(hidden=(3,))), name="teacher-1")]
    batch = collate([both], forms=forms, staging=StagingBuffer(pinned=False))
    first, second = batch.teachers
    assert (first.name, second.name) == ("teacher-0", "teacher-1")
    assert torch.equal(first.hidden[3], teacher_of(one).hidden[3])
    assert torch.equal(second.hidden[3], teacher_of(other).hidden[3])
    assert second.teacher_span_last.tolist() == teacher_of(other).teacher_span_last.tolist()


def test_teachers_of_one_shape_share_no_memory() -> None:
    one, other = example("a", seed=0), example("a", seed=1)
    both = replace(one, teachers=(*one.teachers, *other.teachers))
    staging = StagingBuffer(pinned=False)
    batch = collate([both], forms=[form_of(), replace(form_of(), name="teacher-1")], staging=staging)
    for found, expected in zip(batch.teachers, (teacher_of(one), teacher_of(other)), strict=True):
        for name in ("hidden", "attention", "log_tails"):
            assert all(torch.equal(getattr(found, name)[key], value) for key, value in getattr(expected, name).items())
        for name in ("top_k_ids", "top_k_values", "next_log_prob", "teacher_span_ids", "ids", "position_mask"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert not torch.equal(batch.teachers[0].hidden[3], batch.teachers[1].hidden[3])


def test_span_level_pages_have_one_row_a_span() -> None:
    row = example()
    pages = TeacherRow(id="a", hidden={3: encode_float32(np.eye(2, WIDTH, dtype=np.float32), "fp32")})
    teacher = teacher_of(with_part(row, pages=pages), form=form_of(CacheNeeds(hidden=(3,)), by_span=True))
    assert teacher.teacher_span_ids.tolist() == [[0, 1]]
    assert teacher.teacher_span_last.tolist() == [[0, 1]]
    assert teacher.hidden[3].shape == (1, 2, WIDTH)


def test_the_token_of_a_span_is_its_last_and_what_follows_stands_behind_it() -> None:
    teacher = teacher_of(example(teacher=9), form=form_of(CacheNeeds(ids=True), by_span=True))
    assert teacher.ids.tolist() == [[54, 57]]  # the ends of [2, 5) and [5, 8)
    assert teacher.next_ids.tolist() == [[55, 58]]


def test_pages_of_another_length_are_refused() -> None:
    row, other = example(teacher=9), example(teacher=12)
    with pytest.raises(ShardError, match=r"example a: hidden\.3 has 10 rows for 7 positions"):
        batch_of(with_part(row, pages=part_of(other).pages))


def test_a_span_outside_the_cached_positions_is_refused() -> None:
    row = example(teacher=9)
    moved = replace(part_of(row).spans, teacher_spans=spans([[0, 5], [5, 8]]))
    with pytest.raises(ShardError, match="outside the cached positions"):
        batch_of(with_part(row, spans=moved))


def test_a_method_without_teachers_has_none_in_its_batch() -> None:
    assert collate([ExampleParts(example().side)], forms=[], staging=StagingBuffer(pinned=False)).teachers == ()


def test_text_is_the_labels_without_the_closing_token_and_the_bytes_of_the_responses() -> None:
    rows = [example(student=7), None]
    batch = batch_of(*rows)
    found = response_text(rows, batch, StagingBuffer(pinned=False))
    assert found.rows.positions.tolist() == [1, 2, 3, 4]  # they predict tokens 2 to 5
    assert found.rows.targets.tolist() == [12, 13, 14, 15]
    assert found.num_bytes == 10


def test_a_token_of_text_that_nothing_stands_before_is_counted_and_has_no_row() -> None:
    row = example(student=7)
    assert response_text([row], batch_of(row), StagingBuffer(pinned=False)).num_unpredicted == 0
    labels = row.side.label_spans.copy()
    labels[0, 0] = 0  # the response begins with the first token of all
    whole = replace(row, side=replace(row.side, label_spans=labels))
    found = response_text([whole, row, None, whole], batch_of(whole, row, None, whole), StagingBuffer(pinned=False))
    assert found.num_unpredicted == 2
    assert 0 in found.rows.positions.tolist()  # it predicts token 1, which is text too


def test_bytes_of_a_rewritten_chat_are_those_of_its_own_text() -> None:
    row = example(student=7)
    own = replace(row, side=replace(row.side, text="p" * 4 + "é" * 10))
    assert response_text([own], batch_of(own), StagingBuffer(pinned=False)).num_bytes == 20


def test_every_codec_of_a_teachers_column_has_a_dtype_in_training() -> None:
    assert set(TORCH_DTYPES) == set(CODECS) - set(PLAIN_DTYPES)


@st.composite
def span_tables(draw: st.DrawFn) -> np.ndarray:
    edges = sorted(draw(st.sets(st.integers(0, 20), max_size=12)))
    return spans(list(itertools.pairwise(edges))[:: draw(st.integers(1, 2))])


@settings(max_examples=60, deadline=None)
@given(st.lists(span_tables(), min_size=1, max_size=5))
def test_vectorised_span_ids_equal_a_loop(tables) -> None:
    most = max(max(len(table) for table in tables), 1)
    ids, last = span_tensors(tables, 21, most, StagingBuffer(pinned=False), "student")
    for row, table in enumerate(tables):
        expected = [-1] * 21
        for number, (start, stop) in enumerate(table.tolist()):
            expected[start:stop] = [number] * (stop - start)
        assert ids[row].tolist() == expected
        assert last[row].tolist() == [stop - 1 for _, stop in table.tolist()] + [0] * (most - len(table))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(6, 12), st.integers(7, 12))), min_size=1, max_size=4))
def test_rows_of_labels_and_spans_are_what_a_search_finds_in_the_same_order(sizes) -> None:
    rows = [None if one is None else example(str(k), student=one[0], teacher=one[1]) for k, one in enumerate(sizes)]
    batch = batch_of(*rows)
    (teacher,) = batch.teachers
    predicted = torch.full_like(batch.labels, -100)
    predicted[:, :-1] = batch.labels[:, 1:]
    flat = predicted.reshape(-1)
    found = (flat != -100).nonzero()[:, 0]
    assert torch.equal(batch.label_rows.positions, found)
    assert torch.equal(batch.label_rows.example, found // batch.labels.shape[1])
    assert torch.equal(batch.label_rows.targets, flat[found])
    example_of, span = teacher.span_mask.nonzero(as_tuple=True)
    num_tokens = torch.stack(
        [(teacher.student_span_ids[b] == k).sum() for b, k in zip(example_of, span, strict=True)] or [torch.tensor(0)]
    )[: len(span)]
    order = (num_tokens > 1).to(torch.int64).argsort(stable=True)  # spans of one token come first
    example_of, span = example_of[order], span[order]
    between = teacher.span_rows
    assert between.num_single == int((num_tokens == 1).sum())
    assert torch.equal(between.example, example_of)
    assert torch.equal(between.span, span)
    last = example_of * batch.labels.shape[1] + teacher.student_span_last[example_of, span]
    assert torch.equal(between.student_positions, last)
    assert torch.equal(between.teacher_positions, teacher.teacher_span_last[example_of, span])
    assert torch.equal(between.targets, flat[last])
    left = set(found.tolist()) - set(last.tolist())
    assert teacher.other_labels.positions.tolist() == sorted(left)


def test_a_used_buffer_gives_the_same_batch() -> None:
    pool = StagingPool(pinned=False)
    staging = pool.take()
    batch_of(example("long", student=30, teacher=40, seed=3), staging=staging)
    pool.give_back(staging)
    again = pool.take()
    assert again is staging
    used, fresh = batch_of(example(), None, staging=again), batch_of(example(), None)
    for one, other in zip(tensors_of(used), tensors_of(fresh), strict=True):
        assert torch.equal(one, other)


def tensors_of(batch: Batch) -> list[torch.Tensor]:
    from sra_train.contract import map_tensors

    found: list[torch.Tensor] = []
    map_tensors(batch, lambda tensor: found.append(tensor) or tensor)
    return found


def test_bytes_of_a_cut_response_end_where_its_tokens_do() -> None:
    text = "ask: naïve answer  "
    assert read_part(text, 5, len(text), np.array([8, 11])) == "naïve "
    assert read_part(text, 5, len(text), np.array([8, 17])) == "naïve answer  "
    assert read_part(text, 5, len(text), np.array([], dtype=np.int32)) == ""

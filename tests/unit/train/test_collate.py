"""Rows become batches: padded, vectorised, and the same numbers that a slow loop finds."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_data.errors import ShardError
from sra_data.shards.codecs import encode_float32, estimate_channel_scales
from sra_data.shards.schema import AlignmentRow, CorpusRow, TeacherRow, response_positions
from sra_train.contract import CacheNeeds
from sra_train.data.collate import ExampleRows, collate, filler, span_tensors, text_bytes
from sra_train.data.staging import StagingBuffer, StagingPool

EVERYTHING = CacheNeeds(layers=(3,), hidden=True, attention=True, top_k=True, teacher_ids=True)
WIDTH = 6


def spans(pairs) -> np.ndarray:
    return np.array(pairs, np.int32).reshape(-1, 2)


def example(name="a", *, student=7, teacher=9, dtype="fp32", seed=0) -> ExampleRows:
    """A prompt of two tokens on both sides, then the response; the student closes with a special token."""
    random = np.random.default_rng(seed)
    text = "p" * 4 + "r" * 10
    response = spans([[2, teacher - 1]])
    count = len(response_positions(response))
    states = random.standard_normal((count, WIDTH)).astype(np.float32)
    scales = estimate_channel_scales(states) if dtype == "int8" else None
    return ExampleRows(
        AlignmentRow(
            id=name,
            status="ok",
            student_ids=np.arange(student, dtype=np.int32) + 10,
            student_ends=np.array([2, 4, *np.linspace(5, 14, student - 3).astype(int), 0], np.int32),
            label_spans=spans([[2, student]]),
            student_spans=spans([[2, 4], [4, student - 1]]),
            teacher_spans=spans([[2, 5], [5, teacher - 1]]),
        ),
        CorpusRow(
            id=name,
            split="train",
            status="ok",
            text=text,
            response_ranges=spans([[4, 14]]),
            teacher_ids=np.arange(teacher, dtype=np.int32) + 50,
            teacher_ends=np.zeros(teacher, np.int32),
            teacher_response_spans=response,
        ),
        TeacherRow(
            id=name,
            hidden={3: encode_float32(states, dtype, scales)},
            attention={3: random.random(count, np.float32)},
            top_k_ids=random.integers(0, 60, (count, 2)).astype(np.int32),
            top_k_values=-random.random((count, 2)).astype(np.float16),
            log_tails=-random.random((2, count)).astype(np.float32),
        ),
    )


def batch_of(*rows, needs=EVERYTHING, **changes):
    return collate(
        rows,
        needs=needs,
        temperatures=(1.0, 2.0),
        staging=changes.pop("staging", StagingBuffer(pinned=False)),
        **changes,
    )


def test_a_batch_is_padded_on_the_right_and_labels_are_the_ids_at_their_place() -> None:
    batch = batch_of(example("a", student=7), example("b", student=9, teacher=12))
    assert batch.input_ids.shape == (2, 9)
    assert batch.lengths.tolist() == [7, 9]
    assert batch.attention_mask[0].tolist() == [1] * 7 + [0, 0]
    assert batch.labels[0].tolist() == [-100, -100, 12, 13, 14, 15, 16, -100, -100]
    assert batch.student_span_ids[0].tolist() == [-1, -1, 0, 0, 1, 1, -1, -1, -1]
    assert batch.student_span_last[0].tolist() == [3, 5]
    assert batch.num_spans.tolist() == [2, 2]


def test_the_teachers_spans_are_counted_in_cached_rows() -> None:
    batch = batch_of(example(teacher=9))
    # rows are tokens 1 (before the response) to 7; spans [2, 5) and [5, 8)
    assert batch.teacher_token_index[0].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert batch.teacher_span_ids[0].tolist() == [-1, 0, 0, 0, 1, 1, 1]
    assert batch.teacher_span_last[0].tolist() == [3, 6]
    assert batch.teacher_next_ids[0].tolist() == [52, 53, 54, 55, 56, 57, 58]


def test_nothing_follows_the_last_token() -> None:
    row = example(teacher=8)
    short = np.arange(7, dtype=np.int32) + 50  # no end-of-sequence behind the response
    corpus = CorpusRow("a", "train", "ok", row.corpus.text, row.corpus.response_ranges, short, short, spans([[2, 7]]))
    batch = batch_of(ExampleRows(row.alignment, corpus, row.teacher))
    assert batch.teacher_next_ids[0].tolist() == [52, 53, 54, 55, 56, -1]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16), ("int8", torch.float32)],
)
def test_hidden_states_keep_their_bits(dtype, expected) -> None:
    row = example(dtype=dtype)
    hidden = batch_of(row, example("b", teacher=12, dtype=dtype)).teacher_hidden[3]
    stored = row.teacher.hidden[3]
    assert hidden.dtype == expected
    assert np.array_equal(hidden[0, : len(stored)].float().numpy(), stored.float32())
    assert not hidden[0, len(stored) :].any()


def test_log_tails_are_named_by_their_temperature() -> None:
    row = example()
    batch = batch_of(row)
    assert list(batch.log_tails) == [1.0, 2.0]
    assert np.array_equal(batch.log_tails[2.0][0].numpy(), row.teacher.log_tails[1])
    assert np.array_equal(batch.top_k_ids[0].numpy(), row.teacher.top_k_ids)


def test_an_empty_slot_weighs_nothing() -> None:
    batch = batch_of(example(), None)
    assert batch.weight.tolist() == [1.0, 0.0]
    assert batch.lengths.tolist() == [7, 1]
    assert (batch.labels[1] == -100).all()
    assert not batch.span_mask[1].any()
    assert not batch.teacher_position_mask[1].any()


def test_a_batch_of_nothing_but_a_filler_has_every_tensor_and_no_weight() -> None:
    batch = batch_of(filler(example()), None)
    assert batch.weight.tolist() == [0.0, 0.0]
    assert batch.teacher_hidden[3].shape == (2, 1, WIDTH)
    assert (batch.labels == -100).all()
    assert not batch.span_mask.any()


def test_span_level_pages_have_one_row_a_span() -> None:
    row = example()
    pages = TeacherRow(id="a", hidden={3: encode_float32(np.eye(2, WIDTH, dtype=np.float32), "fp32")})
    needs = CacheNeeds(layers=(3,), hidden=True)
    batch = batch_of(ExampleRows(row.alignment, row.corpus, pages), needs=needs, granularity="span")
    assert batch.teacher_span_ids.tolist() == [[0, 1]]
    assert batch.teacher_span_last.tolist() == [[0, 1]]
    assert batch.teacher_hidden[3].shape == (1, 2, WIDTH)


def test_pages_of_another_length_are_refused() -> None:
    row = example(teacher=9)
    other = example(teacher=12)
    with pytest.raises(ShardError, match=r"example a: hidden\.3 has 10 rows for 7 positions"):
        batch_of(ExampleRows(row.alignment, row.corpus, other.teacher))


def test_a_span_outside_the_cached_positions_is_refused() -> None:
    row = example(teacher=9)
    moved = AlignmentRow(**{**row.alignment.__dict__, "teacher_spans": spans([[0, 5], [5, 8]])})
    with pytest.raises(ShardError, match="outside the cached positions"):
        batch_of(ExampleRows(moved, row.corpus, row.teacher))


def test_sft_reads_nothing_of_the_teacher() -> None:
    batch = batch_of(ExampleRows(example().alignment), needs=CacheNeeds())
    assert not batch.teacher_hidden
    assert batch.teacher_position_mask.shape == (1, 0)


def test_text_is_the_labels_without_the_closing_token_and_the_bytes_of_the_responses() -> None:
    row = example(student=7)
    found = text_bytes([row, None], 9)
    assert found.tokens[0].tolist() == [False, False, True, True, True, True, False, False, False]
    assert found.bytes.tolist() == [10, 0]


def test_bytes_of_a_rewritten_chat_are_what_the_labels_cover() -> None:
    row = example(student=7)
    own = AlignmentRow(**{**row.alignment.__dict__, "student_text": "p" * 4 + "é" * 10})
    assert text_bytes([ExampleRows(own, row.corpus)], 7).bytes.tolist() == [20]


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


def test_a_used_buffer_gives_the_same_batch() -> None:
    pool = StagingPool(pinned=False)
    staging = pool.take()
    batch_of(example("long", student=30, teacher=40, seed=3), staging=staging)
    pool.give_back(staging)
    again = pool.take()
    assert again is staging
    used, fresh = batch_of(example(), None, staging=again), batch_of(example(), None)
    for name in ("input_ids", "labels", "student_span_ids", "teacher_span_ids", "teacher_next_ids"):
        assert torch.equal(getattr(used, name), getattr(fresh, name))
    assert torch.equal(used.teacher_hidden[3], fresh.teacher_hidden[3])
    assert torch.equal(used.top_k_ids, fresh.top_k_ids)


def test_bytes_of_a_cut_response_end_where_its_tokens_do() -> None:
    from sra_train.data.collate import read_part

    text = "ask: naïve answer  "
    assert read_part(text, 5, len(text), np.array([8, 11])) == "naïve "
    assert read_part(text, 5, len(text), np.array([8, 17])) == "naïve answer  "
    assert read_part(text, 5, len(text), np.array([], dtype=np.int32)) == ""

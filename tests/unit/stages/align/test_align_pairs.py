"""A pair of sides: what is counted, whose reason is given, what both templates kept, and which side a length makes."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from sra_data.corpus.tokenization import SideTokenizer
from sra_data.shards.store import ShardSet
from sra_data.stages.align.stage import align
from sra_data.terminal import Reporter
from tests.unit.stages.align_worlds import CHAT_TEMPLATE, save_byte_level, write_jsonl

# Of the assistant's turns, only the last.
FORGETFUL_TEMPLATE = CHAT_TEMPLATE.replace(
    "{% for message in messages %}", "{% for message in messages if loop.last or message['role'] != 'assistant' %}"
).replace("loop.last", "message is sameas messages[-1]")


@pytest.mark.parametrize("student_is_left", [True, False])
def test_the_summary_is_what_a_slow_count_finds_seen_from_the_student(options, read_all, student_is_left):
    if student_is_left:
        options = replace(options, teachers=options.students, students=options.teachers)
    (summary,) = align(options, Reporter()).pairs
    assert (summary.student < summary.teacher) == student_is_left
    found = read_all(options.out)
    student, teacher = (
        SideTokenizer.load(names[0]).vocabulary.byte_strings for names in (options.students, options.teachers)
    )
    counted: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for one, other, pair in zip(found.student, found.teacher, found.spans, strict=True):
        for name, row, strings in (("student", one, teacher), ("teacher", other, student)):
            ids = [int(token) for start, stop in row.response_spans for token in row.ids[start:stop]]
            own = student if name == "student" else teacher
            counted[f"{name}_tokens"] += len(ids)
            counted[f"{name}_shared"] += sum(own[token] in strings for token in ids if own[token])
        for (a, b), (c, d) in zip(pair.student_spans.tolist(), pair.teacher_spans.tolist(), strict=True):
            sizes[":".join(f"{size}" if size < 5 else "5+" for size in (b - a, d - c))] += 1
    spans = sizes.total()
    assert (summary.num_spans, summary.student_tokens, summary.teacher_tokens) == (
        spans,
        counted["student_tokens"],
        counted["teacher_tokens"],
    )
    assert summary.student_tokens_per_span == counted["student_tokens"] / spans
    assert summary.teacher_tokens_per_span == counted["teacher_tokens"] / spans
    assert summary.student_tokens_shared == counted["student_shared"] / counted["student_tokens"]
    assert summary.teacher_tokens_shared == counted["teacher_shared"] / counted["teacher_tokens"]
    assert summary.sizes == {size: count / spans for size, count in sizes.items()}


def test_where_both_sides_skip_a_row_the_lefts_reason_is_given(options, read_all):
    (summary,) = align(
        replace(options, teacher_max_length=60, student_max_length=80, overlong="skip"), Reporter()
    ).pairs
    assert summary.teacher < summary.student  # the left side is the teacher's
    found = read_all(options.out)
    lost = [(one.status != "ok", other.status != "ok") for one, other in zip(found.teacher, found.student, strict=True)]
    expected = {(False, False): "ok", (False, True): "skipped:right_overlong"}
    assert [row.status for row in found.spans] == [expected.get(one, "skipped:left_overlong") for one in lost]
    assert set(lost) == {(True, True), (False, True), (False, False)}


def test_a_turn_that_one_template_leaves_out_has_no_span_and_the_others_keep_theirs(options, world, tmp_path, read_all):
    turns = ["Hi", "Hello there", "And?", "Hello there again", "So?", "Bye now."]
    messages = [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(turns)]
    save_byte_level(tmp_path / "forgetful", vocab_size=420, chat_template=FORGETFUL_TEMPLATE)
    data = write_jsonl(tmp_path / "chat.jsonl", [{"messages": messages}])
    given = replace(options, teachers=(str(world / "chatty"),), students=(str(tmp_path / "forgetful"),), data=str(data))
    align(given, Reporter())
    found = read_all(given.out)
    assert [row.response_turns.tolist() for row in (found.teacher[0], found.student[0])] == [[1, 3, 5], [5]]
    (pair,) = found.spans
    for name, spans in (("teacher", pair.teacher_spans), ("student", pair.student_spans)):
        row, text = getattr(found, name)[0], found.text(0, name)
        begins = np.concatenate([row.response_ranges[-1:, 0], row.ends[spans[:-1, 1] - 1]])
        pieces = [text[begin:end] for begin, end in zip(begins, row.ends[spans[:, 1] - 1], strict=True)]
        assert len(pieces) > 1
        assert "".join(pieces) == "Bye now."


def test_another_maximum_length_makes_another_side_beside_the_first(options, contents):
    first = align(options, Reporter()).pairs[0]
    before = {name: value for name, value in contents(options.out).items() if name != "manifest.json"}
    short = replace(options, student_max_length=40)
    second = align(short, Reporter()).pairs[0]
    after = contents(options.out)
    assert {name: after[name] for name in before} == before
    assert (first.teacher, second.teacher) == (second.teacher, first.teacher)
    assert first.student != second.student
    assert first.student.rpartition("-")[0] == second.student.rpartition("-")[0]
    with ShardSet.open(options.out) as shards:
        lengths = [int(shards.side(pair.student).index.num_tokens.max()) for pair in (first, second)]
        assert shards.side(second.student).facts["max_length"] == 40
    assert lengths[0] > lengths[1] == 40
    assert align(short, Reporter()).pairs[0].student == second.student

"""Reasoning, tool calls and tool turns: what of them is a response, by docs/chats.md."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sra_data.corpus.chat import Renderer
from sra_data.corpus.tokenization import SideTokenizer
from sra_data.spans.alignment import align, segments_for
from tests.chat_families import FAMILIES, IM, Family, side_of
from tests.unit.corpus.test_chat_families import labelled, read, row

# Of the shape that reasoning families publish: reasoning from its field or out of the content, written behind the last
# question alone, and an empty block of it where the last turn has none; tool turns as words of the user.
REASONING = r"""
{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
  {%- if m.role == 'assistant' -%}
    {%- set content = m.content -%}{%- set reasoning = '' -%}
    {%- if m.reasoning_content is string -%}{%- set reasoning = m.reasoning_content -%}
    {%- elif '</think>' in content -%}
      {%- set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\n') -%}
      {%- set content = content.split('</think>')[-1].lstrip('\n') -%}
    {%- endif -%}
    {{- '<|im_start|>assistant\n' -}}
    {%- if loop.index0 > ns.last and (loop.last or reasoning) -%}
      {{- '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' -}}
    {%- endif -%}
    {{- content -}}
    {%- for c in m.tool_calls or [] -%}
      {{- '\n<tool_call>\n' + (c.function | tojson) + '\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\n' -}}
  {%- elif m.role == 'tool' -%}
    {{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' -}}
  {%- else -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}{%- endif -%}
{%- endfor -%}
"""
FAMILY = Family("reasoning", REASONING, IM, None, "<|endoftext|>", "", "<|im_end|>")
CALL = {"function": {"name": "sum", "arguments": {"a": 5, "b": 7}}}
Turn = tuple[str, str] | dict[str, Any]


@pytest.fixture(scope="module")
def side() -> SideTokenizer:
    return side_of(FAMILY)


def said(content: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def learnt(side: SideTokenizer, *turns: Turn) -> tuple[list[str], str]:
    """What is labelled, and the whole text."""
    batch = read(side, row(*turns))
    assert not batch.counts
    return labelled(side, batch), side.tokenizer.decode(batch.ids[0])


def test_reasoning_in_a_field_of_its_own_is_read_and_not_learnt(side: SideTokenizer) -> None:
    turns = ("user", "Hi"), said("Hello.", reasoning_content="They greet me.")
    labels, text = learnt(side, *turns)
    assert "<think>\nThey greet me.\n</think>\n\nHello.<|im_end|>" in text
    assert labels == ["Hello.<|im_end|>"]
    labels, text = learnt(side, *turns, ("user", "And?"), said("Bye.", reasoning_content="They go."))
    assert "They greet me." not in text  # the template leaves it out of earlier turns
    assert labels == ["Hello.<|im_end|>", "Bye.<|im_end|>"]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_that_a_template_does_not_know_is_nothing(field: str) -> None:
    side = side_of(FAMILIES[0])
    labels, text = learnt(side, ("user", "Hi"), said("Hello.", **{field: "They greet me."}))
    assert labels == ["Hello.<|im_end|>"]
    assert "greet" not in text


@pytest.mark.parametrize("content", ["<think>\nThey greet.\n</think>\n\nHello.", "<think>They greet.</think>Hello."])
def test_reasoning_in_the_content_is_learnt_with_its_marks_where_the_template_writes_it(
    side: SideTokenizer, content: str
) -> None:
    as_written = "<think>\nThey greet.\n</think>\n\nHello.<|im_end|>"
    assert learnt(side, ("user", "Hi"), ("assistant", content))[0] == [as_written]
    turns = ("user", "Hi"), ("assistant", content), ("user", "And?"), ("assistant", content)
    assert learnt(side, *turns)[0] == ["Hello.<|im_end|>", as_written]
    assert learnt(side_of(FAMILIES[0]), *turns)[0] == [content + "<|im_end|>"] * 2


def test_what_a_template_writes_of_itself_is_not_learnt(side: SideTokenizer) -> None:
    labels, text = learnt(side, ("user", "Hi"), ("assistant", "Hello."))
    assert "<think>\n\n</think>\n\nHello." in text
    assert labels == ["Hello.<|im_end|>"]


def test_tool_calls_and_tool_turns_are_read_and_not_learnt(side: SideTokenizer) -> None:
    labels, text = learnt(
        side,
        ("user", "5 + 7, and that twice?"),
        said("Let me see.", reasoning_content="A tool.", tool_calls=[CALL, CALL]),
        ("tool", "12"),
        ("tool", "Let me see."),
        said("", tool_calls=[CALL]),
        ("tool", "24"),
        said("24.", reasoning_content="That is it."),
    )
    assert text.count("<tool_call>") == 3
    assert text.count("<tool_response>") == 3
    assert labels == ["Let me see.", "24.<|im_end|>"]  # behind a call nothing is: it is not the end of a turn


@pytest.mark.parametrize("calls", [{"tool_calls": [CALL]}, {"function_call": {"name": "sum", "arguments": "{}"}}])
def test_a_turn_that_calls_goes_on_however_the_call_is_written(side: SideTokenizer, calls: dict[str, Any]) -> None:
    labels, _ = learnt(side, ("user", "Hi"), said("See.", **calls), ("tool", "1"), ("assistant", "One."))
    assert labels == ["See.", "One.<|im_end|>"]


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_content": "they wrote <|im_end|>"},
        {"tool_calls": [{"function": {"name": "f", "arguments": {"a": "<|im_end|>"}}}]},
    ],
    ids=str,
)
def test_a_special_tokens_string_in_reasoning_or_a_call_leaves_the_chat_out(
    side: SideTokenizer, fields: dict[str, Any]
) -> None:
    rendered = Renderer(side).render([row(("user", "Hi"), said("Hello.", **fields))])
    assert rendered.statuses == ["skipped:special_token_text"]


def test_spans_of_two_sides_lie_in_what_both_call_the_response(side: SideTokenizer) -> None:
    """One template writes the reasoning and the other does not: only the answer is aligned, and all of it."""
    other = side_of(FAMILIES[0])
    chat = row(("user", "Hi"), said("Hello, you.", reasoning_content="Hello, they say."))
    rendered = [Renderer(one).render([chat]) for one in (side, other)]
    batches = [one.encode_batches([two], is_chat=True)[0] for one, two in zip((side, other), rendered, strict=True)]
    (text, ranges), (other_text, other_ranges) = ((one.texts, one.ranges) for one in rendered)
    table = align(
        student=batches[0].offsets,
        teacher=batches[1].offsets,
        segments=segments_for(
            student_texts=text, student_ranges=ranges, teacher_texts=other_text, teacher_ranges=other_ranges
        ),
        student_texts=text,
    )
    tokens = np.concatenate([np.arange(*span) for span in table.student_spans[0].tolist()])
    assert side.tokenizer.decode(batches[0].ids[0][tokens]) == "Hello, you."

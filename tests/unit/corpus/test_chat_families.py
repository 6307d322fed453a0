"""Framing by role: where a turn begins and what ends it, by templates of the shape each family publishes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sra_data.corpus.chat import Renderer
from sra_data.corpus.examples import Row
from sra_data.corpus.tokenization import SideTokenizer, TokenizedBatch
from tests.chat_families import FAMILIES, Family, side_of
from tests.tokenizer_zoo import train_byte_level, train_unigram

DOCS = Path(__file__).resolve().parents[3] / "docs" / "chats.md"
TURNS = (("user", "Hi!"), ("assistant", "Hello, you."), ("user", "And?"), ("assistant", "That's it."))
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def row(*turns: tuple[str, str] | dict) -> Row:
    messages = [turn if isinstance(turn, dict) else {"role": turn[0], "content": turn[1]} for turn in turns]
    return Row("0", "a.jsonl:1", None, None, messages)


def read(side: SideTokenizer, chat: Row) -> TokenizedBatch:
    rendered = Renderer(side).render([chat])
    assert rendered.statuses == ["ok"]
    (batch,) = side.encode_batches([rendered], is_chat=True)
    return batch


def labelled(side: SideTokenizer, batch: TokenizedBatch) -> list[str]:
    return [side.tokenizer.decode(batch.ids[0][start:stop]) for start, stop in batch.label_spans[0].tolist()]


@families
def test_what_ends_a_turn_is_labelled_in_every_turn_and_nothing_else_is(family: Family) -> None:
    side = side_of(family)
    batch = read(side, row(*TURNS))
    last = family.eos if family.end_of_sequence == "added" else ""
    assert labelled(side, batch) == ["Hello, you." + family.end, "That's it." + family.end + last]
    assert batch.counts == ({"ends_not_labelled": 1} if not family.end else {})
    text = side.tokenizer.decode(batch.ids[0])
    assert text.startswith(family.begin)
    assert text.count(family.begin) == (2 if family.name == "Llama 2" else 1) or not family.begin


@families
def test_an_end_mark_that_is_no_token_is_labelled_whole(family: Family) -> None:
    side = side_of(family, knows_its_tokens=False)
    batch = read(side, row(*TURNS))
    last = "" if family.end else "</s>"
    assert labelled(side, batch) == ["Hello, you." + family.end, "That's it." + family.end + last]


@families
def test_a_turn_that_goes_on_with_tool_calls_is_not_at_its_end(family: Family) -> None:
    side = side_of(family)
    call = {"role": "assistant", "content": "Let me see.", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    batch = read(side, row(("user", "Hi!"), call, ("user", "12"), ("assistant", "Twelve.")))
    assert labelled(side, batch)[0] == "Let me see."
    assert "ends_not_labelled" not in batch.counts


@families
def test_prompt_and_labels_are_the_whole_text_cut_once(family: Family) -> None:
    """A model that reads up to a response and then writes what is labelled has written what the template writes."""
    side = side_of(family)
    batch = read(side, row(*TURNS[:2]))
    text = Renderer(side).render([row(*TURNS[:2])]).texts[0]
    start, stop = batch.label_spans[0][0].tolist()
    assert text.startswith(side.tokenizer.decode(batch.ids[0][:start]) + "Hello, you." + family.end)
    assert side.tokenizer.decode(batch.ids[0][start:stop]).startswith("Hello, you." + family.end)


def test_without_a_template_a_chat_begins_as_every_text_does_and_every_turn_ends() -> None:
    side = SideTokenizer(train_unigram(), "unigram")
    batch = read(side, row(*TURNS))
    assert tuple(batch.ids[0][: len(side.prefix_ids)]) == side.prefix_ids != ()
    assert [said.removesuffix("</s>") for said in labelled(side, batch)] == ["Hello, you.", "That's it."]
    assert not batch.counts
    plain = side.encode(["Hi! Hello."], response_ranges=[[(4, 10)]], is_chat=False)
    assert plain.ids[0][0] == batch.ids[0][0]


def test_a_student_that_cannot_learn_to_stop_is_counted() -> None:
    tokenizer = train_byte_level()
    tokenizer.eos_token = None
    side = SideTokenizer(tokenizer, "endless")
    batch = side.encode(["ab", "cd"], response_ranges=[[(1, 2)], [(1, 2)]], is_chat=False)
    assert batch.counts == {"ends_not_labelled": 2}
    cut = side.encode(["abcd"], response_ranges=[[(1, 4)]], is_chat=False, max_length=2)
    assert cut.counts == {"overlong_truncated": 1}  # it is not at its end: nothing should be labelled there


def test_a_template_whose_last_turn_ends_unlike_the_others_is_followed() -> None:
    template = (
        "{% for m in messages %}{{ m.role + ':' + m.content }}{% if not loop.last %}{{ '<|next|>' }}{% endif %}"
        "{% endfor %}"
    )
    side = side_of(Family("x", template, ("<|next|>",), None, "<|endoftext|>", "", ""))
    assert labelled(side, read(side, row(*TURNS))) == ["Hello, you.<|next|>", "That's it.<|endoftext|>"]


def table() -> str:
    """The table of docs/chats.md."""

    def code(text: str) -> str:
        return f"`{text}`" if text else ""

    lines = [
        "| template of the shape of | begins with | ends a turn, labelled | spelled out | behind the last turn |",
        "|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        side, spelled = side_of(family), side_of(family, knows_its_tokens=False)
        said, other = (labelled(one, read(one, row(*TURNS))) for one in (side, spelled))
        begin = side.tokenizer.decode(read(side, row(*TURNS)).ids[0])[: len(family.begin)]
        mark = said[0].removeprefix("Hello, you.")
        pieces = len(spelled.cut([other[0].removeprefix("Hello, you.")])[0])
        last = said[1].removeprefix("That's it.").removeprefix(mark)
        behind = f"{code(last)}, added and labelled" if last else code(family.end_of_sequence)
        spelled_out = f"{code(mark)}, in pieces ({pieces} bytes)" if mark else ""
        cells = (family.name, code(begin), code(mark) or "nothing: counted", spelled_out, behind)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines).replace("<|", "<\\|").replace("|>", "\\|>")


def test_the_table_of_the_documentation_is_what_the_templates_give() -> None:
    assert table() in DOCS.read_text("utf-8")

"""The share of characters that spans cover: what a walk over the characters finds, and never more than there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sra_data.shards.store import ShardSet
from sra_data.stages.align.stage import align
from sra_data.stages.inspect.example import ReadSide, make_inspection
from sra_data.terminal import Reporter
from tests.tokenizer_zoo import train_unigram, train_wordpiece
from tests.unit.stages.align_worlds import write_jsonl

ROWS = [
    {"prompt": "Name a fox: \n\n ", "response": "The quick brown fox."},
    {"prompt": "Why ?  ", "response": " It  jumps \n over the dog "},
    {"prompt": "Él está ", "response": "aquí: mañana"},
    {"text": "  the dog sleeps"},
]
CHAT = [("user", "Hi "), ("assistant", " the fox  jumps "), ("user", "And ?"), ("assistant", "\n It sleeps. ")]
CHATS = [{"messages": [{"role": role, "content": content} for role, content in CHAT]}]


@pytest.fixture
def wordpiece(tmp_path) -> str:
    """A tokenizer that skips white space, so that no token ends where a prompt does."""
    tokenizer = train_wordpiece()
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(tmp_path / "a-words")
    return str(tmp_path / "a-words")


@pytest.mark.parametrize("values", [ROWS, CHATS], ids=["rows", "chats"])
@pytest.mark.parametrize("other", ["bytes", "words", "a-a-unigram"])
def test_no_more_characters_are_covered_than_the_responses_have(
    options, world, tmp_path, read_all, wordpiece, other, values
) -> None:
    train_unigram().save_pretrained(tmp_path / "a-a-unigram")
    data = str(write_jsonl(tmp_path / "few.jsonl", values))
    names = {"bytes": str(world / "bytes"), "words": wordpiece, "a-a-unigram": str(tmp_path / "a-a-unigram")}
    given = replace(options, teachers=(wordpiece,), students=(names[other],), data=data, dev_share=0.0)
    (pair,) = align(given, Reporter()).pairs
    found = read_all(given.out)
    left = "teacher" if pair.teacher <= pair.student else "student"
    assert left == ("student" if other == "a-a-unigram" else "teacher")
    assert 0 < pair.covered <= 1
    expected = characters = 0
    for row, spans in enumerate(found.spans):
        side = getattr(found, left)[row]
        inside: set[int] = set()
        for start, stop in side.response_ranges.tolist():
            characters += stop - start
            opened = start
            for first, last in getattr(spans, f"{left}_spans").tolist():
                opened = max(opened, int(side.ends[:first].max(initial=0)))  # behind one that reaches over the border
                if start < side.ends[last - 1] <= stop:
                    inside |= set(range(opened, int(side.ends[last - 1])))
                    opened = int(side.ends[last - 1])
        expected += len(inside)
    assert pair.covered == expected / characters


def test_what_inspect_says_of_a_row_is_what_align_counted(options, world, tmp_path, wordpiece) -> None:
    data = str(write_jsonl(tmp_path / "one.jsonl", ROWS[:1]))
    given = replace(options, teachers=(str(world / "bytes"),), students=(wordpiece,), data=data, dev_share=0.0)
    (pair,) = align(given, Reporter()).pairs
    with ShardSet.open(Path(given.out)) as shards:
        (example,) = shards.corpus.read([0])
        sides = {
            name: ReadSide.of(name, shards.side(name).read([0])[0], example) for name in (pair.teacher, pair.student)
        }
        for teacher, student in ((pair.teacher, pair.student), (pair.student, pair.teacher)):
            (spans,) = shards.pair(student=student, teacher=teacher).read([0])
            inspection = make_inspection(
                row=0, example=example, student=sides[student], teacher=sides[teacher], alignment=pair.alignment,
                spans=spans, status="ok",
            )  # fmt: skip
            assert inspection.covered == pair.covered == 1.0

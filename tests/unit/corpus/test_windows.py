"""Windows of arbitrary texts, by tokenizers of every family: in order, whole, and no longer than any side takes."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_data.corpus.examples import Row
from sra_data.corpus.tokenization import SideTokenizer
from sra_data.corpus.windows import Cuts, Windower, window_rows
from sra_data.stages.align.pairs import Side
from tests.text_strategy import texts
from tests.tokenizer_zoo import ZOO_TEXTS, train_byte_level_bpe, train_t5_like, zoo

NAMES = ("byte_level_bpe", "byte_level_bpe_nfc", "sentencepiece_bpe", "unigram", "wordpiece", "character_level")


@cache
def trained() -> dict[str, SideTokenizer]:
    return {name: SideTokenizer(tokenizer, name) for name, tokenizer in zoo().items() if name in NAMES}


def side(name: str, max_length: int | None) -> Side:
    return Side(name, trained()[name], max_length, "window")


def row(prompt: str, response: str) -> Row:
    return Row("a", "a.jsonl:1", prompt, response)


def check_laws(made: Cuts, given_row: Row, sides: list[Side]) -> None:
    windows = window_rows(given_row, made)
    assert made.length == len(given_row.response or "")
    assert "".join(one.response or "" for one in windows) == given_row.response
    assert [one.goes_on for one in windows] == [True] * (len(windows) - 1) + [False]
    assert len({one.id for one in windows}) == len(windows)
    before = ""
    for one in windows:
        prompt = one.prompt or ""
        assert prompt.startswith(given_row.prompt or "")
        context = prompt.removeprefix(given_row.prompt or "")
        assert before.endswith(context)
        before += one.response or ""
        for each in sides:
            text, border = prompt + (one.response or ""), len(prompt)
            batch = each.tokenizer.encode([text], response_ranges=[[(border, len(text))]], is_chat=False)
            first, stop = batch.response_spans[0][0].tolist()
            if len(one.response or "") > 1:
                assert each.max_length is None or len(batch.ids[0]) <= each.max_length
            if context and stop > first:
                assert batch.offsets.starts[0][first] >= border, "no token reaches from the overlap into the stretch"


@settings(max_examples=40, deadline=None)
@given(
    prompt=st.sampled_from(["", "", "Why?\n"]),
    parts=st.lists(texts(), min_size=3, max_size=12),
    one=st.sampled_from(NAMES),
    other=st.sampled_from(NAMES),
    lengths=st.tuples(st.integers(16, 60), st.integers(16, 60)),
    overlap=st.integers(0, 4),
)
def test_the_stretches_of_any_text_are_the_text_and_every_window_fits(
    prompt: str, parts: list[str], one: str, other: str, lengths: tuple[int, int], overlap: int
) -> None:
    sides = [side(one, lengths[0]), side(other, lengths[1])]
    given_row = row(prompt, " ".join(parts))
    made = Windower(sides, overlap)(given_row)
    if made is not None and made.windows:
        check_laws(made, given_row, sides)
        assert Cuts.from_json(made.to_json()) == made


@pytest.mark.parametrize("name", NAMES)
def test_what_fits_or_is_a_chat_is_left_as_it_is(name: str) -> None:
    windower = Windower([side(name, 12)], 2)
    assert windower(row("", "A fox.")) is None
    assert Windower([side(name, None)], 2)(row("", " ".join(ZOO_TEXTS) * 20)) is None
    chat = Row("a", "", None, None, [{"role": "assistant", "content": " ".join(ZOO_TEXTS)}])
    assert windower(chat) is None
    assert windower(row(" ".join(ZOO_TEXTS), "A fox.")) == Cuts(6, ())


def test_a_stretch_ends_behind_a_line_or_a_word_where_it_can() -> None:
    lines = "".join(f"The fox jumps over {number} dogs.\n" for number in range(40))
    made = Windower([side("byte_level_bpe", 200), side("unigram", 240)], 8)(row("", lines))
    assert made is not None
    assert {lines[one.stop - 1] for one in made.windows} == {"\n"}
    words = lines.replace("\n", " ")
    made = Windower([side("byte_level_bpe", 200), side("unigram", 240)], 8)(row("", words))
    assert made is not None
    assert {words[one.stop] for one in made.windows[:-1]} == {" "}


def test_a_text_without_any_shared_boundary_is_cut_all_the_same() -> None:
    side_of = {name: Side(name, SideTokenizer(one, name), 24, "window") for name, one in {
        "bpe": train_byte_level_bpe(["ab" * 40]), "t5": train_t5_like(["ba" * 40]),
    }.items()}  # fmt: skip
    given_row = row("", "ab" * 300)
    made = Windower([*side_of.values()], 3)(given_row)
    assert made is not None
    check_laws(made, given_row, [*side_of.values()])


def test_a_text_whose_tokens_cannot_be_located_is_left_to_whoever_cuts_it(monkeypatch) -> None:
    windower = Windower([side("unigram", 12)], 2)
    encode = SideTokenizer.encode

    def lost(*arguments, **named):
        batch = encode(*arguments, **named)
        batch.status[:] = ["skipped:unlocatable"] * len(batch.status)
        return batch

    monkeypatch.setattr(SideTokenizer, "encode", lost)
    assert windower(row("", " ".join(ZOO_TEXTS))) is None


def test_a_long_text_costs_a_few_cuts_a_window_and_no_more(monkeypatch) -> None:
    """However often a window has to be laid out again: what is cut is a few times the text."""
    cut = []
    encode = SideTokenizer.encode

    def counted(own, batch, **named):
        cut.append(sum(map(len, batch)))
        return encode(own, batch, **named)

    monkeypatch.setattr(SideTokenizer, "encode", counted)
    text = "\n".join(ZOO_TEXTS) * 60
    made = Windower([side("sentencepiece_bpe", 64), side("byte_level_bpe", 64)], 8)(row("", text))
    assert made is not None
    assert len(made.windows) > 200
    assert sum(cut) < 2 * 4 * len(text)

"""One example on a terminal and on a page: pieces that read as the text, spans lined up, all escaped."""

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from sra_data.errors import ShardError
from sra_data.shards.schema import AlignmentRow, CorpusRow
from sra_data.stages.align.stage import AlignOptions, align
from sra_data.stages.inspect.example import Inspection, Piece, cut_pieces, make_inspection
from sra_data.stages.inspect.html import page as page_of
from sra_data.stages.inspect.stage import InspectOptions, inspect, show
from sra_data.stages.inspect.text import plain_lines, sign, visible
from sra_data.terminal import Reporter
from tests.unit.stages.align_worlds import CHAT_TEMPLATE, save_byte_level, save_unigram, write_jsonl

TEXT = "Say:\nHello 東京 😀!"


def example(*, alignment_changes=None, **changes) -> Inspection:
    """|Hel|lo| 東|京|😀 in 2|!| <end>   against   |Hello| |東京|😀|!|"""
    corpus = {
        "id": "a",
        "split": "train",
        "status": "ok",
        "text": TEXT,
        "response_ranges": [[5, 15]],
        "teacher_ids": [1, 2, 3, 4, 5, 6, 7, 8],
        "teacher_ends": [4, 5, 10, 11, 13, 14, 15, 16],
        "teacher_response_spans": [[2, 8]],
    }
    alignment = {
        "id": "a",
        "status": "ok",
        "student_ids": [9, 1, 2, 3, 4, 5, 5, 5, 6, 50256],
        "student_ends": [0, 5, 8, 10, 12, 13, 15, 15, 16, 0],
        "label_spans": [[2, 10]],
        "student_spans": [[2, 4], [4, 6], [6, 8], [8, 9]],
        "teacher_spans": [[2, 3], [3, 5], [5, 7], [7, 8]],
    }
    text_columns = {"id", "split", "status", "text", "student_text"}

    def arrays(values):
        return {name: value if name in text_columns else np.array(value, np.int32) for name, value in values.items()}

    return make_inspection(
        row=3,
        student="gpt2-12345678",
        corpus=CorpusRow(**arrays({**corpus, **changes})),
        alignment=AlignmentRow(**arrays({**alignment, **(alignment_changes or {})})),
    )


def printed(inspection: Inspection, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, record=True, color_system=None)
    show(inspection, console)
    return console.export_text().splitlines()


def edges(line: str) -> list[int]:
    """The cells at which spans end."""
    return [cell_len(line[: found.start()]) for found in re.finditer("┃", line)]


def test_both_rows_show_their_pieces_with_the_spans_beneath_each_other():
    lines = printed(example(), 120)
    assert lines[0] == "row 3 · id a · train"
    assert "10 tokens" in lines[1]
    assert "4 spans · 100.0 %" in lines[1]
    assert lines[2] == "Say:⏎"
    assert lines[3].startswith("student Hel│lo┃␣東│京┃")
    assert lines[4].startswith("teacher Hello ┃␣│東京┃")
    assert edges(lines[3]) == edges(lines[4])
    assert "#50256" in lines[3]


def test_tokens_that_share_a_character_are_marked_as_its_parts():
    pieces = cut_pieces("é!", np.array([7, 8, 9, 0], np.int32), np.array([1, 1, 2, 0], np.int32))
    assert [visible(piece) for piece in pieces] == ["é¹⁄₂", "²⁄₂", "!", "#0"]


@pytest.mark.parametrize(
    ("character", "shown"),
    [
        (" ", "␣"),
        ("\n", "⏎"),
        ("\r", "␍"),
        ("\t", "⇥"),
        ("\0", "⟨0000⟩"),
        ("\u200d", "⟨200D⟩"),
        ("\ufe0f", "⟨FE0F⟩"),
        ("京", "京"),
    ],
)
def test_invisible_characters_get_a_sign(character, shown):
    assert sign(character) == shown


def test_a_mark_alone_gets_a_carrier():
    assert visible(Piece("\u0301", 0)) == "◌\u0301"


@pytest.mark.parametrize("width", [20, 33, 60, 200])
def test_lines_fit_any_terminal_and_lose_nothing(width):
    inspection = example(text="Say:\nHello 東京 😀!")
    lines = [
        line
        for line in printed(inspection, width)
        if line.startswith(("student ", "teacher ")) and "tokens" not in line
    ]
    assert all(cell_len(line) <= width for line in lines)
    for side, pieces in (("student", "Hel│lo␣東│京"), ("teacher", "Hello␣│東京")):
        shown = "".join(line.removeprefix(f"{side} ") for line in lines if line.startswith(side))
        assert shown.replace("┃", "").replace(" ", "").startswith(pieces)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), text=st.text(min_size=1, max_size=40), width=st.integers(20, 90))
def test_spans_line_up_in_every_script_at_every_width(data, text, width):
    ends = sorted(data.draw(st.sets(st.integers(1, len(text)), min_size=1)) | {len(text)})
    student = sorted(set(ends) | data.draw(st.sets(st.integers(1, len(text)))))

    def spans(side):
        stops = [side.index(end) + 1 for end in ends]
        return np.array(list(zip([0, *stops[:-1]], stops, strict=True)), np.int32)

    inspection = make_inspection(
        row=0,
        student="s",
        corpus=CorpusRow(
            "i",
            "train",
            "ok",
            text,
            np.array([[0, len(text)]], np.int32),
            np.arange(len(ends), dtype=np.int32),
            np.array(ends, np.int32),
            np.array([[0, len(ends)]], np.int32),
        ),
        alignment=AlignmentRow(
            "i",
            "ok",
            np.arange(len(student), dtype=np.int32),
            np.array(student, np.int32),
            np.array([[0, len(student)]], np.int32),
            spans(student),
            spans(ends),
        ),
    )
    assert inspection.covered == 1.0
    assert ["".join(piece.text for column in inspection.turns[0] for piece in column.teacher)] == [text]
    lines = [line.plain for line in _response_lines(inspection, width)]
    for above, below, empty in zip(lines[0::3], lines[1::3], lines[2::3], strict=True):
        assert above.startswith("student ")
        assert below.startswith("teacher ")
        assert empty == ""
        # a "┃" of the text itself would stand on one side only as part of a piece, so compare line lengths too
        assert cell_len(above) == cell_len(below) <= max(width, 20)
        if "┃" not in text:
            assert edges(above) == edges(below)


def _response_lines(inspection, width):
    from sra_data.stages.inspect.text import response_lines

    return list(response_lines(inspection.turns[0], width=width))


class Page(HTMLParser):
    """Collects tags, and the text of pieces and of the prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.links, self.pieces, self.open = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open.append(dict(attributes).get("class", tag))
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == "piece":
            self.pieces.append(data)


def test_the_page_stands_alone_and_escapes_everything():
    html = page_of(example(text='<i>:\n<b>&" 東京 😀!', id="<script>alert(1)</script>"))
    page = Page()
    page.feed(
        html.replace('<meta charset="utf-8">', "")
        .replace("<!doctype html>", "")
        .replace('<meta name="viewport" content="width=device-width, initial-scale=1">', "")
    )
    assert not page.links
    assert "http" not in html
    assert {"script", "b", "i", "img", "link"}.isdisjoint(page.tags)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "".join(page.pieces).startswith('<b>&"')
    assert not page.open


def test_shards_are_found_by_row_and_by_id_in_chats_too(tmp_path):
    save_byte_level(tmp_path / "chatty", chat_template=CHAT_TEMPLATE)
    save_unigram(tmp_path / "pieces")
    turns = [("user", "Hi"), ("assistant", " Hello 😀 "), ("user", "And?"), ("assistant", "Bye.")]
    chat = {"id": "1", "messages": [{"role": role, "content": content} for role, content in turns]}
    data = write_jsonl(tmp_path / "data.jsonl", [chat, {"id": "zero", "prompt": "a b\n", "response": "c d"}])
    out = str(tmp_path / "shards")
    align(AlignOptions(str(tmp_path / "chatty"), str(tmp_path / "pieces"), str(data), out=out), Reporter())
    found = inspect(InspectOptions("1", out), Reporter())
    assert (found.row, found.id, len(found.turns)) == (0, "1", 2)
    lines = printed(found, 120)
    assert "response 2 of 2" in lines
    assert ["".join(piece.text for column in turn for piece in column.teacher) for turn in found.turns] == [
        "Hello 😀",
        "Bye.",
    ]
    page = tmp_path / "page.html"
    found = inspect(InspectOptions("zero", out, html=str(page), student="pieces"), Reporter())
    assert found.row == 1
    assert page.read_text("utf-8") == page_of(found)
    assert plain_lines(found, 100)[:1] == ["row 1 · id zero · train"]
    assert found.as_dict()["turns"][0][0]["number"] == 0
    with pytest.raises(ShardError, match="example 9: no such id, and no row number below 2; give one of these"):
        inspect(InspectOptions("9", out), Reporter())
    with pytest.raises(ShardError, match="no alignment gpt2"):
        inspect(InspectOptions("1", out, student="gpt2"), Reporter())
    with pytest.raises(ShardError, match=r"cannot be written \(.*\); name another file for --html"):
        inspect(InspectOptions("1", out, html=str(tmp_path / "no" / "page.html")), Reporter())


def test_a_skipped_example_says_so():
    none = np.zeros((0, 2))
    inspection = example(
        status="skipped:teacher_overlong",
        teacher_ids=[],
        teacher_ends=[],
        teacher_response_spans=none,
        alignment_changes={
            "status": "skipped:teacher_overlong",
            "student_ids": [],
            "student_ends": [],
            "label_spans": none,
            "student_spans": none,
            "teacher_spans": none,
        },
    )
    assert (inspection.turns, inspection.covered) == ([], 0.0)
    assert printed(inspection, 120)[0] == "row 3 · id a · train · skipped:teacher_overlong"

"""One example on a terminal and on a page: pieces that read as the text, spans lined up, all escaped."""

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from sra_data.errors import ConfigError, ShardError
from sra_data.shards.schema import CLOSES, OPEN, SPECIAL, ExampleRow, SideRow
from sra_data.shards.store import PairSpans
from sra_data.stages.align.options import AlignOptions
from sra_data.stages.align.stage import align
from sra_data.stages.inspect.example import Inspection, Piece, ReadSide, cut_pieces, make_inspection
from sra_data.stages.inspect.html import page as page_of
from sra_data.stages.inspect.stage import InspectOptions, inspect, show
from sra_data.stages.inspect.text import plain_lines, sign, visible
from sra_data.terminal import Reporter
from tests.unit.stages.align_worlds import CHAT_TEMPLATE, save_byte_level, save_unigram, write_jsonl

TEXT = "Say:\nHello 東京 😀!"


def side(**values) -> SideRow:
    """A side's row from lists: what is not said is an ordinary token's."""
    wanted = {"status": "ok", "response_turns": [0] * len(values["label_spans"]), "response_ranges": [], **values}
    wanted.setdefault("starts", [0] * len(wanted["ids"]))
    wanted.setdefault("kinds", [CLOSES] * len(wanted["ids"]))
    arrays = {name: np.array(value, np.int32) for name, value in wanted.items() if isinstance(value, list)}
    arrays["kinds"] = arrays["kinds"].astype(np.uint8)
    pairs = {name: array.reshape(-1, 2) for name, array in arrays.items() if name.endswith(("spans", "ranges"))}
    return SideRow("a", **{**wanted, **arrays, **pairs})


TEACHER = {
    "ids": [1, 2, 3, 4, 5, 6, 7, 8],
    "ends": [4, 5, 10, 11, 13, 14, 15, 16],
    "response_ranges": [[5, 16]],
    "response_spans": [[2, 8]],
    "label_spans": [[2, 8]],
}
STUDENT = {
    "ids": [9, 1, 2, 3, 4, 5, 5, 5, 6, 50256],
    "ends": [0, 5, 8, 10, 12, 13, 15, 15, 16, 0],
    "kinds": [SPECIAL, *[CLOSES] * 8, SPECIAL],
    "response_ranges": [[5, 16]],
    "response_spans": [[2, 9]],
    "label_spans": [[2, 10]],
}
PAIR = "gpt2-12345678~llama-87654321"
SPANS = ([[2, 4], [4, 6], [6, 8], [8, 9]], [[2, 3], [3, 5], [5, 7], [7, 8]])
SKIPPED = {name: [] for name in TEACHER} | {"status": "skipped:overlong", "kinds": []}


def example(
    *, text=TEXT, id="a", student=STUDENT, teacher=TEACHER, spans=SPANS, status="ok", alignment=PAIR
) -> Inspection:
    """|Hel|lo| 東|京|😀 in 2|!| <end>   against   |Hello| |東京|😀|!|"""
    row = ExampleRow(id, "train", 10, text[:5], text[5:])
    student_spans, teacher_spans = (np.array(one, np.int32).reshape(-1, 2) for one in spans)
    return make_inspection(
        row=3,
        example=row,
        student=ReadSide.of("gpt2-12345678", side(**student), row),
        teacher=ReadSide.of("llama-87654321", side(**teacher), row),
        alignment=alignment,
        spans=PairSpans(id, status, student_spans, teacher_spans),
        status=status,
    )


def printed(inspection: Inspection, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, record=True, color_system=None)
    show(inspection, console)
    return console.export_text().splitlines()


def edges(line: str) -> list[int]:
    """The cells at which spans end."""
    return [cell_len(line[: found.start()]) for found in re.finditer("┃", line)]


def test_both_rows_show_their_pieces_with_the_spans_beneath_each_other():
    lines = printed(example(), 140)
    assert lines[0] == "row 3 · id a · train"
    assert "10 tokens" in lines[1]
    assert "4 spans · 100.0 %" in lines[1]
    assert lines[2] == "Say:⏎"
    assert lines[3].startswith("student Hel│lo┃␣東│京┃")
    assert lines[4].startswith("teacher Hello ┃␣│東京┃")
    assert edges(lines[3]) == edges(lines[4])
    assert "#50256" in lines[3]


def test_what_is_covered_is_measured_in_the_teachers_text():
    """The student's template writes every character twice."""
    twice = {**STUDENT, "text": "".join(2 * letter for letter in TEXT), "ends": [2 * end for end in STUDENT["ends"]]}
    twice["response_ranges"] = [[10, 32]]
    inspection = example(student=twice, spans=(SPANS[0][:1], SPANS[1][:1]))
    assert inspection.covered == len("Hello") / len("Hello 東京 😀!")
    assert "".join(piece.text for piece in inspection.turns[0][0].student) == "HHeelllloo"


def test_other_options_than_the_usual_ones_are_named():
    assert "aligned by" not in printed(example(), 140)[1]
    assert printed(example(alignment=f"{PAIR}~word"), 160)[1].endswith("characters in spans · aligned by word")


def test_tokens_that_share_a_character_are_marked_as_its_parts():
    kinds = np.array([OPEN, CLOSES, CLOSES, SPECIAL], np.uint8)
    pieces = cut_pieces("é!", np.array([7, 8, 9, 0], np.int32), np.array([1, 1, 2, 0], np.int32), kinds)
    assert [visible(piece) for piece in pieces] == ["é¹⁄₂", "²⁄₂", "!", "#0"]
    ends = np.array([1, 2, 2, 2, 3, 4, 4], np.int32)
    pieces = cut_pieces("a😀bé", np.arange(7, dtype=np.int32), ends, np.full(7, CLOSES, np.uint8))
    assert [visible(piece) for piece in pieces] == ["a", "😀¹⁄₃", "²⁄₃", "³⁄₃", "b", "é¹⁄₂", "²⁄₂"]


def test_special_tokens_are_known_by_their_kind_alone():
    """A token of no characters before the text is no special token, though it ends at 0 too."""
    kinds = np.array([SPECIAL, OPEN, CLOSES], np.uint8)
    pieces = cut_pieces("a", np.array([1, 2, 3], np.int32), np.array([0, 0, 1], np.int32), kinds)
    assert [visible(piece) for piece in pieces] == ["#1", "∅", "a"]


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

    def spans(side_ends):
        stops = [side_ends.index(end) + 1 for end in ends]
        return np.array(list(zip([0, *stops[:-1]], stops, strict=True)), np.int32)

    def read(name, side_ends):
        whole = [[0, len(side_ends)]]
        values = {"ids": list(range(len(side_ends))), "ends": side_ends, "response_ranges": [[0, len(text)]]}
        return ReadSide(name, side(**values, response_spans=whole, label_spans=whole), text)

    inspection = make_inspection(
        row=0,
        example=ExampleRow("i", "train", len(text.encode()), "", text),
        student=read("s", student),
        teacher=read("t", ends),
        alignment="s~t",
        spans=PairSpans("i", "ok", spans(student), spans(ends)),
        status="ok",
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
    page.feed(re.sub(r"<meta [^>]*>|<!doctype html>", "", html))
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
    align(AlignOptions((str(tmp_path / "chatty"),), (str(tmp_path / "pieces"),), str(data), out=out), Reporter())
    found = inspect(InspectOptions("1", out), Reporter())
    assert (found.row, found.id, len(found.turns)) == (0, "1", 2)
    lines = printed(found, 120)
    assert "response 2 of 2" in lines
    assert ["".join(piece.text for column in turn for piece in column.teacher) for turn in found.turns] == [
        "Hello 😀",
        "Bye.",
    ]
    page = tmp_path / "page.html"
    found = inspect(InspectOptions("zero", out, html=str(page), student="pieces", around=0), Reporter())
    assert found.row == 1
    assert page.read_text("utf-8") == page_of(found)
    inspect(InspectOptions("zero", out, html=str(page), student="pieces"), Reporter())
    assert page.read_text("utf-8") == page_of(found, [inspect(InspectOptions("1", out), Reporter())])
    with pytest.raises(ConfigError, match="--around -1: must be at least 0"):
        inspect(InspectOptions("1", out, around=-1), Reporter())
    assert plain_lines(found, 100)[:1] == ["row 1 · id zero · train"]
    assert found.as_dict()["turns"][0][0]["number"] == 0
    with pytest.raises(ShardError, match="example 9: no such id, and no row number below 2; give one of these"):
        inspect(InspectOptions("9", out), Reporter())
    with pytest.raises(ShardError, match="no student gpt2"):
        inspect(InspectOptions("1", out, student="gpt2"), Reporter())
    with pytest.raises(ShardError, match=r"cannot be written \(.*\); name another file for --html"):
        inspect(InspectOptions("1", out, html=str(tmp_path / "no" / "page.html")), Reporter())


def test_a_page_has_the_neighbours_a_link_away_and_shows_the_one_that_was_asked_for():
    some = [replace(example(), row=row, id=f"id-{row}") for row in (4, 5, 6)]
    html = page_of(some[1], [some[2], some[0]])
    articles = re.findall(r'<article id="(row-\d)" class="(example(?: asked)?)">', html)
    assert articles == [("row-4", "example"), ("row-5", "example asked"), ("row-6", "example")]
    steps = [re.findall(r'rel="(\w+)" href="#(row-\d)"', part) for part in html.split("<article ")[1:]]
    assert steps == [[("next", "row-5")], [("prev", "row-4"), ("next", "row-6")], [("prev", "row-5")]]
    # shown is the one that is asked for, until the address names another
    for rule in (
        ".example { display: none; }",
        ".example.asked, .example:target { display: block; }",
        "main:has(.example:target) .example.asked:not(:target) { display: none; }",
    ):
        assert rule in html
    assert "<nav" not in page_of(some[0])


def test_every_line_of_a_page_says_whose_row_is_whose():
    """There are as many labels as there may be lines, of the height of a line each; what is too many is cut off."""
    html = page_of(example())
    boxes = html.count('<div class="span ')
    assert boxes == 5
    assert html.count("<span>student</span><span>teacher</span>") == boxes
    style = html.partition("</style>")[0]
    for rule in (
        "height: var(--row); line-height: var(--row); }",
        "margin-bottom: var(--between); }",
        "overflow: hidden",
    ):
        assert rule in style
    assert re.search(r"\.row \{ display: flex; height: var\(--row\)", style)
    assert re.search(r"\.flow \{.*gap: var\(--between\) 4px", style)


def test_many_tokens_in_no_span_wrap_as_a_text_does():
    many = 41
    whole = [[0, many]]
    values = {"ids": list(range(many)), "ends": list(range(1, many + 1)), "response_ranges": [[0, many]]}
    teacher = {**values, "response_spans": whole, "label_spans": whole}
    inspection = example(
        text="x" * 45, student=SKIPPED, teacher=teacher, spans=([], []), status="skipped:student_overlong"
    )
    html = page_of(inspection)
    assert html.count('<div class="span gap"') == 6
    assert html.count('class="piece"') == many


def test_a_pointer_is_told_which_token_and_which_span():
    html = page_of(example())
    assert 'title="span 0: 2 student tokens, 1 teacher tokens"' in html
    assert "student&#39;s token 2 · span 0: 2 student tokens, 1 teacher tokens" in html
    assert 'title="in no span"' in html
    assert html.count('tabindex="0"') == html.count('<div class="span ')


def test_a_skipped_example_says_so():
    inspection = example(student=SKIPPED, teacher=SKIPPED, spans=([], []), status="skipped:teacher_overlong")
    assert (inspection.turns, inspection.covered) == ([], 0.0)
    assert printed(inspection, 120)[0] == "row 3 · id a · train · skipped:teacher_overlong"


@pytest.mark.parametrize("skipped", ["student", "teacher"])
def test_an_example_that_one_side_skipped_shows_the_other(skipped):
    inspection = example(**{skipped: SKIPPED}, spans=([], []), status=f"skipped:{skipped}_overlong")
    ((column,),) = inspection.turns
    assert column.number is None
    assert "".join(piece.text for piece in column.student + column.teacher) == "Hello 東京 😀!"
    assert inspection.prompt == "Say:\n"


def test_turns_stand_beneath_each_other_by_their_message():
    """A template that leaves out the first answer does not put the second beneath it."""
    both = {**TEACHER, "response_turns": [1, 3], "response_spans": [[2, 4], [6, 8]], "label_spans": [[2, 4], [6, 8]]}
    both["response_ranges"] = [[5, 11], [14, 16]]
    last = {**STUDENT, "response_turns": [3], "response_spans": [[8, 9]], "label_spans": [[8, 10]]}
    inspection = example(student=last, teacher=both, spans=([[8, 9]], [[7, 8]]))
    first, second = inspection.turns
    assert [(column.number, len(column.student), len(column.teacher)) for column in first] == [(None, 0, 2)]
    assert [(column.number, len(column.student), len(column.teacher)) for column in second] == [
        (None, 0, 1),
        (0, 1, 1),
        (None, 1, 0),
    ]


def test_nothing_in_an_example_steers_the_terminal():
    steering = "\x1b[2J\x9b1A\u202e"
    inspection = example(text=f"Say{steering}:\nHello", id=f"a{steering}\nb")
    said = "\n".join(printed(inspection))
    assert not set(steering[0] + "\x9b\u202e") & set(said)
    assert "id a\\x1b[2J\\x9b1A\\u202e b" in said
    assert not {"\x1b", "\x9b"} & set(page_of(inspection))

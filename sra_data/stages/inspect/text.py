"""An example on a terminal: two rows of coloured pieces, each span's column as wide as its wider side.

Widths are counted in terminal cells (CJK and emoji take two). Characters that cannot be seen are written as signs, so
that every piece shows what it holds and every column keeps its width:

    ␣ space   ⏎ line feed   ␍ carriage return   ⇥ tab   ⟨200D⟩ other invisible characters   ◌ carries a combining mark
    😀¹⁄₃ ²⁄₃ ³⁄₃   one character cut into three tokens        #50256   a special token, by its id
"""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Iterable
from io import StringIO

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

from sra_data.shards.schema import OK
from sra_data.shards.store import options_of
from sra_data.stages.inspect.example import Column, Inspection, Piece
from sra_data.terminal import printable

SPAN_STYLES = ("black on #a6e3a1", "black on #89b4fa", "black on #f9e2af", "black on #cba6f7", "black on #94e2d5")
UNMATCHED_STYLE = "dim"
LABELS = ("student ", "teacher ")
SIGNS = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥", "\u00a0": "⍽", "\u3000": "⟨3000⟩"}
INVISIBLE = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"})
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
CHARACTERS_OF_PROMPT = 400
NARROWEST = 20

Run = tuple[str, str]  # text, style


def print_inspection(inspection: Inspection, console: Console) -> None:
    """Print all of it."""
    for words in heading(inspection):
        console.print(Text(words))
    console.print(Text(visible_prompt(inspection.prompt), style="dim"))
    for number, columns in enumerate(inspection.turns, 1):
        if len(inspection.turns) > 1:
            console.print(Text(f"response {number} of {len(inspection.turns)}", style="bold"))
        for line in response_lines(columns, width=console.width):
            console.print(line, no_wrap=True, overflow="ignore", crop=False)


def plain_lines(inspection: Inspection, width: int = 0) -> list[str]:
    """It as plain text of at most `width` cells a line (0: as wide as the terminal)."""
    file = StringIO()
    print_inspection(
        inspection, Console(file=file, width=width or shutil.get_terminal_size().columns, color_system=None)
    )
    return file.getvalue().splitlines()


def heading(inspection: Inspection) -> list[str]:
    """What example this is and how much of it is covered."""
    options = options_of(inspection.alignment)
    aligned = f" · aligned by {options}" if options else ""
    status = "" if inspection.status == OK else f" · {inspection.status}"
    lines = [
        f"row {inspection.row} · id {inspection.id} · {inspection.split}{status}",
        f"student {inspection.student}: {inspection.num_student_tokens} tokens · teacher {inspection.teacher}: "
        f"{inspection.num_teacher_tokens} tokens · {inspection.num_spans} spans · "
        f"{100 * inspection.covered:.1f} % of the response's characters in spans{aligned}",
    ]
    return [printable(" ".join(line.split())) for line in lines]


def visible_prompt(prompt: str) -> str:
    """The prompt on one line, its middle left out where it is long."""
    text = "".join(sign(character) if character != " " else " " for character in prompt)
    if len(text) > CHARACTERS_OF_PROMPT:
        text = f"{text[: CHARACTERS_OF_PROMPT // 2]} … {text[-CHARACTERS_OF_PROMPT // 2 :]}"
    return text


def response_lines(columns: list[Column], *, width: int) -> Iterable[Text]:
    """Pairs of lines (student above teacher) of at most `width` cells, an empty line after each pair."""
    room = max(width, NARROWEST) - cell_len(LABELS[0]) - 1
    lines = (Text(LABELS[0], style="bold"), Text(LABELS[1], style="bold"))
    used = 0
    for student, teacher, cells in _fitting(columns, room):
        if used and used + cells + 1 > room:
            yield from (*lines, Text(""))
            lines, used = (Text(LABELS[0], style="bold"), Text(LABELS[1], style="bold")), 0
        for line, runs in zip(lines, (student, teacher), strict=True):
            for text, style in runs:
                line.append(text, style=style)
            missing = cells - sum(cell_len(text) for text, _ in runs)
            line.append(" " * missing, style=runs[-1][1] if runs else UNMATCHED_STYLE)
            line.append("┃", style="bold")
        used += cells + 1
    if used:
        yield from (*lines, Text(""))


def _fitting(columns: list[Column], room: int) -> Iterable[tuple[list[Run], list[Run], int]]:
    """Every column as runs of text and its width; columns wider than a line are cut into several."""
    for column in columns:
        style = UNMATCHED_STYLE if column.number is None else SPAN_STYLES[column.number % len(SPAN_STYLES)]
        student, teacher = (_chop(_joined(side), room - 1) for side in (column.student, column.teacher))
        for index in range(max(len(student), len(teacher))):
            pair = [side[index] if index < len(side) else "" for side in (student, teacher)]
            yield [(pair[0], style)], [(pair[1], style)], max(cell_len(text) for text in pair)


def _joined(pieces: list[Piece]) -> str:
    return "│".join(visible(piece) for piece in pieces)


def _chop(text: str, cells: int) -> list[str]:
    return chop_cells(text, cells) if cell_len(text) > cells else [text]


def visible(piece: Piece) -> str:
    """A piece as it is shown: signs for what cannot be seen, its place among the parts of a character."""
    if piece.special_id is not None:
        return f"#{piece.special_id}"
    text = "".join(sign(character) for character in piece.text)
    if text and unicodedata.category(piece.text[0]).startswith("M"):
        text = f"◌{text}"
    if piece.parts > 1:
        text += f"{str(piece.part).translate(SUPERSCRIPTS)}⁄{str(piece.parts).translate(SUBSCRIPTS)}"
    return text or "∅"


def sign(character: str) -> str:
    """A character, or the sign for one that cannot be seen."""
    if character in SIGNS:
        return SIGNS[character]
    if unicodedata.category(character) in INVISIBLE or "\ufe00" <= character <= "\ufe0f":
        return f"⟨{ord(character):04X}⟩"
    return character

"""`sra-data inspect`: one example of the shards, on a terminal or a page.

Reads the shards alone (ends of tokens are stored), so it needs no tokenizer and no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sra_data.errors import ConfigError, ShardError
from sra_data.shards.store import Index, PairReader, ShardSet
from sra_data.stages.inspect.example import Inspection, ReadSide, make_inspection
from sra_data.stages.inspect.html import page
from sra_data.stages.inspect.text import print_inspection
from sra_data.terminal import Reporter


@dataclass(frozen=True)
class InspectOptions:
    """What to look at.

    Attributes:
        example: Row number in the shards, or an id.
        shards: The folder that `align` wrote.
        teacher: Which side is the teacher's: its name, the start of it, or a model's; the only one where None.
        student: Which side is the student's, likewise.
        alignment: Which alignment of the two, where there are several.
        html: File to write the page to, or None.
        around: Neighbours on each side that the page has too.
    """

    example: str
    shards: str = "shards"
    teacher: str | None = None
    student: str | None = None
    alignment: str | None = None
    html: str | None = None
    around: int = 5


def inspect(options: InspectOptions, reporter: Reporter) -> Inspection:
    """Find an example in the shards; write the page if one is asked for.

    Raises:
        ConfigError: A number of neighbours below 0.
        ShardError: No shards, no such example, side or alignment, or a page that cannot be written.
    """
    if options.around < 0:
        raise ConfigError(f"--around {options.around}: must be at least 0")
    with ShardSet.open(options.shards) as shards:
        pair = shards.choose_pair(teacher=options.teacher, student=options.student, name=options.alignment)
        row = find_row(options.example, shards.corpus.index)
        inspection = _look_at(row, shards, pair)
        if options.html:
            rows = range(max(row - options.around, 0), min(row + options.around + 1, len(shards.corpus.index)))
            around = [_look_at(other, shards, pair) for other in rows if other != row]
            save_html(page(inspection, around), Path(options.html))
            reporter.line(f"wrote {options.html}")
    return inspection


def _look_at(row: int, shards: ShardSet, pair: PairReader) -> Inspection:
    """One row as both sides of the pair read it."""
    example = shards.corpus.read([row])[0]
    student, teacher = (
        ReadSide.of(name, shards.side(name).read([row])[0], example) for name in (pair.student, pair.teacher)
    )
    spans = pair.read([row])[0]
    return make_inspection(
        row=row,
        example=example,
        student=student,
        teacher=teacher,
        alignment=pair.name,
        spans=spans,
        status=pair.in_roles(spans.status),
    )


def find_row(example: str, index: Index) -> int:
    """The row that `example` means: an id, or else a row number.

    Raises:
        ShardError: Neither.
    """
    try:
        return index.row_of(example)
    except ShardError as error:
        if example.isdecimal() and int(example) < len(index):
            return int(example)
        raise ShardError(
            f"example {example}: no such id, and no row number below {len(index)}; give one of these"
        ) from error


def show(inspection: Inspection, console: Console) -> None:
    """Show it on a terminal of any width."""
    print_inspection(inspection, console)


def save_html(text: str, path: Path) -> None:
    """Write the page.

    Raises:
        ShardError: The file cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ShardError(f"{path}: cannot be written ({error.strerror}); name another file for --html") from error

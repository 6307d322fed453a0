"""`sra-data inspect`: one example of the shards, on a terminal or a page.

Reads the shards alone (ends of tokens are stored), so it needs no tokenizer and no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sra_data.errors import ShardError
from sra_data.shards.store import Index, ShardSet
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
    """

    example: str
    shards: str = "shards"
    teacher: str | None = None
    student: str | None = None
    alignment: str | None = None
    html: str | None = None


def inspect(options: InspectOptions, reporter: Reporter) -> Inspection:
    """Find an example in the shards; write the page if one is asked for.

    Raises:
        ShardError: No shards, no such example, side or alignment, or a page that cannot be written.
    """
    with ShardSet.open(options.shards) as shards:
        pair = shards.choose_pair(teacher=options.teacher, student=options.student, name=options.alignment)
        row = find_row(options.example, shards.corpus.index)
        example = shards.corpus.read([row])[0]
        student, teacher = (
            ReadSide.of(name, shards.side(name).read([row])[0], example) for name in (pair.student, pair.teacher)
        )
        spans = pair.read([row])[0]
    inspection = make_inspection(
        row=row,
        example=example,
        student=student,
        teacher=teacher,
        alignment=pair.name,
        spans=spans,
        status=pair.in_roles(spans.status),
    )
    if options.html:
        save_html(inspection, Path(options.html))
        reporter.line(f"wrote {options.html}")
    return inspection


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


def save_html(inspection: Inspection, path: Path) -> None:
    """Write the page.

    Raises:
        ShardError: The file cannot be written.
    """
    try:
        path.write_text(page(inspection), encoding="utf-8")
    except OSError as error:
        raise ShardError(f"{path}: cannot be written ({error.strerror}); name another file for --html") from error

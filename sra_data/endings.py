"""How a command ends: what was made, its numbers in small tables, what to know, and the command that comes next.

A summary says it once, as an `Ending`. On a terminal of any width it is drawn with words kept whole: a table without
room is shown row by row. In a log each fact and each row is one line. With ``--json`` neither is used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sra_data.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

WIDEST = 110  # of a table: a line longer than this is hard to follow
INDENT = 2
BETWEEN_COLUMNS = 3


@dataclass(frozen=True)
class Grid:
    """A small table.

    Attributes:
        rows: cells, as many in each row as there are columns.
        head: names of the columns; none where each row is a fact: its name and its value.
        title: what it is about; may be empty.
    """

    rows: tuple[tuple[str, ...], ...]
    head: tuple[str, ...] = ()
    title: str = ""

    @classmethod
    def of_facts(cls, *facts: tuple[str, str], title: str = "") -> Grid:
        """Names and values; what has no value is left out."""
        return cls(tuple(fact for fact in facts if fact[1]), title=title)

    @classmethod
    def of_columns(cls, head: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> Grid:
        """Columns under their names; one in which no row says anything is left out."""
        kept = [place for place in range(len(head)) if any(row[place] for row in rows)]
        return cls(tuple(tuple(row[n] for n in kept) for row in rows), tuple(head[n] for n in kept), title)


@dataclass(frozen=True)
class Ending:
    """The last words of a command.

    Attributes:
        title: what was made, in one line.
        grids: its numbers.
        remarks: whole sentences, a line each.
        next: the command that comes next, to be copied; None where nothing follows.
    """

    title: str
    grids: tuple[Grid, ...] = ()
    remarks: tuple[str, ...] = ()
    next: str | None = None

    def lines(self) -> list[str]:
        """For logs: a line for each fact, row and remark."""
        found = [self.title, *(line for grid in self.grids if grid.rows for line in _plain(grid)), *self.remarks]
        return [line for line in found if line]

    def show(self, console: Console) -> None:
        """For a terminal of any width."""
        from rich.text import Text

        width = min(console.width, WIDEST)
        if self.title:
            console.print(_text(self.title, "bold"), width=width)
        for grid in (grid for grid in self.grids if grid.rows):
            if grid.title or grid.head:
                console.print()
            if grid.title:
                console.print(_text(grid.title, "bold"), width=width)
            console.print(_columns(grid, width) if grid.head else _facts(grid.rows, width), width=width)
        if self.grids and self.remarks:
            console.print()
        for remark in self.remarks:
            console.print(_text(remark), width=width)
        if self.next is not None:
            console.print(Text(), Text.assemble(("next  ", "bold"), printable(self.next)), sep="\n", width=width)


class Told(ABC):
    """A summary that is told by its ending."""

    @abstractmethod
    def ending(self) -> Ending:
        """What the command ends with."""

    def lines(self) -> list[str]:
        """It in words, for logs."""
        return self.ending().lines()


# --------------------------------------------------------------------------- logs


def _plain(grid: Grid) -> Iterator[str]:
    """Lines: facts as ``name: value``, other rows in columns."""
    from rich.cells import cell_len

    indent = ""
    if grid.title:
        yield f"{grid.title}:"
        indent = " " * INDENT
    if not grid.head:
        yield from (f"{indent}{name}: {value}" for name, value in grid.rows)
        return
    rows = [grid.head, *grid.rows]
    widths = [max(cell_len(row[place]) for row in rows) for place in range(len(grid.head))]
    for row in rows:
        spaces = [" " * (width - cell_len(cell)) for width, cell in zip(widths, row, strict=True)]
        cells = [row[0] + spaces[0], *(space + cell for space, cell in zip(spaces[1:], row[1:], strict=True))]
        yield f"{indent}{'  '.join(cells)}".rstrip()


# --------------------------------------------------------------------------- terminals


def _facts(rows: Sequence[tuple[str, ...]], width: int) -> RenderableType:
    """Names and values beside each other; a long name takes two lines, no more than two fifths of the width."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(max_width=2 * width // 5, overflow="fold")
    table.add_column(max_width=width - 2 * width // 5 - INDENT, overflow="fold")
    for name, value in rows:
        table.add_row(_text(name), _text(value))
    return table


def _columns(grid: Grid, width: int) -> RenderableType:
    """A table, or one block a row where its words have no room beside each other."""
    from rich import box
    from rich.console import Group
    from rich.table import Table

    widths = _widths(grid, width)
    if widths is None:
        blocks: list[RenderableType] = []
        for first, *others in grid.rows:
            named = zip(grid.head[1:], others, strict=True)
            facts = [(f"{' ' * INDENT}{name}", value) for name, value in named if value]
            blocks += [_text(first, "bold"), _facts(facts, width)]
        return Group(*blocks)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for place, (name, cells) in enumerate(zip(grid.head, widths, strict=True)):
        table.add_column(_text(name), justify="right" if place else "left", width=cells, overflow="fold")
    for row in grid.rows:
        table.add_row(*map(_text, row))
    return table


def _widths(grid: Grid, width: int) -> list[int] | None:
    """Cells of each column; None where they have no room.

    Names of columns may be broken between words, and so may what stands in the first column; numbers may not.
    """
    from rich.cells import cell_len

    columns = [[row[place] for row in (grid.head, *grid.rows)] for place in range(len(grid.head))]
    room = width - BETWEEN_COLUMNS * (len(columns) - 1)
    whole = [max(map(cell_len, column)) for column in columns]
    if sum(whole) <= room:
        return whole
    least = [max(map(cell_len, [*head.split(), *cells])) for head, *cells in columns]
    first = max(cell_len(word) for cell in columns[0] for word in cell.split() or [""])
    left = room - sum(least[1:])
    return [min(left, whole[0]), *least[1:]] if first <= left else None


def _text(words: str, style: str = "") -> Text:
    """Words as they are, but for what would steer the terminal."""
    from rich.text import Text

    return Text(printable(words), style=style)

"""A comparison as one self-contained page; its template is page.html beside this file."""

from __future__ import annotations

import base64
from pathlib import Path

from sra_data.pages.render import Table, render
from sra_train.compare.results import Comparison
from sra_train.compare.tables import Cells, rows_of

TEMPLATE = Path(__file__).with_name("page.html")


def page(found: Comparison, picture: bytes) -> str:
    """The whole page.

    Args:
        found: the numbers.
        picture: the PNG of them.
    """
    where = "the development split" if found.is_development else found.test
    caption = f"On {where}: {found.num_examples:,} examples, {found.num_bytes:,} bytes of responses"
    return render(
        TEMPLATE,
        title=f"{found.student}: {', '.join(method.name for method in found.methods)}",
        lead=f"The same student, data and number of steps ({found.steps:,}); {len(found.methods)} methods",
        remarks=found.notes,
        results=table_of(rows_of(found), caption),
        picture=base64.b64encode(picture).decode("ascii"),
        ablations={
            name: table_of(rows_of(found, methods), "The same runs as above.") for name, methods in found.tables.items()
        },
        grid=table_of(grid_rows(found), "Bits per byte on the development split."),
        configs=found.configs,
        abouts={method.name: method.about for method in found.methods},
    )


def table_of(rows: list[Cells], caption: str) -> Table:
    """Rows by the names of the first one's columns, sure differences coloured."""
    names = list(rows[0])
    cells = [[row.get(name, "") for name in names] for row in rows]
    marks = {
        (row, column): found
        for row, values in enumerate(cells)
        for column, value in enumerate(values)
        if (found := mark(names[column], value))
    }
    return Table(names, cells, caption, marks, is_wide=True)


def grid_rows(found: Comparison) -> list[Cells]:
    """Methods down, points of the grid across."""
    rows = []
    for method in found.methods:
        row = {"method": method.name}
        for tried in method.grid:
            name = f"{tried.rate:g}" + ("" if tried.clip is None else f", clip {tried.clip:g}")
            row[name] = "diverged" if tried.development is None else f"{tried.development:.4f}"
        rows.append(row)
    return rows


def mark(name: str, value: str) -> str:
    """The class of a cell: a sure difference is coloured."""
    if not name.startswith("to sft") or not value.endswith("*"):
        return ""
    return "better" if value.startswith("-") else "worse"

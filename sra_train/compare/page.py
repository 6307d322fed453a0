"""A comparison as one self-contained page: no script, no font and no picture from elsewhere.

The template is page.html beside this file; everything that came from the user is escaped there. The page follows the
reader's light or dark scheme and fits a phone.
"""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from sra_data import __version__
from sra_train.compare.results import Comparison
from sra_train.compare.tables import Cells, rows_of

TEMPLATE = Path(__file__).with_name("page.html")


def page(found: Comparison, picture: bytes) -> str:
    """The whole page.

    Args:
        found: the numbers.
        picture: the PNG of them.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    where = "the development split" if found.is_development else found.test
    return template.render(
        title=f"{found.student}: {', '.join(method.name for method in found.methods)}",
        lead=f"The same student, data and number of steps ({found.steps:,}); {len(found.methods)} methods",
        notes=found.notes,
        rows=rows_of(found),
        caption=f"On {where}: {found.num_examples:,} examples, {found.num_bytes:,} bytes of responses",
        picture=base64.b64encode(picture).decode("ascii"),
        tables={name: rows_of(found, methods) for name, methods in found.tables.items()},
        grid=grid_rows(found),
        configs=found.configs,
        abouts={method.name: method.about for method in found.methods},
        version=__version__,
        mark=mark,
    )


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

"""From values to a page: Jinja2 with everything escaped, over the common template and stylesheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sra_data import __version__
from sra_data.pages.palette import as_css
from sra_data.terminal import printable

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Table:
    """A table of a page: the first column is words, the others are numbers.

    Attributes:
        head: names of the columns.
        rows: cells, as many in each row.
        caption: said above; may be empty.
        marks: (row, column) -> "better" or "worse", where a number is coloured.
        is_wide: whether the columns are many: names stay in sight while the numbers are moved.
        wraps: whether the cells are words that may take several lines; so they may wherever there are two columns.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    marks: Mapping[tuple[int, int], str] | None = None
    is_wide: bool = False
    wraps: bool = False


def render(template: Path, **values: Any) -> str:
    """A page.

    Args:
        template: of the page itself; it extends base.html of this room.
        values: what it shows. Text is escaped and its control characters are spelled out; only what is `Markup`, which
            is made here and by charts alone, stands as it is.
    """
    return _environment(template.parent).get_template(template.name).render(values)


@cache
def _environment(folder: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader([folder, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_spelled_out,
    )
    style = (HERE / "style.css").read_text(encoding="utf-8").strip()
    environment.globals |= {"style": Markup(f"{as_css()}\n{style}"), "version": __version__}
    return environment


def _spelled_out(value: Any) -> Any:
    """What a template prints, without control characters of a stranger's."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

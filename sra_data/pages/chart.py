"""One chart of a page: drawn once for the page (SVG in the page's own colours and font) and once as a PNG.

An SVG names colours by CSS variables, so that it follows the reader's light or dark scheme. Matplotlib draws with the
light scheme's colours; their codes are unlike any other, and are replaced by the variables' names.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from sra_data.pages.palette import PALETTE
from sra_data.terminal import printable

COLOUR = {name: light for name, (light, _) in PALETTE.items()}
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SETTINGS: Any = {
    "font.size": 10,
    "axes.edgecolor": COLOUR["line"],
    "axes.labelcolor": COLOUR["soft"],
    "axes.titlecolor": COLOUR["ink"],
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": COLOUR["card"],
    "grid.color": COLOUR["line"],
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.labelcolor": COLOUR["ink"],
    "legend.fontsize": 9.5,
    "text.color": COLOUR["ink"],
    "xtick.color": COLOUR["line"],
    "ytick.color": COLOUR["line"],
    "xtick.labelcolor": COLOUR["soft"],
    "ytick.labelcolor": COLOUR["soft"],
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar in a name is one
    "svg.hashsalt": "sra",
}


@contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib as charts are drawn; what its font lacks (names are in any script) is the reader's font's to have."""
    with rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        name: stem of its PNG.
        section: id of the section of the page.
        title: what it shows, in a few words.
        caption: how to read it.
        draw: draws it into empty axes.
        height: inches, at a width of 5.4.
    """

    name: str
    section: str
    title: str
    caption: str
    draw: Callable[[Axes], None]
    height: float = 3.1

    def svg(self) -> Markup:
        """As an element of a page, in its colours and font; what it is told is escaped."""
        buffer = io.StringIO()
        with drawing():
            nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            self._figure(title=None).savefig(buffer, format="svg", transparent=True, metadata=nothing)
        svg = for_a_page(buffer.getvalue(), label=self.title, prefix=re.sub(r"[^\w-]", "-", self.name))
        return Markup(printable(svg))

    def save_png(self, folder: Path) -> Path:
        """As a picture, in the light scheme."""
        path = folder / f"{self.name}.png"
        with drawing():
            self._figure(title=self.title).savefig(path, dpi=160)
        return path

    def _figure(self, *, title: str | None) -> Figure:
        figure = Figure(figsize=(5.4, self.height), layout="constrained")
        axes = figure.add_subplot()
        self.draw(axes)
        if title is not None:
            axes.set_title(title)
        return figure


def for_a_page(svg: str, *, label: str, prefix: str) -> str:
    """A matplotlib SVG made fit to stand in a page beside others.

    Colours become CSS variables, the font the page's, the size the column's; ids that are referred to get a prefix of
    their own, the others go.
    """
    svg = svg[svg.index("<svg") :]
    for name, code in COLOUR.items():
        svg = svg.replace(code, f"var(--{name})")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    said = f'role="img" aria-label="{escape(label)}"'
    svg = re.sub(r'(?<=<svg )[^>]*?(viewBox="[^"]*")[^>]*', lambda found: f"{found[1]} {said}", svg, count=1)
    svg = re.sub(r"font: (?:[a-z]+ )*([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{prefix}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    svg = re.sub(r'xlink:href="#', f'href="#{prefix}-', svg)
    return re.sub(r"\n\s*", "\n", svg).strip()


def logarithmic(axes: Axes) -> None:
    """A logarithmic x axis with plain numbers: powers as text would need a font of their own."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def steps(axes: Axes, edges: NDArray[Any], counts: NDArray[Any], colour: str, label: str) -> None:
    """A histogram: a line over its own light shade."""
    axes.stairs(counts, edges, fill=True, color=COLOUR[colour], alpha=0.22)
    axes.stairs(counts, edges, color=COLOUR[colour], linewidth=1.6, label=label)
    axes.grid(visible=True, axis="y")


def power(value: float) -> str:
    """A number on a logarithmic axis: ``2,000``, ``0.01``, ``10⁻⁶``."""
    if value >= 1:
        return f"{value:,.0f}"
    exponent = round(np.log10(value))
    return f"{value:g}" if exponent >= -2 else f"10{str(exponent).translate(SUPERSCRIPTS)}"


def percent(share: float) -> str:
    """A share as a chart's label: ``47%``, ``3.2%``, ``<0.1%``."""
    if 0 < share < 0.001:
        return "<0.1%"
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"


def short_bytes(count: float) -> str:
    """A size as an axis' label: ``512 B``, ``4.5 MB``, ``30 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"

"""A report as one self-contained page: no script, no font and no picture from elsewhere.

Charts are inline SVG in the page's colours; the page follows the reader's light or dark scheme and fits a phone.
Everything that came from the user (names, ids, reasons, paths) is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from sra_data import __version__
from sra_data.stages.report.chart import PALETTE, Chart
from sra_data.stages.report.facts import ReportFacts
from sra_data.stages.report.sections import sections_of
from sra_data.terminal import bytes_in_words

STYLE = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 3rem 1.5rem 5rem; }
h1 { font-size: 1.75rem; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 .35rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; letter-spacing: -.01em; margin: 3.25rem 0 1rem; padding-top: 1.1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0; }
p { margin: .4rem 0; max-width: 46rem; }
.soft, figcaption, caption { color: var(--soft); }
.lead { font-size: 1.05rem; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 1.25rem 0 0; }
a { color: var(--one); text-decoration: none; }
a:hover { text-decoration: underline; }
nav a, h2 { overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.2rem, 1fr)); gap: .75rem; margin: 1.75rem 0; }
.tile, figure, .card, .note { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.tile { padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.45rem; font-weight: 620; letter-spacing: -.02em; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; line-height: 1.3; display: block; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 1rem;
  align-items: start; margin: 1rem 0; }
figure { margin: 0; padding: 1.1rem 1.2rem 1rem; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; margin: .6rem 0 .4rem; overflow: visible; }
figure svg text { font-family: inherit; }
figcaption { font-size: .85rem; line-height: 1.45; }
.card { padding: .4rem 1.2rem .6rem; margin: 1rem 0; overflow-x: auto; max-width: 46rem; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-size: .85rem; padding: .6rem 0 .3rem; }
th, td { padding: .42rem .9rem .42rem 0; text-align: left; vertical-align: baseline; }
th { font-weight: 560; color: var(--soft); font-size: .85rem; white-space: nowrap; }
tbody tr { border-top: 1px solid var(--line); }
td:first-child { overflow-wrap: break-word; }
.n { text-align: right; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
.note { border-left: 4px solid var(--three); padding: .7rem 1.1rem; margin: 1rem 0; overflow-wrap: anywhere; }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, monospace; overflow-wrap: anywhere; }
footer { margin-top: 4rem; color: var(--soft); font-size: .85rem; }
@media (max-width: 34rem) {
  main { padding: 1.75rem 1rem 3rem; } h1 { font-size: 1.4rem; } .tile b { font-size: 1.2rem; }
  .tiles { grid-template-columns: repeat(2, 1fr); gap: .5rem; }
  .tile:last-child:nth-child(odd) { grid-column: 1 / -1; } figure { padding: .9rem .8rem .8rem; }
  figure svg { margin-left: -.3rem; } .card { padding: .3rem .9rem .5rem; } th, td { padding-right: .6rem; } }
@media print { .card, figure, .tile { break-inside: avoid; } nav { display: none; } }
""".strip()


def page(facts: ReportFacts, charts: Sequence[Chart]) -> str:
    """The whole page."""
    title = f"Shards: {escape(Path(facts.shards).resolve().name)}"
    sections = list(sections_of(facts))
    links = " ".join(f'<a href="#{section.id}">{escape(section.link)}</a>' for section in sections)
    parts = "\n".join(section.html(charts) for section in sections)
    notes = "\n".join(f'<p class="note">{escape(line)}</p>' for line in facts.missing)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>\n{_colours()}\n{STYLE}\n</style>\n</head>\n<body>\n<main>\n"
        f'<header>\n<h1>{title}</h1>\n<p class="lead soft">{escape(_lead(facts))}</p>\n<nav>{links}</nav>\n</header>\n'
        f"{notes}\n{_tiles(facts)}\n{parts}\n<footer>{_footer(facts)}</footer>\n</main>\n</body>\n</html>\n"
    )


def _colours() -> str:
    """The palette as CSS variables, light and dark."""
    light = " ".join(f"--{name}: {colour};" for name, (colour, _) in PALETTE.items())
    dark = " ".join(f"--{name}: {colour};" for name, (_, colour) in PALETTE.items())
    return (
        f":root {{ color-scheme: light dark; --paper: #f7f7f4; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ --paper: #14161b; {dark} }} }}"
    )


def _lead(facts: ReportFacts) -> str:
    """Who teaches whom, by the models' names."""
    models = dict.fromkeys(names for alignment in facts.alignments for names in alignment.models)
    said = dict.fromkeys(f"{Path(teacher).name} teaches {Path(student).name}" for teacher, student in models)
    return " · ".join(said) or ", ".join(side.name for side in facts.sides) or "not cut by any tokenizer yet"


def _footer(facts: ReportFacts) -> str:
    roots = {"corpus": facts.corpus.facts["root"]}
    roots |= {side.name: side.facts["root"] for side in facts.sides}
    roots |= {alignment.name: alignment.facts["root"] for alignment in facts.alignments}
    roots |= {pages.name: pages.facts["root"] for pages in facts.pages}
    listed = " · ".join(f"{escape(name)} <code>{escape(root[:12])}</code>" for name, root in roots.items())
    return f"Sealed roots: {listed}. Drawn by sra-data {escape(__version__)} from {escape(facts.shards)}."


# --------------------------------------------------------------------------- numbers at the top


def _tiles(facts: ReportFacts) -> str:
    cells = [*_numbers(facts), *_numbers_of_pages(facts)]
    tiles = "\n".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in cells
    )
    return f'<div class="tiles">\n{tiles}\n</div>'


def _numbers(facts: ReportFacts) -> Iterator[tuple[str, str]]:
    """Value, and what it is."""
    yield f"{facts.corpus.num_examples:,}", "examples"
    teachers = [side for side in facts.sides if side.teaches]
    if len(teachers) == 1:
        _, tokens, positions = np.sum(list(teachers[0].splits.values()), axis=0).tolist()
        yield _short(tokens), "teacher tokens"
        if not facts.pages:
            yield _short(positions), "positions to cache"
    elif len(facts.sides) > 1:
        yield f"{len(facts.sides):,}", "sides"
    if len(facts.alignments) == 1:
        counts = facts.alignments[0].counts
        yield _short(counts.spans), "spans"
        yield f"{counts.covered / max(counts.characters, 1):.2%}", "of response characters in spans"
    elif facts.alignments:
        yield f"{len(facts.alignments):,}", "alignments"


def _numbers_of_pages(facts: ReportFacts) -> Iterator[tuple[str, str]]:
    if not facts.pages:
        return
    size = bytes_in_words(sum(sum(pages.bytes_by_column.values()) for pages in facts.pages))
    if len(facts.pages) > 1:
        yield size, f"on disk for the pages of {len(facts.pages):,} teachers"
        return
    (pages,) = facts.pages
    yield size, f"on disk for {_short(pages.num_positions)} {pages.row}s"
    losses = [loss for _, loss in pages.sample.losses.values()]
    if losses:
        yield f"{np.mean(losses):.2f}", "nats per token, the teacher’s loss"
    error = pages.facts.get("faithfulness", {}).get("cache", {}).get("relative_error")
    if error is not None:
        yield f"{error:.2%}", "error of the cached states"


def _short(count: float) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e5, " k")):
        if count >= size:
            return f"{count / (size if size != 1e5 else 1e3):.3g}{unit}"
    return f"{count:,.0f}"

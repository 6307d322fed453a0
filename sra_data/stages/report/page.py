"""A report as one self-contained page: no script, no font and no picture from elsewhere.

Charts are inline SVG in the page's colours; the page follows the reader's light or dark scheme and fits a phone.
Everything that came from the user (names, ids, reasons, paths) is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from sra_data import __version__
from sra_data.shards.schema import OK
from sra_data.stages.report.chart import PALETTE, Chart, percent
from sra_data.stages.report.facts import HARDEST, AlignmentFacts, PagesFacts, ReportFacts
from sra_data.stages.report.plots import MEASURES
from sra_data.terminal import bytes_in_words

SECTIONS = {"corpus": "Corpus", "alignment": "Alignment", "pages": "The teacher’s pages", "skips": "Skips"}
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
    sections = [name for name in SECTIONS if name in ("corpus", "skips") or getattr(facts, name) is not None]
    links = " ".join(f'<a href="#{name}">{SECTIONS[name]}</a>' for name in sections)
    bodies = {"corpus": _corpus, "alignment": _alignment, "pages": _pages, "skips": _skips}
    parts = []
    for name in sections:
        figures = "\n".join(_figure(chart) for chart in charts if chart.section == name)
        grid = f'<div class="charts">\n{figures}\n</div>\n' if figures else ""
        parts.append(f'<section id="{name}">\n<h2>{SECTIONS[name]}</h2>\n{bodies[name](facts, grid)}</section>')
    notes = "\n".join(f'<p class="note">{escape(line)}</p>' for line in facts.missing)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>\n{_colours()}\n{STYLE}\n</style>\n</head>\n<body>\n<main>\n"
        f'<header>\n<h1>{title}</h1>\n<p class="lead soft">{_lead(facts)}</p>\n<nav>{links}</nav>\n</header>\n'
        f"{notes}\n{_tiles(facts)}\n" + "\n".join(parts) + f"\n<footer>{_footer(facts)}</footer>\n"
        "</main>\n</body>\n</html>\n"
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
    teacher = Path(facts.corpus.facts["teacher"]["name"]).name
    if facts.alignment is None:
        return f"teacher {escape(teacher)}"
    return f"{escape(teacher)} teaches {escape(Path(facts.alignment.facts['student']['name']).name)}"


def _footer(facts: ReportFacts) -> str:
    roots = {"corpus": facts.corpus.facts["root"]}
    if facts.alignment is not None:
        roots["alignment"] = facts.alignment.facts["root"]
    if facts.pages is not None:
        roots["teacher"] = facts.pages.facts["root"]
    listed = " · ".join(f"{name} <code>{escape(root[:12])}</code>" for name, root in roots.items())
    return f"Sealed roots: {listed}. Drawn by sra-data {escape(__version__)} from {escape(facts.shards)}."


# --------------------------------------------------------------------------- pieces


def _tiles(facts: ReportFacts) -> str:
    cells = list(_numbers(facts))
    tiles = "\n".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in cells
    )
    return f'<div class="tiles">\n{tiles}\n</div>'


def _numbers(facts: ReportFacts) -> Iterator[tuple[str, str]]:
    """The numbers at the top: value, and what it is."""
    examples, tokens, positions = np.sum(list(facts.corpus.splits.values()) or [(0, 0, 0)], axis=0).tolist()
    yield f"{examples:,}", "examples"
    yield _short(tokens), "teacher tokens"
    if facts.alignment is not None:
        counts = facts.alignment.counts
        yield _short(counts.spans), "spans"
        yield f"{counts.covered / max(counts.characters, 1):.2%}", "of response characters in spans"
    if facts.pages is None:
        yield _short(positions), "positions to cache"
        return
    size = sum(facts.pages.bytes_by_column.values())
    yield bytes_in_words(size), f"on disk for {_short(facts.pages.num_positions)} {facts.pages.row}s"
    losses = [loss for _, loss in facts.pages.sample.losses.values()]
    if losses:
        yield f"{np.mean(losses):.2f}", "nats per token, the teacher’s loss"
    error = facts.pages.facts.get("faithfulness", {}).get("cache", {}).get("relative_error")
    if error is not None:
        yield f"{error:.2%}", "error of the cached states"


def _figure(chart: Chart) -> str:
    title, caption = escape(chart.title), escape(chart.caption)
    return f"<figure>\n<h3>{title}</h3>\n{chart.svg()}\n<figcaption>{caption}</figcaption>\n</figure>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "") -> str:
    """A table; the first column is words, the others are numbers."""
    sides = ['<th scope="col">'] + ['<th scope="col" class="n">'] * (len(head) - 1)
    cells = ["<td>"] + ['<td class="n">'] * (len(head) - 1)
    top = "".join(f"{side}{escape(name)}</th>" for side, name in zip(sides, head, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f"{cell}{escape(value)}</td>" for cell, value in zip(cells, row, strict=True)) + "</tr>"
        for row in rows
    )
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="card"><table>{said}<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n'


def _short(count: float) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e5, " k")):
        if count >= size:
            return f"{count / (size if size != 1e5 else 1e3):.3g}{unit}"
    return f"{count:,.0f}"


# --------------------------------------------------------------------------- sections


def _corpus(facts: ReportFacts, grid: str) -> str:
    rows = [
        (split, f"{examples:,}", f"{tokens:,}", f"{positions:,}", f"{tokens / max(examples, 1):,.0f}")
        for split, (examples, tokens, positions) in sorted(facts.corpus.splits.items(), reverse=True)
    ]
    sources = "; ".join(facts.corpus.facts.get("source") or ["not recorded"])
    return (
        f"<p>Source: {escape(sources)}. Teacher’s tokenizer: "
        f"<code>{escape(facts.corpus.facts['teacher']['name'])}</code>.</p>\n"
        + table(("split", "examples", "teacher tokens", "positions", "mean length"), rows)
        + grid
    )


def _alignment(facts: ReportFacts, grid: str) -> str:
    assert facts.alignment is not None
    return grid + table(("alignment", "value"), _alignment_rows(facts.alignment))


def _alignment_rows(alignment: AlignmentFacts) -> Iterator[tuple[str, str]]:
    counts, options = alignment.counts, alignment.facts.get("options", {})
    spans = max(counts.spans, 1)
    yield "folder", alignment.name
    yield "boundaries kept", str(options.get("boundaries", "not recorded"))
    yield "student’s response tokens per span", f"{counts.student_tokens / spans:.3f}"
    yield "teacher’s response tokens per span", f"{counts.teacher_tokens / spans:.3f}"
    yield "response characters in spans", f"{counts.covered:,} of {counts.characters:,}"
    yield "spans merged for --max-spans", f"{counts.merged_spans:,}"
    yield "examples without a shared boundary", f"{counts.without_spans:,}"
    yield "ids both vocabularies share", f"{alignment.facts.get('shared_ids', 0):,}"
    yield "student’s response tokens with such an id", f"{counts.student_shared / max(counts.student_tokens, 1):.1%}"
    yield "teacher’s response tokens with such an id", f"{counts.teacher_shared / max(counts.teacher_tokens, 1):.1%}"


def _pages(facts: ReportFacts, grid: str) -> str:
    assert facts.pages is not None
    pages = facts.pages
    sample = pages.sample
    note = (
        f"<p>Charts of attention, tails and losses are drawn from {sample.num_examples:,} examples "
        f"({sample.num_positions:,} of {pages.num_positions:,} {pages.row}s), spread evenly over the corpus.</p>\n"
    )
    faithful = _faithfulness(pages)
    hardest = sorted(sample.losses.items(), key=lambda item: (-item[1][1], item[0]))[:HARDEST]
    rows = [(name, split, f"{loss:.3f}") for name, (split, loss) in hardest]
    hard = table(("example", "split", "nats per token"), rows, caption="Where the teacher’s loss is highest")
    return note + grid + table(("pages", "value"), _pages_rows(pages)) + faithful + (hard if rows else "")


def _pages_rows(pages: PagesFacts) -> Iterator[tuple[str, str]]:
    facts, sample = pages.facts, pages.sample
    parts = sum(size for name, size in pages.bytes_by_column.items() if not name.endswith(".safetensors"))
    yield "teacher", str(facts["name"])
    yield "layers kept", f"{', '.join(map(str, facts['layers']))} of {facts['num_layers']}"
    yield "hidden states", f"{facts['hidden_size']:,} channels, {facts['hidden_dtype']}"
    if facts["top_k"]:
        temperatures = ", ".join(f"{temperature:g}" for temperature in facts["temperatures"])
        yield "log-probabilities", f"top {facts['top_k']}, tails at temperature {temperatures}"
    if facts["num_samples"]:
        yield "log-probabilities", f"{facts['num_samples']} sampled ids"
    yield f"bytes per {pages.row}", f"{parts / max(pages.num_positions, 1):,.0f}"
    if sample.attended:
        yield "attention that falls on the response", f"{sample.response_mass / sample.attended:.1%}"
    yield "batches split for memory", f"{facts.get('num_splits', 0):,}"
    yield "examples with NaN or infinity", f"{len(facts.get('failed_examples', [])):,}"


def _faithfulness(pages: PagesFacts) -> str:
    found = pages.facts.get("faithfulness", {})
    if not found.get("cache"):
        return ""
    rows = [
        (MEASURES.get(name, name.replace("_", " ")), *(f"{found[kind].get(name, float('nan')):.3g}" for kind in KINDS))
        for name in found["cache"]
    ]
    caption = f"Faithfulness on {found['examples']:,} examples, each against the live teacher"
    return table(("measure", *KINDS.values()), rows, caption=caption)


KINDS = {"cache": "cache", "control": "teacher again", "shuffled": "another example’s cache"}


def _skips(facts: ReportFacts, grid: str) -> str:
    rows = list(_skip_rows(facts))
    if not rows:
        return f"{grid}<p>Nothing was skipped, cut or left out.</p>\n"
    return grid + table(("reason", "where", "examples", "share"), rows)


def _skip_rows(facts: ReportFacts) -> Iterator[tuple[str, str, str, str]]:
    """Reason, where, examples, share of all examples."""
    total = max(sum(facts.corpus.statuses.values()), 1)
    kinds = [("left out by the source", facts.corpus.facts.get("left_out", {})), ("corpus", facts.corpus.statuses)]
    if facts.alignment is not None:
        kinds += [("alignment", facts.alignment.counts.statuses), ("cut or mended", facts.alignment.counts.cut)]
    if facts.pages is not None and facts.pages.facts.get("failed_examples"):
        kinds.append(("teacher", {"NaN or infinity": len(facts.pages.facts["failed_examples"])}))
    for where, counts in kinds:
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            is_told_above = where == "cut or mended" and name.endswith("_skipped")
            if name != OK and count and not is_told_above:
                reason = name.removeprefix("skipped:").replace("_", " ")
                yield reason, where, f"{count:,}", percent(count / total)

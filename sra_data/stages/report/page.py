"""A report as one self-contained page; its template is page.html beside this file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sra_data.pages.chart import Chart
from sra_data.pages.render import render
from sra_data.stages.report.facts import ReportFacts
from sra_data.stages.report.sections import sections_of
from sra_data.terminal import bytes_in_words

TEMPLATE = Path(__file__).with_name("page.html")
SHOWN_OF_A_ROOT = 12


def page(facts: ReportFacts, charts: Sequence[Chart]) -> str:
    """The whole page."""
    return render(
        TEMPLATE,
        title=f"Shards: {Path(facts.shards).resolve().name}",
        lead=_lead(facts),
        sections=list(sections_of(facts, charts)),
        missing=facts.missing,
        tiles=[*_numbers(facts), *_numbers_of_pages(facts)],
        roots=_roots(facts),
        shards=facts.shards,
    )


def _lead(facts: ReportFacts) -> str:
    """Who teaches whom, by the models' names."""
    models = dict.fromkeys(names for alignment in facts.alignments for names in alignment.models)
    said = dict.fromkeys(f"{Path(teacher).name} teaches {Path(student).name}" for teacher, student in models)
    return " · ".join(said) or ", ".join(side.name for side in facts.sides) or "not cut by any tokenizer yet"


def _roots(facts: ReportFacts) -> dict[str, str]:
    """Each folder's sealed root, its beginning."""
    roots = {"corpus": facts.corpus.facts["root"]}
    roots |= {side.name: side.facts["root"] for side in facts.sides}
    roots |= {alignment.name: alignment.facts["root"] for alignment in facts.alignments}
    roots |= {pages.name: pages.facts["root"] for pages in facts.pages}
    return {name: root[:SHOWN_OF_A_ROOT] for name, root in roots.items()}


# --------------------------------------------------------------------------- numbers at the top


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

"""The sections of a report's page: corpus, sides, each alignment, each teacher's pages, and what was skipped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sra_data.pages.chart import Chart, percent
from sra_data.pages.render import Table
from sra_data.shards.schema import OK
from sra_data.shards.store import options_of
from sra_data.stages.report.facts import AlignmentFacts, PagesFacts, ReportFacts, SideFacts
from sra_data.stages.report.plots import MEASURES, facts_by_place
from sra_data.terminal import bytes_in_words

HARDEST = 8
KINDS = {"cache": "cache", "control": "teacher again", "shuffled": "another example’s cache"}


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        id: what links to it name; `link` what they say.
        title: over it.
        words: sentences under the title.
        over: tables over the charts, `under` those under them.
        charts: in their order.
    """

    id: str
    title: str
    link: str
    words: tuple[str, ...] = ()
    over: tuple[Table, ...] = ()
    under: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()


def sections_of(facts: ReportFacts, charts: Sequence[Chart]) -> Iterator[Section]:
    """All there are, in the order of the page."""

    def drawn(section: str) -> tuple[Chart, ...]:
        return tuple(chart for chart in charts if chart.section == section)

    yield Section("corpus", "Corpus", "Corpus", (_source(facts),), (_corpus(facts),))
    if facts.sides:
        yield Section("sides", "Sides", "Sides", under=_sides(facts.sides), charts=drawn("sides"))
    for place, alignment in facts_by_place("alignment", facts.alignments):
        which = f": {alignment.student} learns from {alignment.teacher}{_by(alignment)}" if place.title else ""
        under = (Table(("alignment", "value"), list(_alignment_rows(alignment))),)
        link = place.title or "Alignment"
        yield Section(place.section, f"Alignment{which}", link, under=under, charts=drawn(place.section))
    for place, pages in facts_by_place("pages", facts.pages):
        which = f": {pages.name}" if place.title else ""
        title = f"The teacher’s pages{which}"
        yield Section(
            place.section,
            title,
            place.title or title,
            (_pages_note(pages),),
            under=tuple(_pages(pages)),
            charts=drawn(place.section),
        )
    if rows := list(_skip_rows(facts)):
        yield Section("skips", "Skips", "Skips", over=(Table(("reason", "where", "examples", "share"), rows),))
    else:
        yield Section("skips", "Skips", "Skips", ("Nothing was skipped, cut or left out.",))


# --------------------------------------------------------------------------- corpus and sides


def _source(facts: ReportFacts) -> str:
    return f"Source: {'; '.join(facts.corpus.facts.get('source') or ['not recorded'])}."


def _corpus(facts: ReportFacts) -> Table:
    rows = [
        (split, f"{examples:,}", bytes_in_words(size), f"{size / max(examples, 1):,.0f}")
        for split, (examples, size) in sorted(facts.corpus.splits.items(), reverse=True)
    ]
    return Table(("split", "examples", "responses", "mean bytes"), rows)


def _sides(sides: Sequence[SideFacts]) -> tuple[Table, Table]:
    rows = [
        (side.name, split, f"{examples:,}", f"{tokens:,}", f"{positions:,}", f"{tokens / max(examples, 1):,.0f}")
        for side in sides
        for split, (examples, tokens, positions) in sorted(side.splits.items(), reverse=True)
    ]
    head = ("side", "split", "examples", "tokens", "positions", "mean length")
    about = Table(("side", "tokenizer", "tokens at most", "here it"), [_side_row(side) for side in sides])
    return Table(head, rows), about


def _side_row(side: SideFacts) -> tuple[str, str, str, str]:
    roles = [word for is_so, word in ((side.teaches, "teaches"), (side.learns, "learns")) if is_so]
    name, longest = str(side.facts.get("tokenizer_name", "not recorded")), side.facts.get("max_length")
    return (
        side.name,
        Path(name).name if Path(name).is_absolute() else name,
        "no limit" if longest is None else f"{longest:,}",
        " and ".join(roles) or "is not aligned",
    )


# --------------------------------------------------------------------------- alignments and pages


def _by(alignment: AlignmentFacts) -> str:
    options = options_of(alignment.name)
    return f" by {options}" if options else ""


def _alignment_rows(alignment: AlignmentFacts) -> Iterator[tuple[str, str]]:
    counts, options = alignment.counts, alignment.facts.get("options", {})
    spans = max(counts.spans, 1)
    yield "folder", alignment.name
    yield "student’s side", alignment.student
    yield "teacher’s side", alignment.teacher
    yield "examples aligned", f"{counts.statuses[OK]:,} of {counts.statuses.total():,}"
    yield "boundaries kept", str(options.get("boundaries", "not recorded"))
    yield "student’s response tokens per span", f"{alignment.student_tokens / spans:.3f}"
    yield "teacher’s response tokens per span", f"{alignment.teacher_tokens / spans:.3f}"
    yield "response characters in spans", f"{counts.covered:,} of {counts.characters:,}"
    yield "spans merged for --max-spans", f"{counts.merged_spans:,}"
    yield "examples without a shared boundary", f"{counts.without_spans:,}"
    yield "ids both vocabularies share", f"{alignment.facts.get('shared_ids', 0):,}"
    yield (
        "student’s response tokens with such an id",
        f"{alignment.student_shared / max(alignment.student_tokens, 1):.1%}",
    )
    yield (
        "teacher’s response tokens with such an id",
        f"{alignment.teacher_shared / max(alignment.teacher_tokens, 1):.1%}",
    )


def _pages_note(pages: PagesFacts) -> str:
    sample = pages.sample
    spans = f" Spans are those of {pages.alignment}." if pages.alignment and sample.concentrated else ""
    return (
        f"Charts of attention, tails and losses are drawn from {sample.num_examples:,} examples "
        f"({sample.num_positions:,} of {pages.num_positions:,} {pages.row}s), spread evenly over the corpus.{spans}"
    )


def _pages(pages: PagesFacts) -> Iterator[Table]:
    yield Table(("pages", "value"), list(_pages_rows(pages)))
    yield from _faithfulness(pages)
    hardest = sorted(pages.sample.losses.items(), key=lambda item: (-item[1][1], item[0]))[:HARDEST]
    rows = [(name, split, f"{loss:.3f}") for name, (split, loss) in hardest]
    if rows:
        yield Table(("example", "split", "nats per token"), rows, "Where the teacher’s loss is highest")


def _pages_rows(pages: PagesFacts) -> Iterator[tuple[str, str]]:
    facts, sample = pages.facts, pages.sample
    parts = sum(size for name, size in pages.bytes_by_column.items() if not name.endswith(".safetensors"))
    yield "folder", pages.name
    yield "teacher", str(facts["name"])
    yield "side", str(facts["side"])
    if facts.get("imported"):
        origin = facts["imported"]
        yield "imported from", f"{origin['rows']:,} rows of {origin['format']}, not compared with the live teacher"
    yield "layers kept", f"{', '.join(map(str, facts['layers']))} of {facts['num_layers']}"
    yield "hidden states", f"{facts['hidden_size']:,} channels, {facts['hidden_dtype']}"
    if facts["top_k"]:
        temperatures = ", ".join(f"{temperature:g}" for temperature in facts["temperatures"])
        yield "log-probabilities", f"top {facts['top_k']}, tails at temperature {temperatures}"
    yield f"bytes per {pages.row}", f"{parts / max(pages.num_positions, 1):,.0f}"
    if sample.attended:
        yield "attention that falls on the response", f"{sample.response_mass / sample.attended:.1%}"
    yield "batches split for memory", f"{facts.get('num_splits', 0):,}"
    yield "examples with NaN or infinity", f"{len(facts.get('failed_examples', [])):,}"


def _faithfulness(pages: PagesFacts) -> Iterator[Table]:
    found = pages.facts.get("faithfulness", {})
    if not found.get("cache"):
        return
    rows = [
        (MEASURES.get(name, name.replace("_", " ")), *(f"{found[kind].get(name, float('nan')):.3g}" for kind in KINDS))
        for name in found["cache"]
    ]
    caption = f"Faithfulness on {found['examples']:,} examples, each against the live teacher"
    yield Table(("measure", *KINDS.values()), rows, caption)


# --------------------------------------------------------------------------- skips


def _skip_rows(facts: ReportFacts) -> Iterator[tuple[str, str, str, str]]:
    """Reason, where, examples, share of all examples; an alignment skips what one of its sides does."""
    total = max(facts.corpus.num_examples, 1)
    kinds = [("left out by the source", facts.corpus.facts.get("left_out", {}))]
    for side in facts.sides:
        cut = {name: count for name, count in side.counts.cut.items() if not name.endswith("_skipped")}
        kinds += [(side.name, side.counts.statuses), (f"{side.name}, cut or mended", cut)]
    for pages in facts.pages:
        kinds.append((pages.name, {"NaN or infinity": len(pages.facts.get("failed_examples", []))}))
    for where, counts in kinds:
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            if name != OK and count:
                reason = name.removeprefix("skipped:").replace("_", " ")
                yield reason, where, f"{count:,}", percent(count / total)

"""The numbers of a report: read from indexes and receipts for all examples, from the teacher's pages for a sample.

Memory does not grow with the pages: what is read of them goes at once into histograms and means of fixed size. The
indexes (some 40 bytes an example) are held whole, as everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sra_data.errors import ShardError
from sra_data.shards.manifest import Plan, Receipt, part_path
from sra_data.shards.part import PartFile
from sra_data.shards.reader import FolderReader
from sra_data.shards.schema import OK, AlignmentRow, TeacherRow
from sra_data.shards.store import ShardSet
from sra_data.stages.align.counts import AlignCounts
from sra_data.stages.sampling import sample_rows
from sra_data.terminal import Reporter

Floats = NDArray[np.float64]

ROWS_AT_ONCE = 64
TAIL_EDGES = np.logspace(-8, 0, 161)  # tail mass of a position
PLACES = 20  # of a response, from its first span to its last
SHARES = np.linspace(0.0, 1.0, 51)  # of a response's spans, heaviest first
HARDEST = 8


@dataclass(frozen=True)
class CorpusFacts:
    """The corpus.

    Attributes:
        facts: its section of the manifest.
        splits: split -> (examples, tokens, positions), of those that are ok.
        statuses: examples by status.
        lengths: tokens of each example that is ok; `positions` those to cache.
    """

    facts: dict[str, Any]
    splits: dict[str, tuple[int, int, int]]
    statuses: dict[str, int]
    lengths: NDArray[np.int32]
    positions: NDArray[np.int32]


@dataclass(frozen=True)
class AlignmentFacts:
    """One alignment.

    Attributes:
        name: of its folder; `facts` its section of the manifest.
        counts: sums over its receipts.
        lengths: student tokens of each example that is ok on both sides.
        spans_per_student_token, spans_per_teacher_token: of the responses of each of these examples.
    """

    name: str
    facts: dict[str, Any]
    counts: AlignCounts
    lengths: NDArray[np.int32]
    spans_per_student_token: Floats
    spans_per_teacher_token: Floats


@dataclass
class PagesSample:
    """What was read of the teacher's pages.

    Attributes:
        num_examples, num_positions: read.
        tails: temperature -> positions by tail mass, counts between TAIL_EDGES.
        losses: example id -> (split, nats a token).
        salience: [PLACES] sums of a span's share of its response's mass, times the number of spans; `placed` spans.
        concentration: [len(SHARES)] sums over `concentrated` examples: mass of the heaviest share of spans.
        response_mass: sum over `attended` examples of the attention that falls on cached positions.
    """

    num_examples: int = 0
    num_positions: int = 0
    tails: dict[float, NDArray[np.int64]] = field(default_factory=dict)
    losses: dict[str, tuple[str, float]] = field(default_factory=dict)
    salience: Floats = field(default_factory=lambda: np.zeros(PLACES))
    placed: NDArray[np.int64] = field(default_factory=lambda: np.zeros(PLACES, np.int64))
    concentration: Floats = field(default_factory=lambda: np.zeros(len(SHARES)))
    concentrated: int = 0
    response_mass: float = 0.0
    attended: int = 0


@dataclass(frozen=True)
class PagesFacts:
    """The teacher's pages.

    Attributes:
        facts: their section of the manifest.
        num_positions: cached; spans where they were pooled before storing.
        bytes_by_column: on disk, with the files beside the parts under their names.
        sample: what was read of them.
    """

    facts: dict[str, Any]
    num_positions: int
    bytes_by_column: dict[str, int]
    sample: PagesSample

    @property
    def row(self) -> str:
        """What one row of their values is: "position" or "span"."""
        return "span" if self.facts.get("granularity") == "span" else "position"


@dataclass(frozen=True)
class ReportFacts:
    """Everything a report shows; `missing` says in a sentence each what is not there yet."""

    shards: str
    corpus: CorpusFacts
    alignment: AlignmentFacts | None
    pages: PagesFacts | None
    missing: list[str]


def gather(shards: ShardSet, *, student: str | None, sample: int, reporter: Reporter) -> ReportFacts:
    """Read what a report shows.

    Raises:
        ShardError: If the corpus is missing, or `student` names no alignment or one of several.
    """
    missing: list[str] = []
    corpus = _corpus(shards.corpus)
    aligned, alignment, pages = None, None, None
    if student is None and not shards.alignments:
        missing.append("No alignment yet: run `sra-data align`.")
    else:
        name = shards.alignment(student).section.removeprefix("alignments/")
        aligned = shards.alignments[name]
        alignment = _alignment(name, aligned, shards.corpus)
    try:
        pages = _pages(shards, aligned, sample, reporter)
    except ShardError as error:
        if shards.manifest.section("teacher") is not None and shards.manifest.content["teacher"].get("root"):
            raise  # the pages are there, and damaged or another corpus's
        missing.append(f"The teacher's pages: {error}.")
    return ReportFacts(str(shards.path), corpus, alignment, pages, missing)


def _corpus(reader: FolderReader) -> CorpusFacts:
    index = reader.index
    splits = {}
    for split in index.words["split"][1]:
        rows = index.in_split(split) & index.is_ok
        splits[split] = (int(rows.sum()), int(index.num_tokens[rows].sum()), int(index.num_positions[rows].sum()))
    is_ok = index.is_ok
    return CorpusFacts(reader.facts, splits, index.status_counts(), index.num_tokens[is_ok], index.num_positions[is_ok])


def _alignment(name: str, reader: FolderReader, corpus: FolderReader) -> AlignmentFacts:
    counts = AlignCounts()
    for unit in Plan.load(reader.folder).units:
        notes = Receipt.load(reader.folder, unit.part).notes
        if notes:
            counts.add(AlignCounts.from_json(notes))
    index = reader.index
    is_ok = index.is_ok & corpus.index.is_ok
    spans = index.num_spans[is_ok]
    return AlignmentFacts(
        name,
        reader.facts,
        counts,
        index.num_student_tokens[is_ok],
        spans / np.maximum(index.num_labels[is_ok], 1),
        spans / np.maximum(corpus.index.num_positions[is_ok], 1),
    )


def _pages(shards: ShardSet, aligned: FolderReader | None, sample: int, reporter: Reporter) -> PagesFacts:
    reader = shards.teacher
    sizes: dict[str, int] = {}
    plan = Plan.load(reader.folder)
    for unit in plan.units:
        receipt = Receipt.load(reader.folder, unit.part)
        with PartFile(
            part_path(reader.folder, unit.part), row_groups=receipt.row_groups, footer=receipt.footer
        ) as part:
            for name, size in part.bytes_by_column().items():
                sizes[name] = sizes.get(name, 0) + size
    for name in plan.files:
        sizes[name] = (reader.folder / name).stat().st_size
    num_positions = int(reader.index.num_positions.sum())
    return PagesFacts(reader.facts, num_positions, sizes, _sample(shards, aligned, sample, reporter))


# --------------------------------------------------------------------------- the teacher's pages, sampled


def _sample(shards: ShardSet, aligned: FolderReader | None, sample: int, reporter: Reporter) -> PagesSample:
    found = PagesSample()
    reader = shards.teacher
    failed = set(reader.facts.get("failed_examples", []))
    rows = [row for row in sample_rows(reader.index.num_positions, sample) if reader.index.id_of(row) not in failed]
    is_dev = shards.corpus.index.in_split("dev")
    columns, layer = _columns(reader)
    with reporter.task("report", total=len(rows), unit="examples") as task:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            chosen = rows[start : start + ROWS_AT_ONCE]
            said: list[TeacherRow] = reader.read(chosen, columns)
            spans: list[AlignmentRow | None] = [None] * len(chosen)
            if layer is not None and aligned is not None:
                spans = aligned.read(chosen, ["teacher_spans"])
            for row, teacher, alignment in zip(chosen, said, spans, strict=True):
                _add_log_probs(found, teacher, reader.facts, "dev" if is_dev[row] else "train")
                if layer is not None and alignment is not None and alignment.status == OK:
                    _add_attention(found, teacher, layer, alignment.teacher_spans)
            found.num_examples += len(chosen)
            found.num_positions += int(reader.index.num_positions[chosen].sum())
            task.advance(len(chosen))
    return found


def _columns(reader: FolderReader) -> tuple[list[str], int | None]:
    """The light columns there are, and the last layer with attention."""
    names = [column.name for column in reader.schema.columns]
    layers = sorted(int(name.removeprefix("attention.")) for name in names if name.startswith("attention."))
    wanted: list[str] = [name for name in ("log_tails", "next_log_prob") if name in names]
    if layers:
        wanted.append(f"attention.{layers[-1]}")
    if layers and reader.schema.granularity == "token":
        wanted.append("positions")
    return wanted, layers[-1] if layers else None


def _add_log_probs(found: PagesSample, row: TeacherRow, facts: dict[str, Any], split: str) -> None:
    if row.log_tails is not None:
        for temperature, tails in zip(facts["temperatures"], row.log_tails, strict=True):
            mass = np.clip(np.exp(tails.astype(np.float64)), TAIL_EDGES[0], TAIL_EDGES[-1])
            before = found.tails.get(temperature, np.zeros(len(TAIL_EDGES) - 1, np.int64))
            found.tails[temperature] = before + np.histogram(mass, TAIL_EDGES)[0]
    if row.next_log_prob is not None:
        known = row.next_log_prob[~np.isnan(row.next_log_prob)]
        if len(known):
            found.losses[row.id] = (split, float(-known.astype(np.float64).mean()))


def _add_attention(found: PagesSample, row: TeacherRow, layer: int, spans: NDArray[np.int32]) -> None:
    attention = row.attention[layer].astype(np.float64)
    found.response_mass += float(attention.sum())
    found.attended += 1
    mass = attention if row.positions is None else mass_of_spans(attention, row.positions, spans)
    if len(mass) != len(spans) or len(mass) < 2 or not mass.sum() > 0:
        return
    share = mass / mass.sum()
    place = (np.arange(len(share)) * PLACES) // len(share)
    found.salience += np.bincount(place, share * len(share), minlength=PLACES)
    found.placed += np.bincount(place, minlength=PLACES)
    found.concentration += concentration(share)
    found.concentrated += 1


def mass_of_spans(attention: Floats, positions: NDArray[np.int32], spans: NDArray[np.int32]) -> Floats:
    """[K] attention summed over each span.

    Args:
        attention: [P], of the cached positions.
        positions: [P], their token indices, ascending.
        spans: [K, 2], half-open, in tokens.
    """
    sums = np.concatenate([[0.0], np.cumsum(attention)])
    first, stop = np.searchsorted(positions, spans[:, 0]), np.searchsorted(positions, spans[:, 1])
    return sums[stop] - sums[first]


def concentration(share: Floats) -> Floats:
    """[len(SHARES)] mass held by the heaviest share of the spans, whose shares [K] add up to 1."""
    sums = np.concatenate([[0.0], np.cumsum(np.sort(share)[::-1])])
    return np.interp(SHARES, np.arange(len(sums)) / len(share), sums)

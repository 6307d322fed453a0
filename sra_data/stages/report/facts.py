"""The numbers of a report: read from indexes and receipts for all examples, from the teacher's pages for a sample.

Memory does not grow with the pages: what is read of them goes at once into histograms and means of fixed size. The
indexes (some 40 bytes an example) are held whole, as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sra_data.shards.reader import FolderReader
from sra_data.shards.store import PairReader, Plan, ShardSet, notes_of, options_of, sides_of
from sra_data.stages.align.counts import PairCounts, SideCounts
from sra_data.stages.report.choice import Shown, ShownPair, choose
from sra_data.stages.report.sample import Floats, PagesSample, read_sample
from sra_data.terminal import Reporter


@dataclass(frozen=True)
class CorpusFacts:
    """The corpus.

    Attributes:
        facts: its section of the manifest.
        splits: split -> (examples, bytes of their responses).
    """

    facts: dict[str, Any]
    splits: dict[str, tuple[int, int]]

    @property
    def num_examples(self) -> int:
        """In all splits."""
        return sum(examples for examples, _ in self.splits.values())


@dataclass(frozen=True)
class SideFacts:
    """One side.

    Attributes:
        name: of its folder; `facts` its section of the manifest.
        teaches: whether it is a teacher's side of a pair that is shown; `learns` likewise.
        counts: sums over its receipts.
        splits: split -> (examples, tokens, positions), of those that are ok.
        lengths: tokens of each example that is ok; `positions` those to cache.
    """

    name: str
    facts: dict[str, Any]
    teaches: bool
    learns: bool
    counts: SideCounts
    splits: dict[str, tuple[int, int, int]]
    lengths: NDArray[np.int32]
    positions: NDArray[np.int32]


@dataclass(frozen=True)
class AlignmentFacts:
    """One alignment, seen from the student.

    Attributes:
        name: of its folder; `facts` its section of the manifest.
        student, teacher: names of the sides; `models` the (teacher, student) models it was made for.
        counts: sums over its receipts, left and right as in its name.
        sizes: spans by "student's tokens:teacher's tokens".
        student_tokens, teacher_tokens: of the responses; `student_shared`, `teacher_shared` of them have a counterpart.
        spans_per_student_token, spans_per_teacher_token: of the responses of each example that is ok on both sides.
    """

    name: str
    facts: dict[str, Any]
    student: str
    teacher: str
    models: list[tuple[str, str]]
    counts: PairCounts
    sizes: dict[str, int]
    student_tokens: int
    teacher_tokens: int
    student_shared: int
    teacher_shared: int
    spans_per_student_token: Floats
    spans_per_teacher_token: Floats

    @property
    def title(self) -> str:
        """Student's side~teacher's side, and the options behind where they are not the usual ones."""
        options = options_of(self.name)
        return f"{self.student}~{self.teacher}" + (f"~{options}" if options else "")


@dataclass(frozen=True)
class PagesFacts:
    """One teacher's pages.

    Attributes:
        name: of their folder; `facts` their section of the manifest.
        num_positions: cached; spans where they were pooled before storing.
        bytes_by_column: on disk, with the files beside the parts under their names.
        alignment: whose spans attention is shown by, its name; None for none.
        sample: what was read of them.
    """

    name: str
    facts: dict[str, Any]
    num_positions: int
    bytes_by_column: dict[str, int]
    alignment: str | None
    sample: PagesSample

    @property
    def title(self) -> str:
        """Its name."""
        return self.name

    @property
    def row(self) -> str:
        """What one row of their values is: "position" or "span"."""
        return "span" if self.facts.get("granularity") == "span" else "position"


@dataclass(frozen=True)
class ReportFacts:
    """Everything a report shows; `missing` says in a sentence each what is not there yet."""

    shards: str
    corpus: CorpusFacts
    sides: list[SideFacts]
    alignments: list[AlignmentFacts]
    pages: list[PagesFacts]
    missing: list[str]


def gather(
    shards: ShardSet, *, teacher: str | None = None, student: str | None = None, sample: int, reporter: Reporter
) -> ReportFacts:
    """Read what a report shows: everything that is sealed, or only what has to do with a teacher or student.

    Raises:
        ShardError: If the corpus is missing, `teacher` or `student` names nothing or several, or something is damaged.
    """
    shown = choose(shards, teacher=teacher, student=student)
    pairs = [(shards.pair(student=one.student, teacher=one.teacher, name=one.name), one) for one in shown.pairs]
    pages = [_pages(shards, name, [pair for pair, _ in pairs], sample, reporter) for name in shown.teachers]
    return ReportFacts(
        str(shards.path),
        _corpus(shards.corpus),
        sorted((_side(shards, name, shown) for name in shown.sides), key=lambda side: not side.teaches),
        [_alignment(shards, pair, one) for pair, one in pairs],
        pages,
        shown.missing,
    )


# --------------------------------------------------------------------------- corpus, sides, alignments


def _corpus(reader: FolderReader) -> CorpusFacts:
    index, splits = reader.index, {}
    for split in index.words["split"][1]:
        rows = index.in_split(split)
        splits[split] = (int(rows.sum()), int(index.num_bytes[rows].sum()))
    return CorpusFacts(reader.facts, splits)


def _side(shards: ShardSet, name: str, shown: Shown) -> SideFacts:
    reader, corpus = shards.side(name), shards.corpus.index
    index, splits = reader.index, {}
    for split in corpus.words["split"][1]:
        rows = corpus.in_split(split) & index.is_ok
        splits[split] = (int(rows.sum()), int(index.num_tokens[rows].sum()), int(index.num_positions[rows].sum()))
    return SideFacts(
        name,
        reader.facts,
        any(pair.teacher == name for pair in shown.pairs),
        any(pair.student == name for pair in shown.pairs),
        SideCounts.total(notes_of(reader.folder, Plan.load(reader.folder))),
        splits,
        index.num_tokens[index.is_ok],
        index.num_positions[index.is_ok],
    )


def _alignment(shards: ShardSet, pair: PairReader, shown: ShownPair) -> AlignmentFacts:
    counts = PairCounts.total(notes_of(pair.reader.folder, Plan.load(pair.reader.folder)))
    by_role = dict(zip(pair.roles, ("left", "right"), strict=True))
    student, teacher = (shards.side(name).index for name in (pair.student, pair.teacher))
    is_ok = pair.index.is_ok
    spans = pair.index.num_spans[is_ok]
    of_student = by_role["student"] == "left"
    return AlignmentFacts(
        name=pair.name,
        facts=pair.reader.facts,
        student=pair.student,
        teacher=pair.teacher,
        models=shown.models,
        counts=counts,
        sizes={size if of_student else ":".join(reversed(size.split(":"))): n for size, n in counts.sizes.items()},
        student_tokens=getattr(counts, f"{by_role['student']}_tokens"),
        teacher_tokens=getattr(counts, f"{by_role['teacher']}_tokens"),
        student_shared=getattr(counts, f"{by_role['student']}_shared"),
        teacher_shared=getattr(counts, f"{by_role['teacher']}_shared"),
        spans_per_student_token=spans / np.maximum(student.num_labels[is_ok], 1),
        spans_per_teacher_token=spans / np.maximum(teacher.num_positions[is_ok], 1),
    )


# --------------------------------------------------------------------------- the teachers' pages


def _pages(shards: ShardSet, name: str, pairs: Sequence[PairReader], sample: int, reporter: Reporter) -> PagesFacts:
    reader = shards.teacher(name)
    aligned = _spans_for(shards, reader, pairs)
    return PagesFacts(
        name=name,
        facts=reader.facts,
        num_positions=int(reader.index.num_positions.sum()),
        bytes_by_column=reader.bytes_by_column(),
        alignment=None if aligned is None else aligned.name,
        sample=read_sample(shards, reader, aligned, sample, reporter),
    )


def _spans_for(shards: ShardSet, reader: FolderReader, pairs: Sequence[PairReader]) -> PairReader | None:
    """The alignment whose spans attention is shown by: the pages' own, or the first that is shown of their side."""
    side, own = str(reader.facts["side"]), reader.facts.get("alignment")
    if own is None:
        return next((pair for pair in pairs if pair.teacher == side), None)
    name = str(own).rpartition("/")[2]
    left, right = sides_of(name)
    return shards.pair(student=right if left == side else left, teacher=side, name=name)

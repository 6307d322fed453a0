"""Rows of the shards for a method: exactly the columns it reads, from all folders, joined by row number.

A cache without the columns a method needs is refused here, with the command that makes them; in the method's own words
where it is an option that asks for too much.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sra_data.errors import ShardError
from sra_data.shards.schema import ExampleRow, SideRow, TeacherRow
from sra_data.shards.store import FolderReader, PairSpans
from sra_train.contract import CacheNeeds
from sra_train.data.examples import ExampleParts, TeacherPart
from sra_train.data.pages import PageForm, column_names
from sra_train.data.sources import Sources, TeacherSource

SIDE_COLUMNS = ("ids", "label_spans")
ALIGNED_COLUMNS = ("ids", "response_spans", "response_turns")  # of both sides
SIDE_TEXT_COLUMNS = ("ends", "response_ranges", "text")
TEXT_COLUMNS = ("prompt", "response")


class RowReader:
    """Reads joined rows by number; safe to use from the prefetch threads of training and evaluation.

    Attributes:
        forms: what is read of each teacher, in order.
    """

    def __init__(self, sources: Sources, needs: Sequence[CacheNeeds]) -> None:
        """Check that everything is there.

        Args:
            sources: The folders.
            needs: Of the method, one a teacher; none for a method without teachers.

        Raises:
            ShardError: If a teacher's pages lack a column that is needed, or their rows are of the other granularity.
        """
        self.sources = sources
        self.teachers = [_TeacherReader(source, own) for source, own in zip(sources.teachers, needs, strict=True)]
        self.forms = tuple(teacher.form for teacher in self.teachers)
        self.side_columns = [*SIDE_COLUMNS]
        if any(one.aligned for one in needs):
            self.side_columns += [name for name in ALIGNED_COLUMNS if name not in SIDE_COLUMNS]

    def __call__(self, rows: Sequence[int], *, with_text: bool = False) -> list[ExampleParts]:
        """The rows, in the order asked; `with_text`: with what bits per byte need.

        Raises:
            ShardError: If a row is damaged, or the folders disagree about which example it is.
        """
        columns = [*self.side_columns, *(SIDE_TEXT_COLUMNS if with_text else ())]
        sides: list[SideRow] = self.sources.side.read(rows, columns)
        corpus = self.sources.shards.corpus
        texts: list[ExampleRow | None] = corpus.read(rows, TEXT_COLUMNS) if with_text else [None] * len(rows)
        parts = [teacher.read(rows) for teacher in self.teachers]
        found = [
            ExampleParts(side, tuple(part[place] for part in parts), texts[place]) for place, side in enumerate(sides)
        ]
        for one in found:
            self._check(one)
        return found

    @property
    def is_here(self) -> bool:
        """Whether all folders are on this machine, so that nothing has to be fetched."""
        return self.sources.side.is_here

    def fetch(self, rows: NDArray[np.int64], *, with_text: bool = False) -> int:
        """Bring what `__call__` will read of these rows nearer, where the shards are in a store; the bytes that came.

        Raises:
            ShardError: If the store refuses or does not answer.
        """
        columns = [*self.side_columns, *(SIDE_TEXT_COLUMNS if with_text else ())]
        fetched = self.sources.side.fetch(rows, columns)
        if with_text:
            fetched += self.sources.shards.corpus.fetch(rows, TEXT_COLUMNS)
        return fetched + sum(teacher.fetch(rows) for teacher in self.teachers)

    def _check(self, found: ExampleParts) -> None:
        others = [part.spans.id for part in found.teachers if part is not None]
        others += [part.pages.id for part in found.teachers if part is not None]
        others += [] if found.example is None else [found.example.id]
        if any(other != found.side.id for other in others):
            raise ShardError(
                f"{self.sources.shards.path}: example {found.side.id} stands beside another; run `sra-data verify`"
            )


class _TeacherReader:
    """The rows of one teacher."""

    def __init__(self, source: TeacherSource, needs: CacheNeeds) -> None:
        refuse_other_granularity(source, needs)
        refuse_missing_columns(source, needs)
        refuse_other_width(source)
        self.source = source
        end_of_sequence = source.pair.vocabulary().end_of_sequence if needs.aligned else None
        nearest = source.pair.nearest() if needs.aligned == "edited" else None
        schema = source.pages.schema
        self.form = PageForm.of(source.name, needs, schema, source.temperatures, end_of_sequence, nearest)
        self.columns = column_names(needs)
        self.side_columns = ["response_spans", *(["ids"] if needs.ids else [])]
        if needs.aligned:
            self.side_columns = [*ALIGNED_COLUMNS]
        if needs.responses or needs.aligned == "edited":
            self.side_columns += [name for name in SIDE_COLUMNS if name not in self.side_columns]

    def fetch(self, rows: NDArray[np.int64]) -> int:
        """Bring its part of rows nearer; the bytes that came from a store."""
        source, there = self.source, rows[self.source.has_row[rows]]
        pages, side = source.pages.fetch(there, self.columns), source.side.fetch(there, self.side_columns)
        return pages + side + source.pair.fetch(there)

    def read(self, rows: Sequence[int]) -> list[TeacherPart | None]:
        """The teacher's part of each row; None where it lacks it."""
        numbers = np.asarray(rows, np.int64)
        places = np.flatnonzero(self.source.has_row[numbers])
        there = numbers[places]
        spans: list[PairSpans] = self.source.pair.read(there)
        sides: list[SideRow] = self.source.side.read(there, self.side_columns)
        pages: list[TeacherRow] = self.source.pages.read(there, self.columns)
        found: list[TeacherPart | None] = [None] * len(numbers)
        for place, of_pair, of_side, of_pages in zip(places.tolist(), spans, sides, pages, strict=True):
            found[place] = TeacherPart(of_pair, of_side, of_pages)
        return found


def refuse_missing_columns(source: TeacherSource, needs: CacheNeeds) -> None:
    """Say which columns are missing and which command makes them.

    Raises:
        ShardError: If any is.
    """
    there = {column.name for column in source.pages.schema.columns}
    missing = [name for name in column_names(needs) if name not in there]
    missing += [
        f"log_tails at temperature {one:g}"
        for one in needs.temperatures
        if "log_tails" not in missing and one not in source.temperatures
    ]
    if not missing:
        return
    flags = ["--layers " + ",".join(str(layer) for layer in needs.layers)] if needs.layers else []
    flags += ["--top-k 64"] if needs.top_k else []
    flags += ["--temperatures " + ",".join(f"{one:g}" for one in needs.temperatures)] if needs.temperatures else []
    raise ShardError(
        f"{source.pages.folder}: the method reads {', '.join(missing)}, which this cache does not hold (it has"
        f" {', '.join(sorted(there))}); delete the folder and run `{cache(source.pages)} {' '.join(flags)}`"
    )


def refuse_other_width(source: TeacherSource) -> None:
    """Refuse pages whose states are not as wide as their section says, for which projectors are made.

    Raises:
        ShardError: With both widths.
    """
    said = source.pages.facts["hidden_size"]
    for column in source.pages.schema.columns:
        if column.name.startswith("hidden.") and column.shape[-1] != said:
            raise ShardError(
                f"{source.pages.folder}: {column.name} is {column.shape[-1]} wide, the manifest says {said}; delete the"
                f" folder and run `{cache(source.pages)}`"
            )


def refuse_other_granularity(source: TeacherSource, needs: CacheNeeds) -> None:
    """Say that pages by span serve one alignment and pooled spans only, and that pages by token hold no pooled ones.

    Raises:
        ShardError: If the pages' rows are not what the method or the student reads; with the remedy.
    """
    pages = source.pages
    if pages.facts.get("granularity", "token") != "span":
        if needs.centers:
            raise ShardError(
                f"{pages.folder}: {needs.centers.option} reads distributions at centres of mass, this cache holds those"
                f" of tokens; {needs.centers.instead}, or run `{cache(pages)} --granularity span` and choose what it"
                " makes with --teacher"
            )
        return
    made_from = [name for name in pages.facts["made_from"] if name.startswith("alignments/")]
    if source.pair.reader.section not in made_from:
        raise ShardError(
            f"{pages.folder}: holds the spans of {', '.join(made_from)}, the student's alignment is"
            f" {source.pair.reader.section}; train the other student, or run `{cache(pages)}` (by token, for every"
            " student) and choose what it makes with --teacher"
        )
    if needs.tokens:
        raise ShardError(
            f"{pages.folder}: {needs.tokens.option} reads single tokens, this cache holds spans (--granularity span);"
            f" {needs.tokens.instead}, or run `{cache(pages)} --granularity token` and choose what it makes with"
            " --teacher"
        )


def cache(pages: FolderReader) -> str:
    """The command that caches the same teacher once more, up to its options."""
    shards = pages.folder.parent.parent
    return f"sra-data cache-teacher {shards} --teacher {pages.facts['name']}"

"""What a run reads: the student's side of the shards, and of each chosen teacher its pages, its side and the alignment.

Everything is found by names in the manifest; nothing here opens a model or a data file beyond the indexes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sra_data.errors import ShardError
from sra_data.shards.store import FolderReader, PairReader, ShardSet, choose_places, sides_of


@dataclass(frozen=True, eq=False)
class TeacherSource:
    """One teacher of a run.

    Attributes:
        name: of its folder.
        weight: its share of what is distilled.
        pages: what it said.
        side: the corpus as its tokenizer reads it.
        pair: its side and the student's, aligned.
    """

    name: str
    weight: float
    pages: FolderReader
    side: FolderReader
    pair: PairReader

    @cached_property
    def has_row(self) -> NDArray[np.bool_]:
        """Rows this teacher has: read by its tokenizer, aligned, and without NaN or infinity. bool [rows]."""
        found = self.side.index.is_ok & self.pair.index.is_ok
        for example in self.pages.facts.get("failed_examples", ()):
            found[self.pages.index.row_of(example)] = False
        return found

    @property
    def num_spans(self) -> NDArray[np.int64]:
        """Spans of every row it has, 0 elsewhere [rows]."""
        return np.where(self.has_row, self.pair.index.num_spans, 0).astype(np.int64)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Of the cached log tails, in their order."""
        return tuple(self.pages.facts.get("temperatures", ()))

    @property
    def model(self) -> str:
        """What the model is called."""
        return str(self.pages.facts.get("name", self.name))


@dataclass(frozen=True, eq=False)
class Sources:
    """The folders a run reads; `teachers` is empty for a method that has none."""

    shards: ShardSet
    side: FolderReader
    teachers: tuple[TeacherSource, ...] = ()

    @property
    def side_name(self) -> str:
        """Of the student's side."""
        return self.side.section.partition("/")[2]

    def roots(self) -> dict[str, str]:
        """Section -> what it was sealed with, of every folder the run reads."""
        readers = [self.shards.corpus, self.side]
        for teacher in self.teachers:
            readers += [teacher.side, teacher.pair.reader, teacher.pages]
        return {reader.section: reader.root for reader in readers}


def open_shards(place: str, *, cache_dir: str | None = None, cache_gib: float | None = None) -> ShardSet:
    """Open a folder of shards or a place in a store, whose parts are read through a cache in `cache_dir`.

    Raises:
        SRAError: As `ShardSet.open`.
    """
    choose_places(cache_dir=cache_dir, cache_gib=cache_gib)
    return ShardSet.open(place)


def open_sources(
    shards: ShardSet, *, side: str, teachers: Sequence[tuple[str | None, float]], alignment: str | None = None
) -> Sources:
    """Find and open what a run reads.

    Args:
        shards: the folder.
        side: name of the student's side.
        teachers: (what the user calls it, weight) of each; None for the only one there is.
        alignment: name of an alignment, or its start: which one is read where a pair was aligned in several ways.

    Raises:
        ShardError: If something is missing, unfinished or made from something else, or a name fits none or several.
    """
    names = _teacher_names(shards, [wanted for wanted, _ in teachers])
    pairs = [_fitting(shards, {side, shards.side_of_teacher(name)}, alignment) for name in names]
    if alignment is not None and names and not any(pairs):
        listed = ", ".join(shards.manifest.names("alignments")) or "none"
        raise ShardError(
            f"{shards.path}: no alignment {alignment} of {side} with the chosen teachers (there are {listed});"
            " choose one with --set student.alignment=NAME"
        )
    chosen = []
    for name, (_, weight), named in zip(names, teachers, pairs, strict=True):
        of_teacher = shards.side_of_teacher(name)
        pair = shards.pair(student=side, teacher=of_teacher, name=alignment if named else None)
        chosen.append(TeacherSource(name, weight, shards.teacher(name), shards.side(of_teacher), pair))
    return Sources(shards, shards.side(side), tuple(chosen))


def _teacher_names(shards: ShardSet, asked: Sequence[str | None]) -> list[str]:
    """Folders of the teachers that are meant, none of them twice."""
    names: list[str] = []
    for wanted in asked:
        name = shards.choose_teacher(wanted)
        if name in names:
            raise ShardError(
                f"{shards.path}: the teacher {name} is named twice (as {asked[names.index(name)]} and {wanted});"
                " name it once, with the sum of the weights"
            )
        names.append(name)
    return names


def _fitting(shards: ShardSet, sides: set[str], alignment: str | None) -> bool:
    """Whether the alignment the user names is one of these two sides."""
    return alignment is not None and any(
        name.startswith(alignment) and set(sides_of(name)) == sides for name in shards.manifest.names("alignments")
    )

"""The face of the room: the whole folder of shards, and everything other rooms use to write and read it.

Writing: `begin` a folder (its plan), `missing_units`, for each `claimed` and `write_part`, `seal`. Reading:
`ShardSet.open`, then a side, a teacher, and the `PairReader` that shows an alignment in one direction.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sra_data.errors import ShardError
from sra_data.shards.beginning import Beginning, begin, begin_all, refuse_if_changed
from sra_data.shards.choosing import choose, folder_name, model_name, names_of_model
from sra_data.shards.claims import claimed
from sra_data.shards.codecs import EncodedTensor
from sra_data.shards.columnar import (
    EncodedRows,
    PartColumns,
    alignment_columns,
    corpus_columns,
    read_part,
    side_columns,
)
from sra_data.shards.columns import FORMAT_VERSION, FolderSchema
from sra_data.shards.durable import BeingWritten, folder_lock, remove_abandoned
from sra_data.shards.heads import load_embeddings, load_head, save_embeddings, save_head
from sra_data.shards.index import Index, read_index
from sra_data.shards.kinds import alignment_schema, corpus_schema, side_schema, teacher_schema
from sra_data.shards.manifest import (
    Manifest,
    Plan,
    Receipt,
    Unit,
    command_for,
    is_begun,
    is_done,
    is_in_store,
    missing_units,
    notes_of,
    record,
    record_pairs,
)
from sra_data.shards.pairs import (
    BETWEEN_SIDES,
    PairReader,
    PairSpans,
    PairVocabulary,
    alignment_name,
    options_of,
    sides_of,
)
from sra_data.shards.reader import FolderReader, refuse_other_base
from sra_data.shards.receipts import has_file, is_as_sealed
from sra_data.shards.seal import Sealed, seal, seal_all
from sra_data.shards.state import FolderState, state_of
from sra_data.shards.stores.mirror import copy_to_store, folder_of, not_promised, publish_beside, take_away
from sra_data.shards.stores.places import cache_bytes, choose_places
from sra_data.shards.vocabulary import VOCABULARY, StoredVocabulary, load_vocabulary, save_vocabulary
from sra_data.shards.writer import TEXT_BYTES_PER_GROUP, cut_row_groups, write_columns, write_part

__all__ = [
    "BETWEEN_SIDES",
    "FORMAT_VERSION",
    "TEXT_BYTES_PER_GROUP",
    "VOCABULARY",
    "Beginning",
    "BeingWritten",
    "EncodedRows",
    "FolderReader",
    "FolderSchema",
    "FolderState",
    "Index",
    "Manifest",
    "PairReader",
    "PairSpans",
    "PairVocabulary",
    "PartColumns",
    "Plan",
    "Receipt",
    "Sealed",
    "ShardSet",
    "StoredVocabulary",
    "Unit",
    "alignment_columns",
    "alignment_name",
    "alignment_schema",
    "begin",
    "begin_all",
    "cache_bytes",
    "choose_places",
    "claimed",
    "command_for",
    "copy_to_store",
    "corpus_columns",
    "corpus_schema",
    "cut_row_groups",
    "folder_lock",
    "folder_name",
    "folder_of",
    "has_file",
    "is_as_sealed",
    "is_begun",
    "is_done",
    "is_in_store",
    "load_embeddings",
    "load_head",
    "load_vocabulary",
    "missing_units",
    "model_name",
    "not_promised",
    "notes_of",
    "options_of",
    "publish_beside",
    "read_index",
    "read_part",
    "record",
    "record_pairs",
    "refuse_if_changed",
    "remove_abandoned",
    "save_embeddings",
    "save_head",
    "save_vocabulary",
    "seal",
    "seal_all",
    "side_columns",
    "side_schema",
    "sides_of",
    "state_of",
    "take_away",
    "teacher_schema",
    "write_columns",
    "write_part",
]

ALIGN = "sra-data align"


class ShardSet:
    """A whole folder of shards, opened for reading; its folders are opened when asked for.

    Attributes:
        path: the folder.
        manifest: as read when opened.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._opened: dict[str, FolderReader] = {}

    @classmethod
    def open(cls, path: str | Path) -> ShardSet:
        """Open a folder, or a place in a store (s3://bucket/shards), which is then read through a bounded cache.

        Raises:
            ConfigError: If fsspec reaches no such store, or a package is missing for it.
            ShardError: If there are no shards, of another format version, or the corpus is not sealed.
        """
        folder = folder_of(path)
        shards = cls(folder, Manifest.load(folder))
        assert shards.corpus is not None
        return shards

    @cached_property
    def corpus(self) -> FolderReader:
        """The examples as the user gave them."""
        return self._open("corpus")

    def side(self, name: str) -> FolderReader:
        """A side by the name of its folder.

        Raises:
            ShardError: If it is missing, unfinished or of another corpus.
        """
        return self._open(f"sides/{name}")

    def teacher(self, name: str) -> FolderReader:
        """A teacher's pages by the name of their folder; rows know their positions.

        Raises:
            ShardError: If they are missing, unfinished or of another corpus or side.
        """
        return self._open(f"teachers/{name}", side=self.side(self.side_of_teacher(name)))

    def alignment(self, name: str) -> FolderReader:
        """An alignment by the name of its folder.

        Raises:
            ShardError: If it is missing, unfinished or of other sides.
        """
        return self._open(f"alignments/{name}")

    def pair(
        self, *, student: str, teacher: str, name: str | None = None, flag: str = "--set student.alignment=NAME"
    ) -> PairReader:
        """The alignment of two sides, seen from the student.

        Args:
            student: name of a side; teacher likewise.
            name: of the alignment, where the pair was aligned in several ways.
            flag: the caller's option that names one.

        Raises:
            ShardError: If they were never aligned, or in several ways and no name was given.
        """
        known = [found for found in self.manifest.names("alignments") if set(sides_of(found)) == {student, teacher}]
        plain = alignment_name(student, teacher)
        if name is None and len(known) > 1 and plain in known:
            known = [plain]
        if not known:
            raise ShardError(
                f"{self.path}: the sides {student} and {teacher} are not aligned; run `{ALIGN} --teacher "
                f"{self._model_of(teacher)} --student {self._model_of(student)} --out {self.path}` with the same data"
            )
        chosen = choose(
            name,
            {found: (options_of(found),) for found in known},
            where=self.path,
            what="alignment",
            flag=flag,
            command=ALIGN,
        )
        return PairReader(self.alignment(chosen), student=student, teacher=teacher)

    # ------------------------------------------------------------------------------------------- which one is meant

    def choose_teacher(self, wanted: str | None = None) -> str:
        """The name of a teacher's folder: by its name, its start, its model's name, or the only one.

        Raises:
            ShardError: If there is none, or several fit; lists what is there.
        """
        facts = {name: self.manifest.section(f"teachers/{name}") or {} for name in self.manifest.names("teachers")}
        known = {name: names_of_model(found.get("name", ""), found.get("revision")) for name, found in facts.items()}
        command = f"sra-data cache-teacher {self.path}"
        return choose(wanted, known, where=self.path, what="teacher", flag="--teacher NAME", command=command)

    def choose_student(self, wanted: str | None = None) -> str:
        """The name of a side that was aligned as a student's: by its name, its start, its model's, or the only one.

        Raises:
            ShardError: If there is none, or several fit; lists what is there.
        """
        return self._choose_side(wanted, "student")

    def choose_teacher_side(self, wanted: str | None = None) -> str:
        """The name of a side that was aligned as a teacher's; raises as `choose_student` does."""
        return self._choose_side(wanted, "teacher")

    def choose_pair(
        self, *, teacher: str | None = None, student: str | None = None, name: str | None = None
    ) -> PairReader:
        """The alignment of the two sides that are meant; one that is not named is the only one aligned with the other.

        Args:
            teacher: name of a side that was aligned as a teacher's, its start or its model's; student likewise.
            name: of the alignment, or what stands behind the sides in it, where the pair was aligned in several ways.

        Raises:
            ShardError: If there is none, or several fit; lists what is there.
        """
        if student is None:
            teacher = self._choose_side(teacher, "teacher")
            student = self._choose_side(None, "student", partner=teacher)
        else:
            student = self._choose_side(student, "student")
            teacher = self._choose_side(teacher, "teacher", partner=student)
        return self.pair(student=student, teacher=teacher, name=name, flag="--alignment NAME")

    def _choose_side(self, wanted: str | None, role: str, *, partner: str | None = None) -> str:
        """A side that has the role, among those aligned with `partner` where that is given."""
        other = {"student": "teacher_side", "teacher": "student_side"}[role]
        known: dict[str, tuple[str, ...]] = {}
        for pair in self.manifest.pairs:
            if partner not in (None, pair[other]):
                continue
            side = pair[f"{role}_side"]
            known[side] = (*known.get(side, ()), *names_of_model(pair[role]["name"], pair[role].get("revision")))
        if wanted in self.manifest.names("sides"):
            return str(wanted)
        command = f"{ALIGN} --{role} ... --out {self.path}"
        return choose(wanted, known, where=self.path, what=role, flag=f"--{role} NAME", command=command)

    def models_of(self, side: str, role: str) -> list[dict[str, Any]]:
        """The models ({"name", "revision"}) a side was aligned for as "teacher" or "student", first to last."""
        found = [pair[role] for pair in self.manifest.pairs if pair[f"{role}_side"] == side]
        return [model for number, model in enumerate(found) if model not in found[:number]]

    def side_of_teacher(self, name: str) -> str:
        """The side whose positions a teacher's pages are about."""
        return str(self.manifest.sealed(f"teachers/{name}")["side"])

    def _model_of(self, side: str) -> str:
        return str((self.manifest.section(f"sides/{side}") or {}).get("tokenizer_name", side))

    # --------------------------------------------------------------------------------------------- beside the parts

    def head(self, teacher: str) -> tuple[dict[str, EncodedTensor], dict[str, str]]:
        """A teacher's output head: see `load_head`."""
        return load_head(self.teacher(teacher).folder)

    def embeddings(self, teacher: str) -> tuple[NDArray[np.int32], EncodedTensor, dict[str, str]]:
        """A teacher's input embeddings of the ids that occur: see `load_embeddings`."""
        return load_embeddings(self.teacher(teacher).folder)

    # ---------------------------------------------------------------------------------------------- opening, closing

    def _open(self, section: str, *, side: FolderReader | None = None) -> FolderReader:
        """A folder, opened once, made from what is there."""
        if section not in self._opened:
            reader = FolderReader(self.path, section, side=side)
            for base in reader.facts.get("made_from", {}):
                refuse_other_base(reader, self._open(base))
            self._opened[section] = reader
        return self._opened[section]

    def close(self) -> None:
        """Close all files."""
        for reader in self._opened.values():
            reader.close()

    def __enter__(self) -> ShardSet:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[str]:
        """Every section that was begun, in the order in which one is made from another."""
        return iter(self.manifest.sections)

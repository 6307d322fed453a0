"""The face of the room: the whole folder of shards, and everything other rooms use to write and read it.

Writing: `begin` a folder (its plan), `missing_units`, `write_part` for each, `seal`. Reading: `ShardSet.open`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sra_data.errors import ShardError
from sra_data.shards.codecs import EncodedTensor
from sra_data.shards.columnar import EncodedRows, alignment_columns, corpus_columns
from sra_data.shards.columns import FORMAT_VERSION, FolderSchema, alignment_schema, corpus_schema, teacher_schema
from sra_data.shards.heads import load_embeddings, load_head, save_embeddings, save_head
from sra_data.shards.index import Index, read_index
from sra_data.shards.manifest import (
    Manifest,
    Plan,
    Receipt,
    Unit,
    begin,
    command_for,
    missing_units,
    record,
    refuse_if_changed,
)
from sra_data.shards.reader import FolderReader
from sra_data.shards.seal import Sealed, seal
from sra_data.shards.writer import TEXT_POSITIONS_PER_GROUP, cut_row_groups, write_columns, write_part

__all__ = [
    "FORMAT_VERSION",
    "TEXT_POSITIONS_PER_GROUP",
    "EncodedRows",
    "FolderReader",
    "FolderSchema",
    "Index",
    "Manifest",
    "Plan",
    "Receipt",
    "Sealed",
    "ShardSet",
    "Unit",
    "alignment_columns",
    "alignment_schema",
    "begin",
    "corpus_columns",
    "corpus_schema",
    "cut_row_groups",
    "load_embeddings",
    "load_head",
    "missing_units",
    "read_index",
    "record",
    "refuse_if_changed",
    "save_embeddings",
    "save_head",
    "seal",
    "teacher_schema",
    "write_columns",
    "write_part",
]


class _Alignments(Mapping[str, FolderReader]):
    """The alignments by name, opened when asked for."""

    def __init__(self, shards: Path, names: list[str]) -> None:
        self._shards = shards
        self._readers: dict[str, FolderReader | None] = dict.fromkeys(names)

    def __getitem__(self, name: str) -> FolderReader:
        reader = self._readers[name]
        if reader is None:
            reader = self._readers[name] = FolderReader(self._shards, f"alignments/{name}")
        return reader

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def opened(self) -> list[FolderReader]:
        """Those that were asked for."""
        return [reader for reader in self._readers.values() if reader is not None]


class ShardSet:
    """A whole folder of shards, opened for reading.

    Attributes:
        path: the folder.
        manifest: as read when opened.
        corpus: its rows.
        alignments: readers by name.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.corpus = FolderReader(path, "corpus")
        self.alignments = _Alignments(path, manifest.alignments)

    @classmethod
    def open(cls, path: str | Path, *, need_teacher: bool = True) -> ShardSet:
        """Open a folder.

        Args:
            path: the folder of shards.
            need_teacher: refuse at once where the teacher's pages are missing or unfinished.

        Raises:
            ShardError: If there are no shards, of another format version, or something needed is not sealed.
        """
        path = Path(path)
        shards = cls(path, Manifest.load(path))
        if need_teacher:
            assert shards.teacher is not None
        return shards

    @cached_property
    def teacher(self) -> FolderReader:
        """The teacher's pages.

        Raises:
            ShardError: If they are missing, unfinished or of another corpus; with the command that makes them.
        """
        reader = FolderReader(self.path, "teacher", corpus=self.corpus)
        self._refuse_other_corpus(reader)
        return reader

    def alignment(self, name: str | None = None) -> FolderReader:
        """An alignment by name (or the start of it), or the only one.

        Raises:
            ShardError: If there is none of that name, or several and no name was given.
        """
        names = list(self.alignments)
        chosen = [known for known in names if known == name] or [
            known for known in names if name is None or known.startswith(name)
        ]
        if len(chosen) != 1:
            problem = "several alignments" if len(chosen) > 1 else f"no alignment {name or ''}".rstrip()
            raise ShardError(
                f"{self.path}: {problem} (there are {', '.join(names) or 'none'}); choose one with --student, "
                "or make it with `sra-data align`"
            )
        reader = self.alignments[chosen[0]]
        self._refuse_other_corpus(reader)
        return reader

    def _refuse_other_corpus(self, reader: FolderReader) -> None:
        if reader.facts["corpus_root"] != self.corpus.root:
            raise ShardError(
                f"{reader.folder}: made for the corpus {reader.facts['corpus_root'][:12]}, the folder holds "
                f"{self.corpus.root[:12]}; delete it and {command_for(reader.section, self.path)}"
            )

    def roots(self, alignment: str | None = None) -> dict[str, str]:
        """The sealed roots a run reads: corpus, alignment and teacher."""
        return {"corpus": self.corpus.root, "alignment": self.alignment(alignment).root, "teacher": self.teacher.root}

    def head(self) -> tuple[dict[str, EncodedTensor], dict[str, str]]:
        """The teacher's output head: see `load_head`."""
        return load_head(self.teacher.folder)

    def embeddings(self) -> tuple[NDArray[np.int32], EncodedTensor, dict[str, str]]:
        """The teacher's input embeddings of the ids that occur: see `load_embeddings`."""
        return load_embeddings(self.teacher.folder)

    def close(self) -> None:
        """Close all files."""
        readers = [self.corpus, *self.alignments.opened()]
        readers += [self.teacher] if "teacher" in self.__dict__ else []
        for reader in readers:
            reader.close()

    def __enter__(self) -> ShardSet:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

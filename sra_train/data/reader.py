"""Rows of the shards for a method: exactly the columns it reads, from the three folders, joined by row number.

Everything known before training starts (`row_table`) comes from the small index files; no data file is opened for it.
A cache without the columns a method needs is refused here, with the command that makes them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from sra_data.errors import ShardError
from sra_data.shards.store import FolderReader, ShardSet
from sra_train.contract import CacheNeeds
from sra_train.data.collate import ExampleRows
from sra_train.data.stream import RowTable

ALIGNMENT_COLUMNS = ("student_ids", "student_ends", "label_spans", "student_spans", "teacher_spans", "student_text")
TEACHER_CORPUS_COLUMNS = ("teacher_ids", "teacher_response_spans")
TEXT_COLUMNS = ("text", "response_ranges")


def row_table(shards: ShardSet, alignment: FolderReader, *, without: Collection[str] = ()) -> RowTable:
    """What the indexes say of every row.

    Args:
        shards: The folder.
        alignment: The student's alignment in it.
        without: Ids of examples that are not read (those the teacher failed on).

    Raises:
        ShardError: If the two folders do not have the same rows.
    """
    corpus, aligned = shards.corpus.index, alignment.index
    if len(corpus) != len(aligned):
        raise ShardError(
            f"{alignment.folder}: {len(aligned)} rows, the corpus has {len(corpus)}; run `sra-data verify`"
        )
    starts = corpus.group_starts
    num_labels = aligned.num_labels.astype(np.int64)
    usable = corpus.is_ok & aligned.is_ok & (num_labels > 0)
    for example in without:
        usable[corpus.row_of(example)] = False
    is_train, is_dev = corpus.in_split("train"), corpus.in_split("dev")
    skipped = {status: count for status, count in aligned.status_counts().items() if status != "ok"}
    without_labels = int((corpus.is_ok & aligned.is_ok & (num_labels == 0)).sum())
    if without_labels:
        skipped["skipped:no_label"] = without_labels
    if without:
        skipped["skipped:teacher_failed"] = len(without)
    return RowTable(
        row_groups=np.repeat(np.arange(len(starts) - 1), np.diff(starts)),
        is_train=usable & is_train,
        is_dev=usable & is_dev,
        num_tokens=aligned.num_student_tokens.astype(np.int64),
        num_labels=num_labels,
        num_spans=aligned.num_spans.astype(np.int64),
        skipped=skipped,
    )


class RowReader:
    """Reads joined rows by number; safe to use from the prefetch threads of training and evaluation.

    Args:
        shards: The folder.
        alignment: The student's alignment in it.
        needs: Of the method.
        with_text: Whether texts are read too (development bits per byte).

    Raises:
        ShardError: If the teacher's pages lack a column that is needed.
    """

    def __init__(self, shards: ShardSet, alignment: FolderReader, needs: CacheNeeds, *, with_text: bool) -> None:
        self.shards = shards
        self.alignment = alignment
        self.needs = needs
        self.corpus_columns = [
            *(() if needs.nothing else TEACHER_CORPUS_COLUMNS),
            *(TEXT_COLUMNS if with_text else ()),
        ]
        self.alignment_columns = [name for name in ALIGNMENT_COLUMNS if with_text or name != "student_text"]
        self.teacher_columns = teacher_columns(needs)
        if self.teacher_columns:
            refuse_other_granularity(shards, alignment, needs)
            refuse_missing_columns(shards, self.teacher_columns, needs)

    def __call__(self, rows: Sequence[int]) -> list[ExampleRows]:
        """The rows, in the order asked.

        Raises:
            ShardError: If a row is damaged, or the folders disagree about which example it is.
        """
        alignments = self.alignment.read(rows, self.alignment_columns)
        corpus = self.shards.corpus.read(rows, self.corpus_columns) if self.corpus_columns else [None] * len(rows)
        teacher = self.shards.teacher.read(rows, self.teacher_columns) if self.teacher_columns else [None] * len(rows)
        for a, c, t in zip(alignments, corpus, teacher, strict=True):
            if any(other is not None and other.id != a.id for other in (c, t)):
                raise ShardError(
                    f"{self.alignment.folder}: example {a.id} stands beside another; run `sra-data verify`"
                )
        return [ExampleRows(a, c, t) for a, c, t in zip(alignments, corpus, teacher, strict=True)]


def teacher_columns(needs: CacheNeeds) -> list[str]:
    """The names of the teacher's columns a method reads."""
    names = [f"hidden.{layer}" for layer in needs.layers if needs.hidden]
    names += [f"attention.{layer}" for layer in needs.layers if needs.attention]
    if needs.top_k:
        names += ["top_k.ids", "top_k.values", "log_tails"]
    return names


def refuse_missing_columns(shards: ShardSet, columns: Sequence[str], needs: CacheNeeds) -> None:
    """Say which columns are missing and which command makes them.

    Raises:
        ShardError: If any is.
    """
    there = {column.name for column in shards.teacher.schema.columns}
    missing = [name for name in columns if name not in there]
    if not missing:
        return
    flags = ["--layers " + ",".join(str(layer) for layer in needs.layers)] if needs.layers else []
    flags += ["--top-k 64"] if needs.top_k else []
    raise ShardError(
        f"{shards.teacher.folder}: the method reads {', '.join(missing)}, which this cache does not hold (it has"
        f" {', '.join(sorted(there))}); delete the folder and run"
        f" `sra-data cache-teacher {shards.path} {' '.join(flags)}`"
    )


def refuse_other_granularity(shards: ShardSet, alignment: FolderReader, needs: CacheNeeds) -> None:
    """Say that pages by span serve one alignment and pooled spans only, and that pages by token hold no pooled ones.

    Raises:
        ShardError: If the pages' rows are not what the method or the student reads; with the remedy.
    """
    pages = shards.teacher
    again = f"delete the folder and run `sra-data cache-teacher {shards.path}"
    if pages.facts.get("granularity", "token") != "span":
        if needs.span_rows:
            raise ShardError(
                f"{pages.folder}: {needs.span_rows} reads distributions at centres of mass, this cache holds those of"
                f" tokens; set kd_position=boundary or kd_source=head, or {again} --granularity span`"
            )
        return
    if pages.facts["fingerprint"]["alignment"] != alignment.root:
        raise ShardError(
            f"{pages.folder}: holds the spans of {pages.facts['alignment']}, the student's alignment is"
            f" {alignment.section}; train the other student, or {again}` (by token, for every student)"
        )
    if needs.token_rows:
        remedy = needs.token_rows.partition("=")[0]
        default = {"kd_position": "center_of_mass", "pooling": "attention"}[remedy]
        raise ShardError(
            f"{pages.folder}: {needs.token_rows} reads single tokens, this cache holds spans (--granularity span); set"
            f" {remedy}={default}, or {again} --granularity token`"
        )

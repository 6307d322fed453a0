"""Two sides lined up, a batch at a time: which tokenizers, what they share, and the spans as columns.

Left and right are the sides in the order of their names, so that one alignment serves both directions.

B = rows, R = responses of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sra_data.choices import Boundaries, Overlong, VocabularyMatch
from sra_data.corpus.tokenization import SideTokenizer
from sra_data.shards.images import StoredImages
from sra_data.shards.schema import OK
from sra_data.shards.store import EncodedRows, StoredVocabulary, alignment_columns, alignment_name
from sra_data.spans.alignment import MAX_SPANS, align, segments_for
from sra_data.spans.vocabulary import SharedVocabulary, shared_vocabulary
from sra_data.stages.align.batches import Examples, SideBatch, only
from sra_data.stages.align.counting import count_pair
from sra_data.stages.align.counts import PairCounts


@dataclass(frozen=True, eq=False)
class Side:
    """A tokenizer with what decides how it reads the corpus.

    Attributes:
        name: Of its folder under sides/.
        tokenizer: It.
        max_length: Tokens of an example; None for no limit.
        overlong: What happens beyond it.
    """

    name: str
    tokenizer: SideTokenizer
    max_length: int | None
    overlong: Overlong


@dataclass(frozen=True)
class PairOptions:
    """How two sides are lined up; the command's options under the same names."""

    boundaries: Boundaries = "token"
    max_spans: int = MAX_SPANS
    vocabulary_match: VocabularyMatch = "bytes"

    @property
    def suffix(self) -> str:
        """What tells an alignment with other options than the usual ones apart: its name's end."""
        said = [
            "word" if self.boundaries == "word" else "",
            f"max-spans-{self.max_spans}" if self.max_spans != MAX_SPANS else "",
            "exact" if self.vocabulary_match == "exact" else "",
        ]
        return "-".join(filter(None, said))


@dataclass(frozen=True, eq=False)
class Pair:
    """Two sides to line up.

    Attributes:
        name: Of the folder under alignments/.
        left, right: Names of the sides, in order.
        vocabulary: What they share; its student is the left side.
        options: How.
        end_of_sequence: (left's id, right's id); None where a side has none.
        num_left, num_right: Ids of each side that stand for bytes.
    """

    name: str
    left: str
    right: str
    vocabulary: SharedVocabulary
    options: PairOptions
    end_of_sequence: tuple[int, int] | None
    num_left: int
    num_right: int

    @classmethod
    def of(cls, one: Side, other: Side, options: PairOptions) -> Pair:
        """Find out what two sides share."""
        left, right = sorted((one, other), key=lambda side: side.name)
        ends = left.tokenizer.eos_id, right.tokenizer.eos_id
        vocabulary, num_left, num_right = _shared(left.tokenizer, right.tokenizer, options.vocabulary_match)
        return cls(
            name=alignment_name(left.name, right.name, options.suffix),
            left=left.name,
            right=right.name,
            vocabulary=vocabulary,
            options=options,
            end_of_sequence=None if ends[0] is None or ends[1] is None else (ends[0], ends[1]),
            num_left=num_left,
            num_right=num_right,
        )

    def stored_vocabulary(self) -> StoredVocabulary:
        """The shared vocabulary as it lies beside the parts."""
        shared = self.vocabulary
        return StoredVocabulary(
            left_ids=shared.student_ids,
            right_ids=shared.teacher_ids,
            right_of_left=shared.teacher_of_student,
            left_of_right=shared.student_of_teacher,
            end_of_sequence=self.end_of_sequence,
        )

    def align(
        self, examples: Examples, left: SideBatch, right: SideBatch, counts: PairCounts, images: StoredImages
    ) -> EncodedRows:
        """Line up a batch; counts it, and returns the rows as the alignment stores them."""
        statuses = [_status(first, second) for first, second in zip(left.statuses, right.statuses, strict=True)]
        keep = np.array([status == OK for status in statuses], dtype=bool)
        left_ranges, right_ranges = _shared_ranges(left, right, keep)
        segments = segments_for(
            student_texts=left.texts,
            student_ranges=left_ranges,
            teacher_texts=right.texts,
            teacher_ranges=right_ranges,
        )
        table = align(
            student=left.offsets,
            teacher=right.offsets,
            segments=segments,
            student_texts=left.texts,
            boundaries=self.options.boundaries,
            max_spans=self.options.max_spans,
        )
        count_pair(
            counts,
            statuses=statuses,
            table=table,
            segments=segments,
            left=left,
            right=right,
            vocabulary=self.vocabulary,
            images=images,
        )
        return alignment_columns(
            ids=[row.id for row in examples.rows],
            statuses=statuses,
            left_spans=table.student_spans,
            right_spans=table.teacher_spans,
        )


@lru_cache(maxsize=8)
def _shared(left: SideTokenizer, right: SideTokenizer, match: VocabularyMatch) -> tuple[SharedVocabulary, int, int]:
    """What two tokenizers share, its student being the left one, and how many ids of each stand for bytes.

    The same for every corpus and every length, so found once for tokenizers that are aligned again.
    """
    strings = left.vocabulary, right.vocabulary
    counts = [sum(1 for piece in one.byte_strings if piece) for one in strings]
    return shared_vocabulary(student=strings[0], teacher=strings[1], match=match), counts[0], counts[1]


def _status(left: str, right: str) -> str:
    """``ok`` where both are, else whose reason it is: the left side's before the right's."""
    for name, status in (("left", left), ("right", right)):
        if status != OK:
            return f"skipped:{name}_{status.removeprefix('skipped:')}"
    return OK


def _shared_ranges(
    left: SideBatch, right: SideBatch, keep: NDArray[np.bool_]
) -> tuple[list[NDArray[np.int32]], list[NDArray[np.int32]]]:
    """[B] characters of the responses that both templates kept, on each side; none in rows that are left out."""
    ranges = only(left.ranges, keep), only(right.ranges, keep)
    turns = only(left.turns, keep), only(right.turns, keep)
    if _equal(turns[0].splits, turns[1].splits) and _equal(turns[0].values, turns[1].values):
        first = list(ranges[0])
        # The same list says to whoever asks that nothing differs.
        return first, first if _equal(ranges[0].values, ranges[1].values) else list(ranges[1])
    found: tuple[list[NDArray[np.int32]], list[NDArray[np.int32]]] = ([], [])
    for row in range(len(keep)):
        both = np.intersect1d(turns[0][row], turns[1][row])
        for side, chosen in enumerate(found):
            chosen.append(ranges[side][row][np.isin(turns[side][row], both)])
    return found


def _equal(one: NDArray[np.integer], other: NDArray[np.integer]) -> bool:
    return np.array_equal(one, other)

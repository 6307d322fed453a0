"""What `align` says at its end."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sra_data.corpus.tokenization import SideTokenizer
from sra_data.shards.schema import OK
from sra_data.spans.vocabulary import SharedVocabulary, shared_vocabulary
from sra_data.stages.align.counts import AlignCounts
from sra_data.stages.align.plan import CorpusPlan
from sra_data.terminal import clock

SIZES_SHOWN = 8


@dataclass(frozen=True, eq=False)
class TokenizerPair:
    """Both tokenizers and what they share: all that is the same for every corpus.

    Attributes:
        student_strings: Ids of the student that stand for bytes; `teacher_strings` likewise.
    """

    teacher: SideTokenizer
    student: SideTokenizer
    vocabulary: SharedVocabulary
    teacher_strings: int
    student_strings: int

    @classmethod
    def of(cls, *, teacher: SideTokenizer, student: SideTokenizer, match: Literal["bytes", "exact"]) -> TokenizerPair:
        """Find out what two tokenizers share."""
        vocabulary = shared_vocabulary(student=student.vocabulary, teacher=teacher.vocabulary, match=match)
        teacher_strings, student_strings = (
            sum(1 for piece in side.vocabulary.byte_strings if piece) for side in (teacher, student)
        )
        return cls(teacher, student, vocabulary, teacher_strings, student_strings)


@dataclass(frozen=True)
class AlignSummary:
    """An alignment in numbers; shares are in [0, 1], all over examples that are ok on both sides.

    Attributes:
        shards: The folder; `alignment` the name of the alignment in it.
        units_missing: Units that are not there yet (with `--units`); the counts are only known once none is.
        num_dev: Of `num_examples` those of the development set.
        left_out: Rows that are in no shard, by reason; and lone surrogates replaced.
        statuses: Examples by status; `cut` how often what was cut.
        student_tokens_per_span: Tokens of the responses over spans; teacher_tokens_per_span likewise.
        sizes: Share of the spans by "student tokens:teacher tokens".
        covered: Share of the responses' characters that lie in spans.
        shared_ids: Pairs of ids; `student_ids_shared` their share of the student's vocabulary, teacher's likewise.
        student_tokens_shared: Share of the student's response tokens whose id has a counterpart, teacher's likewise.
        tokens_per_second: Of both sides, this run, from the scan to the last part; 0 where nothing was left to do.
    """

    shards: str
    alignment: str
    units: int
    units_missing: int
    num_examples: int
    num_dev: int
    left_out: dict[str, int]
    seconds: float
    tokens_per_second: float
    shared_ids: int
    student_ids_shared: float
    teacher_ids_shared: float
    statuses: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    num_spans: int = 0
    merged_spans: int = 0
    without_spans: int = 0
    student_tokens: int = 0
    teacher_tokens: int = 0
    student_tokens_per_span: float = 0.0
    teacher_tokens_per_span: float = 0.0
    sizes: dict[str, float] = field(default_factory=dict)
    covered: float = 0.0
    student_tokens_shared: float = 0.0
    teacher_tokens_shared: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        train = self.num_examples - self.num_dev
        lines = [
            f"{self.shards}/{self.alignment}: {self.num_examples:,} examples ({train:,} train, {self.num_dev:,} dev)"
        ]
        if self.left_out:
            lines.append(f"left out or mended: {_listed(self.left_out)}")
        if self.units_missing:
            lines.append(f"{self.units_missing} of {self.units} units are still missing; run the same for those")
            return lines
        skipped = {name: count for name, count in self.statuses.items() if name != OK}
        lines += [
            f"skipped: {_listed(skipped)} · cut: {_listed(self.cut)} · no shared boundary: {self.without_spans:,}",
            f"spans: {self.num_spans:,} · tokens per span {self.student_tokens_per_span:.2f} (student) and "
            f"{self.teacher_tokens_per_span:.2f} (teacher) · {self.covered:.2%} of the responses' characters covered"
            + (f" · {self.merged_spans:,} merged by max_spans" if self.merged_spans else ""),
            "student:teacher tokens of a span: "
            + " · ".join(f"{size} {share:.1%}" for size, share in list(self.sizes.items())[:SIZES_SHOWN]),
            f"shared vocabulary: {self.shared_ids:,} ids = {self.student_ids_shared:.1%} of the student's, "
            f"{self.teacher_ids_shared:.1%} of the teacher's; they cover {self.student_tokens_shared:.1%} of the "
            f"student's response tokens, {self.teacher_tokens_shared:.1%} of the teacher's",
        ]
        if self.tokens_per_second:
            lines.append(f"{self.tokens_per_second:,.0f} tokens/s (both sides) · {clock(self.seconds)}")
        else:
            lines.append("nothing was left to do")
        return lines


def _listed(counts: dict[str, int]) -> str:
    words = (f"{count:,} {name.removeprefix('skipped:').replace('_', ' ')}" for name, count in counts.items())
    return ", ".join(words) or "none"


def summarise(
    *,
    shards: str,
    section: str,
    plan: CorpusPlan,
    notes: list[dict[str, Any]],
    units_missing: int,
    pair: TokenizerPair,
    tokens_now: int,
    seconds: float,
) -> AlignSummary:
    """Add up the receipts' notes (none while units are missing)."""
    counts = AlignCounts()
    for note in notes:
        counts.add(AlignCounts.from_json(note))
    by_size = sorted(counts.sizes.items(), key=lambda item: (-item[1], item[0]))
    return AlignSummary(
        shards=shards,
        alignment=section,
        units=len(plan.units),
        units_missing=units_missing,
        num_examples=plan.num_rows,
        num_dev=plan.num_dev,
        left_out=plan.left_out,
        seconds=seconds,
        tokens_per_second=_share(tokens_now, seconds),
        shared_ids=len(pair.vocabulary),
        student_ids_shared=_share(len(pair.vocabulary), pair.student_strings),
        teacher_ids_shared=_share(len(pair.vocabulary), pair.teacher_strings),
        statuses=dict(sorted(counts.statuses.items())),
        cut=dict(sorted(counts.cut.items())),
        num_spans=counts.spans,
        merged_spans=counts.merged_spans,
        without_spans=counts.without_spans,
        student_tokens=counts.student_tokens,
        teacher_tokens=counts.teacher_tokens,
        student_tokens_per_span=_share(counts.student_tokens, counts.spans),
        teacher_tokens_per_span=_share(counts.teacher_tokens, counts.spans),
        sizes={size: _share(count, counts.spans) for size, count in by_size},
        covered=_share(counts.covered, counts.characters),
        student_tokens_shared=_share(counts.student_shared, counts.student_tokens),
        teacher_tokens_shared=_share(counts.teacher_shared, counts.teacher_tokens),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0

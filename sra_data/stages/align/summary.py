"""What `align` says at its end."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sra_data.endings import Ending, Grid, Told
from sra_data.shards.schema import OK
from sra_data.shards.store import Plan, notes_of
from sra_data.stages.align.counts import PairCounts, SideCounts
from sra_data.stages.align.pairs import Pair, Side
from sra_data.stages.align.plan import CorpusPlan
from sra_data.terminal import clock

SIZES_SHOWN = 8
SIDE_COLUMNS = ("side", "tokens", "of responses", "skipped", "cut", "texts")
NOTHING_LEFT = "nothing was left to do"


class AskedPair(Protocol):
    """A teacher's and a student's side, and their alignment."""

    @property
    def teacher_side(self) -> str:
        """Name of a side; student_side likewise."""

    @property
    def student_side(self) -> str:
        """Name of a side."""

    @property
    def alignment(self) -> str:
        """Name of an alignment."""


@dataclass(frozen=True)
class SideSummary:
    """One side in numbers.

    Attributes:
        side: Name of its folder.
        statuses: Examples by status; `cut` how often what was cut.
        tokens: In all; `response_tokens` of the responses.
    """

    side: str
    statuses: dict[str, int]
    cut: dict[str, int]
    tokens: int
    response_tokens: int

    @property
    def cells(self) -> tuple[str, ...]:
        """For people, under `SIDE_COLUMNS`."""
        skipped = {name: count for name, count in self.statuses.items() if name != OK}
        located = {name: count for name, count in self.cut.items() if name.startswith("located")}
        cut = {name: count for name, count in self.cut.items() if name not in {"ends_not_labelled", *located}}
        texts = _listed(located) if located else ""
        return self.side, f"{self.tokens:,}", f"{self.response_tokens:,}", _listed(skipped), _listed(cut), texts

    @property
    def warnings(self) -> list[str]:
        """What a student would learn wrong."""
        count = self.cut.get("ends_not_labelled", 0)
        if not count:
            return []
        return [
            f"WARNING {self.side}: after {count:,} responses no token is labelled that ends them; a student does not "
            "learn to stop there (docs/chats.md)"
        ]


@dataclass(frozen=True)
class PairSummary:
    """One teacher and one student in numbers; shares are in [0, 1], all over examples that are ok on both sides.

    Attributes:
        alignment: Name of its folder; `teacher`, `student` the names of the sides.
        statuses: Examples by status.
        sizes: Share of the spans by "student tokens:teacher tokens".
        covered: Share of the responses' characters that lie in spans.
        shared_ids: Pairs of ids; `student_ids_shared` their share of the student's vocabulary, teacher's likewise.
        student_tokens_shared: Share of the student's response tokens whose id has a counterpart, teacher's likewise.
        first_piece_right: Share of the spans whose first token of the student is the image of the teacher's, by the map
            of first pieces; byte_prefix_right likewise.
    """

    alignment: str
    teacher: str
    student: str
    shared_ids: int
    student_ids_shared: float
    teacher_ids_shared: float
    statuses: dict[str, int] = field(default_factory=dict)
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
    first_piece_right: float = 0.0
    byte_prefix_right: float = 0.0

    @property
    def why_useless(self) -> str:
        """Where no example is ok on both sides, why not; empty otherwise, and while nothing is counted."""
        return "" if self.statuses.get(OK) or not self.statuses else _listed(self.statuses)

    @property
    def grid(self) -> Grid:
        """For people."""
        sizes = " · ".join(f"{size} {share:.1%}" for size, share in list(self.sizes.items())[:SIZES_SHOWN])
        return Grid.of_facts(
            ("spans", f"{self.num_spans:,}"),
            ("student's tokens per span", f"{self.student_tokens_per_span:.2f}"),
            ("teacher's tokens per span", f"{self.teacher_tokens_per_span:.2f}"),
            ("characters covered", f"{self.covered:.2%} of the responses"),
            ("merged by max_spans", f"{self.merged_spans:,}" if self.merged_spans else ""),
            ("without a shared boundary", f"{self.without_spans:,} examples"),
            ("student:teacher tokens of a span", sizes),
            (
                "shared vocabulary",
                f"{self.shared_ids:,} ids = {self.student_ids_shared:.1%} of the student's, "
                f"{self.teacher_ids_shared:.1%} of the teacher's",
            ),
            (
                "response tokens they cover",
                f"{self.student_tokens_shared:.1%} student, {self.teacher_tokens_shared:.1%} teacher",
            ),
            (
                "the teacher's next token maps to the student's",
                f"{self.first_piece_right:.1%} by first piece, {self.byte_prefix_right:.1%} by byte prefix",
            ),
            title=f"{self.student} (student) ~ {self.teacher} (teacher)",
        )


@dataclass(frozen=True)
class AlignSummary(Told):
    """What was made, in numbers.

    Attributes:
        shards: The folder.
        units_missing: Units that are not there yet (with `--units`); sides and pairs are only counted once none is.
        num_dev: Of `num_examples` those of the development set.
        columns: Which columns of the data play which roles -> the first file in which they do.
        left_out: Rows that are in no shard, by reason; and lone surrogates replaced.
        windows: Long texts that were cut, into how many windows, with how many tokens of overlap.
        seconds: Of the scan and the units; tokens_per_second: of all sides, cut in them, 0 where none was.
        sides: Of this call; pairs likewise, teachers first to last, each with every student.
    """

    shards: str
    units: int
    units_missing: int
    num_examples: int
    num_dev: int
    columns: dict[str, str]
    left_out: dict[str, int]
    windows: dict[str, int]
    seconds: float
    tokens_per_second: float
    is_done_before: bool
    sides: tuple[SideSummary, ...]
    pairs: tuple[PairSummary, ...]

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    def ending(self) -> Ending:
        """For people."""
        train = self.num_examples - self.num_dev
        title = f"{self.shards}: {self.num_examples:,} examples ({train:,} train, {self.num_dev:,} dev)"
        left_out = _listed(self.left_out) if self.left_out else ""
        texts, windows, overlap = (self.windows.get(name, 0) for name in ("texts", "windows", "overlap"))
        cut = f"{texts:,} into {windows:,} windows, with up to {overlap} tokens of overlap" if texts else ""
        read = Grid.of_facts(
            *((f"columns of {file}", words) for words, file in self.columns.items()),
            ("left out or mended", left_out),
            ("long texts", cut),
        )
        if self.units_missing:
            missing = f"{self.units_missing} of {self.units} units are still missing; run the same for those"
            return Ending(title, (read,), (missing,))
        sides = Grid.of_columns(SIDE_COLUMNS, [side.cells for side in self.sides])
        speed = f"{self.tokens_per_second:,.0f} tokens/s (all sides) · {clock(self.seconds)}"
        return Ending(
            title,
            (read, sides, *(pair.grid for pair in self.pairs)),
            (*(line for side in self.sides for line in side.warnings), NOTHING_LEFT if self.is_done_before else speed),
            next=f"sra-data cache-teacher {shlex.quote(self.shards)}",
        )


def _listed(counts: dict[str, int]) -> str:
    words = (f"{count:,} {name.removeprefix('skipped:').replace('_', ' ')}" for name, count in counts.items())
    return ", ".join(words) or "none"


def summarise(
    *,
    shards: Path,
    plan: CorpusPlan,
    columns: dict[str, str],
    asked: Sequence[AskedPair],
    sides: Mapping[str, Side],
    pairs: Mapping[str, Pair],
    units_missing: int,
    tokens_now: int | None,
    seconds: float,
) -> AlignSummary:
    """Add up the receipts' notes (none while units are missing); `tokens_now` None: nothing was left to do."""
    is_whole = not units_missing
    return AlignSummary(
        shards=str(shards),
        units=len(plan.units),
        units_missing=units_missing,
        num_examples=plan.num_rows,
        num_dev=plan.num_dev,
        columns=columns,
        left_out=plan.left_out,
        windows=plan.windows,
        seconds=seconds,
        tokens_per_second=_share(tokens_now or 0, seconds),
        is_done_before=tokens_now is None,
        sides=tuple(_side_summary(shards, name) for name in sides) if is_whole else (),
        pairs=tuple(_pair_summary(shards, one, pairs[one.alignment], is_whole=is_whole) for one in asked),
    )


def _side_summary(shards: Path, name: str) -> SideSummary:
    folder = shards / "sides" / name
    counts = SideCounts.total(notes_of(folder, Plan.load(folder)))
    return SideSummary(
        name,
        dict(sorted(counts.statuses.items())),
        dict(sorted(counts.cut.items())),
        counts.tokens,
        counts.response_tokens,
    )


def _pair_summary(shards: Path, asked: AskedPair, pair: Pair, *, is_whole: bool) -> PairSummary:
    """The pair's counts, left and right turned to student and teacher."""
    folder = shards / "alignments" / pair.name
    counts = PairCounts.total(notes_of(folder, Plan.load(folder))) if is_whole else PairCounts()
    student_is_left = (asked.student_side, asked.teacher_side) == (pair.left, pair.right)
    of_left = {
        "tokens": (counts.left_tokens, counts.right_tokens),
        "shared": (counts.left_shared, counts.right_shared),
        "strings": (pair.num_left, pair.num_right),
        "first_piece": (counts.left_first_piece, counts.right_first_piece),
        "byte_prefix": (counts.left_byte_prefix, counts.right_byte_prefix),
    }
    student = {name: both[0 if student_is_left else 1] for name, both in of_left.items()}
    teacher = {name: both[1 if student_is_left else 0] for name, both in of_left.items()}
    sizes = {size if student_is_left else ":".join(reversed(size.split(":"))): n for size, n in counts.sizes.items()}
    return PairSummary(
        alignment=pair.name,
        teacher=asked.teacher_side,
        student=asked.student_side,
        shared_ids=len(pair.vocabulary),
        student_ids_shared=_share(len(pair.vocabulary), student["strings"]),
        teacher_ids_shared=_share(len(pair.vocabulary), teacher["strings"]),
        statuses=dict(sorted(counts.statuses.items())),
        num_spans=counts.spans,
        merged_spans=counts.merged_spans,
        without_spans=counts.without_spans,
        student_tokens=student["tokens"],
        teacher_tokens=teacher["tokens"],
        student_tokens_per_span=_share(student["tokens"], counts.spans),
        teacher_tokens_per_span=_share(teacher["tokens"], counts.spans),
        sizes={size: _share(count, counts.spans) for size, count in sorted(sizes.items(), key=lambda x: (-x[1], x[0]))},
        covered=_share(counts.covered, counts.characters),
        student_tokens_shared=_share(student["shared"], student["tokens"]),
        teacher_tokens_shared=_share(teacher["shared"], teacher["tokens"]),
        first_piece_right=_share(teacher["first_piece"], counts.spans),
        byte_prefix_right=_share(teacher["byte_prefix"], counts.spans),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0

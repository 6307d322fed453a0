"""What a teacher says of the tokens its students read next: whether a map of ids can teach, before any training.

At the start of every span both tokenizers have read the same text. There the student's true next token is an event for
the teacher: the sum over its ids that go to that token, by equal bytes or by the map of first pieces (docs/method.md,
section 6). A teacher that gives those tokens less probability than the student does itself has nothing to teach
through that map, however good it is at its own tokens, which stand beside for comparison.

Legend: S starts of spans, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sra_data.models.output_head import OutputHead
from sra_data.shards.images import IMAGES
from sra_data.shards.pairs import cached_starts
from sra_data.shards.schema import response_positions
from sra_data.shards.store import FolderReader, Manifest, PairReader, ShardSet, has_file, sides_of
from sra_data.stages.sampling import sample_rows

EXAMPLES = 16
MOST_STARTS = 512  # the head of a large vocabulary costs more than it tells
ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Heard:
    """Of one map: the share of the student's next tokens that some id of the teacher goes to, and log2 of the
    teacher's probability for those, in the mean; None where there is none."""

    share: float
    log2_prob: float | None


@dataclass(frozen=True)
class Reach:
    """Of one student's side.

    Attributes:
        student: Name of the side.
        starts: S, over sampled examples.
        own: Mean log2 probability of the teacher's own next token there.
        equal_bytes: By ids that stand for the same bytes; `first_piece` by the map of first pieces.
        rows: The examples: a student asked about the same ones can be held against it.
    """

    student: str
    starts: int
    own: float
    equal_bytes: Heard
    first_piece: Heard
    rows: tuple[int, ...] = ()

    @property
    def line(self) -> str:
        """For people."""
        return (
            f"the next token of {self.student} at {self.starts:,} sampled boundaries: mean log2 p "
            f"{_shown(self.first_piece)} by first piece, {_shown(self.equal_bytes)} by equal bytes "
            f"(the teacher's own next token: {self.own:.2f})"
        )


def _shown(heard: Heard) -> str:
    if heard.log2_prob is None:
        return "unknown"
    return f"{heard.log2_prob:.2f} for {heard.share:.1%} of them"


def measure_reach(shards: ShardSet, teacher: str, head: OutputHead) -> list[dict[str, Any]]:
    """Of every other side that is aligned with the teacher's: `Reach` as plain values.

    Args:
        shards: The folder, in which the teacher's pages are sealed.
        teacher: Its name; its pages are by token and hold the last layer's states.
        head: Its output head.
    """
    pages, side = shards.teacher(teacher), shards.side_of_teacher(teacher)
    found = []
    for name in shards.manifest.names("alignments"):
        sealed = (shards.manifest.section(f"alignments/{name}") or {}).get("root")
        others = set(sides_of(name)) - {side}
        has_maps = has_file(shards.path / "alignments" / name, IMAGES)
        if side not in sides_of(name) or not others or sealed is None or not has_maps:
            continue
        (student,) = others
        pair = shards.pair(student=student, teacher=side, name=name)
        reach = _of_pair(pair, pages, shards.side(side), shards.side(student), head)
        if reach is not None:
            found.append(asdict(reach))
    return found


def reach_from(values: dict[str, Any]) -> Reach:
    """The inverse of `asdict`; caches made before rows were recorded have none."""
    maps = {name: Heard(**values[name]) for name in ("equal_bytes", "first_piece")}
    return Reach(**{**values, **maps, "rows": tuple(values.get("rows", ()))})


def can_measure(manifest: Manifest, section: str, num_layers: int) -> bool:
    """Whether the pages of a section are by token and hold the last layer's states."""
    facts = manifest.section(section) or {}
    layers = facts.get("layers") or []
    return facts.get("granularity") == "token" and facts.get("hidden_dtype") != "none" and num_layers in layers


def _of_pair(
    pair: PairReader, pages: FolderReader, teacher: FolderReader, student: FolderReader, head: OutputHead
) -> Reach | None:
    """None where no sampled example has a span."""
    failed = set(pages.facts.get("failed_examples", ()))
    rows = [
        int(row) for row in sample_rows(pair.index.num_spans, EXAMPLES) if pages.index.id_of(int(row)) not in failed
    ]
    vocabulary, images = pair.vocabulary(), pair.images()
    maps = (vocabulary.student_of_teacher, images.first_piece)
    sums = [_Sums(), _Sums()]
    own, count, read = 0.0, 0, []
    layer = max(pages.schema.layers)
    columns = zip(
        rows,
        pair.read(rows),
        pages.read(rows, [f"hidden.{layer}"]),
        teacher.read(rows, ["ids", "response_spans"]),
        student.read(rows, ["ids"]),
        strict=True,
    )  # of each sampled row
    for row, spans, page, theirs, ours in columns:
        starts, there = spans.teacher_spans[:, 0].astype(np.int64), cached_starts(spans, theirs.response_spans)
        places = np.searchsorted(response_positions(theirs.response_spans), starts[there] - 1)
        states = page.hidden[layer].float32()[places]
        read.append(row)
        next_ours, next_theirs = ours.ids[spans.student_spans[there, 0]], theirs.ids[starts[there]]
        for log_probs, place in _distributions(head, states):
            here = slice(place, place + len(log_probs))
            own += float(log_probs[np.arange(len(log_probs)), next_theirs[here]].sum())
            for one, mapped in zip(sums, maps, strict=True):
                one.add(log_probs, next_ours[here], mapped)
        count += int(there.sum())
        if count >= MOST_STARTS:
            break
    if not count:
        return None
    equal_bytes, first_piece = (one.heard(count) for one in sums)
    return Reach(pair.student, count, own / count / math.log(2), equal_bytes, first_piece, tuple(read))


class _Sums:
    """Log-probabilities of the student's tokens, added up."""

    def __init__(self) -> None:
        self.total, self.known = 0.0, 0

    def add(self, log_probs: NDArray[np.float64], tokens: NDArray[np.int32], mapped: NDArray[np.int32]) -> None:
        """Rows [S, V] of the teacher; the student's tokens [S]; where the teacher's ids go [V']."""
        width = min(len(mapped), log_probs.shape[1])
        hits = mapped[None, :width] == tokens[:, None]
        with np.errstate(divide="ignore"):
            found = np.log(np.where(hits, np.exp(log_probs[:, :width]), 0.0).sum(1))
        known = hits.any(1)
        self.total += float(found[known].sum())
        self.known += int(known.sum())

    def heard(self, count: int) -> Heard:
        """Of `count` tokens in all."""
        return Heard(self.known / count, self.total / self.known / math.log(2) if self.known else None)


def _distributions(head: OutputHead, states: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.float64], int]]:
    """Log-probabilities of states [S, D], some rows [., V] at a time, and the number of the first of them."""
    for start in range(0, len(states), ROWS_AT_ONCE):
        chunk = torch.from_numpy(np.ascontiguousarray(states[start : start + ROWS_AT_ONCE])).to(head.weight.device)
        yield head.logits(chunk.to(head.weight.dtype)).double().log_softmax(dim=-1).cpu().numpy(), start

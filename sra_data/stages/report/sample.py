"""What a report reads of a teacher's pages: a sample of examples, added at once to histograms of a fixed size."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sra_data.shards.reader import FolderReader
from sra_data.shards.schema import OK, TeacherRow
from sra_data.shards.store import PairReader, ShardSet
from sra_data.stages.sampling import sample_rows
from sra_data.terminal import Reporter

Floats = NDArray[np.float64]

ROWS_AT_ONCE = 64
TAIL_EDGES = np.logspace(-8, 0, 161)  # tail mass of a position
PLACES = 20  # of a response, from its first span to its last
SHARES = np.linspace(0.0, 1.0, 51)  # of a response's spans, heaviest first


@dataclass
class PagesSample:
    """What was read of the teacher's pages.

    Attributes:
        num_examples, num_positions: read.
        tails: temperature -> positions by tail mass, counts between TAIL_EDGES.
        losses: example id -> (split, nats a token).
        salience: [PLACES] sums of a span's share of its response's mass, times the number of spans; `placed` spans.
        concentration: [len(SHARES)] sums over `concentrated` examples: mass of the heaviest share of spans.
        response_mass: sum over `attended` examples of the attention that falls on cached positions.
    """

    num_examples: int = 0
    num_positions: int = 0
    tails: dict[float, NDArray[np.int64]] = field(default_factory=dict)
    losses: dict[str, tuple[str, float]] = field(default_factory=dict)
    salience: Floats = field(default_factory=lambda: np.zeros(PLACES))
    placed: NDArray[np.int64] = field(default_factory=lambda: np.zeros(PLACES, np.int64))
    concentration: Floats = field(default_factory=lambda: np.zeros(len(SHARES)))
    concentrated: int = 0
    response_mass: float = 0.0
    attended: int = 0


def read_sample(
    shards: ShardSet, reader: FolderReader, aligned: PairReader | None, sample: int, reporter: Reporter
) -> PagesSample:
    """Read the light columns of at most `sample` examples, spread evenly over the corpus.

    Args:
        shards: with the corpus, whose splits are told apart.
        reader: of the pages.
        aligned: whose spans attention is summed over; None for none.
        sample: how many.
        reporter: shows the examples as they are read.
    """
    found = PagesSample()
    failed = set(reader.facts.get("failed_examples", []))
    rows = [row for row in sample_rows(reader.index.num_positions, sample) if reader.index.id_of(row) not in failed]
    is_dev = shards.corpus.index.in_split("dev")
    columns, layer = _columns(reader)
    with reporter.task(f"report {reader.folder.name}", total=len(rows), unit="examples") as task:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            chosen = rows[start : start + ROWS_AT_ONCE]
            said: list[TeacherRow] = reader.read(chosen, columns)
            spans = [None] * len(chosen) if layer is None or aligned is None else aligned.read(chosen)
            for row, teacher, pair in zip(chosen, said, spans, strict=True):
                _add_log_probs(found, teacher, reader.facts, "dev" if is_dev[row] else "train")
                if layer is not None and pair is not None and pair.status == OK:
                    _add_attention(found, teacher, layer, pair.teacher_spans)
            found.num_examples += len(chosen)
            found.num_positions += int(reader.index.num_positions[chosen].sum())
            task.advance(len(chosen))
    return found


def _columns(reader: FolderReader) -> tuple[list[str], int | None]:
    """The light columns there are, and the last layer with attention."""
    names = [column.name for column in reader.schema.columns]
    layers = sorted(int(name.removeprefix("attention.")) for name in names if name.startswith("attention."))
    wanted: list[str] = [name for name in ("log_tails", "next_log_prob") if name in names]
    if layers:
        wanted.append(f"attention.{layers[-1]}")
    if layers and reader.schema.granularity == "token":
        wanted.append("positions")
    return wanted, layers[-1] if layers else None


def _add_log_probs(found: PagesSample, row: TeacherRow, facts: dict[str, Any], split: str) -> None:
    if row.log_tails is not None:
        for temperature, tails in zip(facts["temperatures"], row.log_tails, strict=True):
            mass = np.clip(np.exp(tails.astype(np.float64)), TAIL_EDGES[0], TAIL_EDGES[-1])
            before = found.tails.get(temperature, np.zeros(len(TAIL_EDGES) - 1, np.int64))
            found.tails[temperature] = before + np.histogram(mass, TAIL_EDGES)[0]
    if row.next_log_prob is not None:
        known = row.next_log_prob[~np.isnan(row.next_log_prob)]
        if len(known):
            found.losses[row.id] = (split, float(-known.astype(np.float64).mean()))


def _add_attention(found: PagesSample, row: TeacherRow, layer: int, spans: NDArray[np.int32]) -> None:
    attention = row.attention[layer].astype(np.float64)
    found.response_mass += float(attention.sum())
    found.attended += 1
    mass = attention if row.positions is None else mass_of_spans(attention, row.positions, spans)
    if len(mass) != len(spans) or len(mass) < 2 or not mass.sum() > 0:
        return
    share = mass / mass.sum()
    place = (np.arange(len(share)) * PLACES) // len(share)
    found.salience += np.bincount(place, share * len(share), minlength=PLACES)
    found.placed += np.bincount(place, minlength=PLACES)
    found.concentration += concentration(share)
    found.concentrated += 1


def mass_of_spans(attention: Floats, positions: NDArray[np.int32], spans: NDArray[np.int32]) -> Floats:
    """[K] attention summed over each span.

    Args:
        attention: [P], of the cached positions.
        positions: [P], their token indices, ascending.
        spans: [K, 2], half-open, in tokens.
    """
    sums = np.concatenate([[0.0], np.cumsum(attention)])
    first, stop = np.searchsorted(positions, spans[:, 0]), np.searchsorted(positions, spans[:, 1])
    return sums[stop] - sums[first]


def concentration(share: Floats) -> Floats:
    """[len(SHARES)] mass held by the heaviest share of the spans, whose shares [K] add up to 1."""
    sums = np.concatenate([[0.0], np.cumsum(np.sort(share)[::-1])])
    return np.interp(SHARES, np.arange(len(sums)) / len(share), sums)

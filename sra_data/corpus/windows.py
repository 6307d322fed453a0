"""Long texts as windows: rows of the corpus, each of which every side that was asked for reads whole.

A window holds a stretch of a response, which is its own response, and before it, as its prompt, the row's prompt and
the last tokens of the stretch before (the overlap): context, which is not learnt twice. So the stretches of a text are
its response, every character once. Only what every side counts in tokens can say where a window has to end, so windows
are cut by the sides of the call that begins a corpus; what is kept of them is characters, and from then on they are the
corpus, whoever reads it.

A stretch ends where a token of every side ends: behind a line or before white space where there is such a place in its
last eighth. Every window is cut again by itself, as the sides will read it, before it is believed: one that turns out
too long is made shorter, and one in which a token reaches from the overlap into the stretch goes without overlap.

Rows with a prompt keep it, whole, in every window; where it alone fills more than half of a side's length the row is
left out. A chat is no text to cut: it stays a row, and what is too long of it is truncated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sra_data.corpus.examples import Row
from sra_data.corpus.tokenization import SideTokenizer, TokenizedBatch

WINDOWS_AT_ONCE = 64
LARGEST_MARGIN = 4  # tokens that windows of a text do without because those before turned out too long
LARGEST_PROMPT = 2  # a prompt fills at most the half of what a side takes,
LARGEST_OVERLAP = 4  # an overlap a quarter,
LAST_PLACES = 8  # and a better place to end at is looked for in the last eighth of a stretch
NO_LIMIT = 1 << 40
OK = "ok"


@dataclass(frozen=True, slots=True)
class Window:
    """Characters of a response: [start, stop) is learnt, [context, start) stands before it."""

    context: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Cuts:
    """The windows of a row; none: it is left out.

    Attributes:
        length: Characters of its response.
        windows: In order.
    """

    length: int
    windows: tuple[Window, ...]

    def to_json(self) -> list[Any]:
        """Plain numbers, for a plan on disk."""
        return [self.length, [[one.context, one.start, one.stop] for one in self.windows]]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> Cuts:
        """The inverse of `to_json`."""
        return cls(int(value[0]), tuple(Window(*map(int, one)) for one in value[1]))


def window_id(row_id: str, window: Window) -> str:
    """Which characters of which row's response: ``17[4096:8192]``."""
    return f"{row_id}[{window.start}:{window.stop}]"


def window_rows(row: Row, cuts: Cuts) -> list[Row]:
    """The windows of a row, as rows."""
    prompt, response = row.prompt or "", row.response or ""
    return [
        replace(
            row,
            id=window_id(row.id, one),
            prompt=prompt + response[one.context : one.start],
            response=response[one.start : one.stop],
            goes_on=one.stop < cuts.length,
        )
        for one in cuts.windows
    ]


class Reads(Protocol):
    """One side: a tokenizer, and how many tokens of an example its model takes."""

    @property
    def tokenizer(self) -> SideTokenizer:
        """It."""

    @property
    def max_length(self) -> int | None:
        """None for no limit."""


class Windower:
    """Cuts what is too long for one of some sides."""

    def __init__(self, sides: Sequence[Reads], overlap: int) -> None:
        """``overlap``: the most tokens of context before a stretch, on every side."""
        self._sides = [side.tokenizer for side in sides]
        self._limits = [NO_LIMIT if side.max_length is None else side.max_length for side in sides]
        self._overlap = overlap

    def __call__(self, row: Row) -> Cuts | None:
        """The windows of a row; None where it needs none (or is a chat)."""
        if row.messages is not None:
            return None
        prompt, response = row.prompt or "", row.response or ""
        size = len((prompt + response).encode("utf-8", "surrogatepass"))
        frames = [len(side.prefix_ids) + len(side.suffix_ids) + 2 for side in self._sides]
        if all(size + frame <= limit for frame, limit in zip(frames, self._limits, strict=True)):
            return None  # a token is at least a byte
        batches = self._encode([(prompt, response)], row)
        if any(batch.status != [OK] for batch in batches):
            return None  # its tokens cannot be located: whoever cuts the row says so
        whole = [_WholeText.of(batch, len(prompt), limit) for batch, limit in zip(batches, self._limits, strict=True)]
        if not any(one.is_too_long for one in whole):
            return None
        if any(one.num_prompt > one.room // LARGEST_PROMPT for one in whole):
            return Cuts(len(response), ())
        return Cuts(len(response), tuple(_Cutting(self, row, whole).windows()))

    def fits(self, row: Row, windows: Sequence[Window]) -> list[tuple[int, bool]]:
        """For each window the tokens that are too many, and whether one reaches into its stretch from the overlap."""
        prompt, response = row.prompt or "", row.response or ""
        texts = [(prompt + response[one.context : one.start], response[one.start : one.stop]) for one in windows]
        excess = np.zeros(len(windows), dtype=np.int64)
        straddles = np.zeros(len(windows), dtype=bool)
        for batch, limit in zip(self._encode(texts, row), self._limits, strict=True):
            np.maximum(excess, batch.ids.lengths - limit, out=excess)
            for index, (before, _) in enumerate(texts):
                start, stop = batch.response_spans[index][0].tolist()
                straddles[index] |= stop > start and batch.offsets.starts[index][start] < len(before)
        has_context = np.array([one.context < one.start for one in windows])
        return list(zip(excess.tolist(), (straddles & has_context).tolist(), strict=True))

    def context_of(self, room: int) -> int:
        """The most tokens of overlap on a side with so much room."""
        return min(self._overlap, room // LARGEST_OVERLAP)

    def _encode(self, texts: Sequence[tuple[str, str]], row: Row) -> list[TokenizedBatch]:
        """Prompts and responses by every side, however long they are."""
        ranges = [[(len(prompt), len(prompt) + len(response))] for prompt, response in texts]
        return [
            side.encode(
                [prompt + response for prompt, response in texts],
                response_ranges=ranges,
                is_chat=False,
                names=[row.where] * len(texts),
                skip_unlocatable=True,
            )
            for side in self._sides
        ]


@dataclass(frozen=True, eq=False)
class _WholeText:
    """A row as one side reads it, uncut.

    Attributes:
        ends: [N] where each of its tokens ends, in characters of the response (those of the prompt at 0 or below).
        closing: Where a token closes.
        num_prompt: Tokens that begin in the prompt.
        room: Tokens that the side takes of an example beside what it puts around it.
        is_too_long: Whether this is more.
    """

    ends: NDArray[np.int64]
    closing: NDArray[np.int64]
    num_prompt: int
    room: int
    is_too_long: bool

    @classmethod
    def of(cls, batch: TokenizedBatch, border: int, limit: int) -> _WholeText:
        """From a batch of that one row; ``border`` is where its response begins."""
        is_text = ~batch.offsets.is_special[0]
        starts, ends = (one[0][is_text].astype(np.int64) - border for one in (batch.offsets.starts, batch.offsets.ends))
        room = limit - (len(is_text) - len(ends))
        closing = ends[batch.offsets.closes[0][is_text]]
        return cls(ends, closing, int((starts < 0).sum()), room, len(ends) > room)

    def count(self, place: int) -> int:
        """Tokens that end at or before a character of the response."""
        return int(np.searchsorted(self.ends, place, side="right"))

    def furthest(self, count: int) -> int:
        """The last character up to which there are no more than so many tokens."""
        return int(self.ends[min(count, len(self.ends)) - 1]) if count > 0 and len(self.ends) else 0


class _Cutting:
    """One row being cut."""

    def __init__(self, windower: Windower, row: Row, whole: Sequence[_WholeText]) -> None:
        self._windower, self._row, self._whole = windower, row, whole
        self._text = row.response or ""
        common = whole[0].closing
        for one in whole[1:]:
            common = np.intersect1d(common, one.closing)
        self._places = common[(common > 0) & (common < len(self._text))]
        self._spare: dict[int, int] = {}  # where a stretch starts -> tokens it has to do without
        self._bare: set[int] = set()  # stretches without overlap
        self._margin = 1  # cut by itself a text may have a token more
        self._at_once = WINDOWS_AT_ONCE

    def windows(self) -> list[Window]:
        """From the beginning to the end: some at once are laid out, and kept up to the first that does not fit."""
        found: list[Window] = []
        while not found or found[-1].stop < len(self._text):
            laid = self._laid_out(found[-1].stop if found else 0)
            fitting = self._fitting(laid)
            found += laid[:fitting]
            grown = 2 * self._at_once if fitting == len(laid) else self._at_once // 4
            self._at_once = min(max(grown, 1), WINDOWS_AT_ONCE)
        return found

    def _fitting(self, laid: Sequence[Window]) -> int:
        """How many of these, from the first, are as they should be; the next one will be laid out otherwise."""
        for index, (excess, straddles) in enumerate(self._windower.fits(self._row, laid)):
            start, stop = laid[index].start, laid[index].stop
            if straddles:
                self._bare.add(start)
                return index
            if excess > 0 and stop - start > 1:
                self._spare[start] = self._spare.get(start, 0) + excess
                self._margin = max(self._margin, min(excess, LARGEST_MARGIN))
                return index
        return len(laid)

    def _laid_out(self, start: int) -> list[Window]:
        """Windows from a place on, by the tokens of the whole text."""
        laid: list[Window] = []
        while start < len(self._text) and len(laid) < self._at_once:
            context = self._context(start)
            laid.append(Window(context, start, self._stop(context, start)))
            start = laid[-1].stop
        return laid

    def _context(self, start: int) -> int:
        """Where the overlap before a stretch begins: at a shared boundary, with no more tokens than it may have."""
        if start in self._bare:
            return start
        least = max(one.furthest(one.count(start) - self._windower.context_of(one.room)) for one in self._whole)
        places = self._places[np.searchsorted(self._places, least) :]
        return min(int(places[0]), start) if least > 0 and len(places) else min(max(least, 0), start)

    def _stop(self, context: int, start: int) -> int:
        """Where a stretch ends: the best of the last places up to which there is room."""
        spare = self._margin + self._spare.get(start, 0)
        before = [one.count(context) + one.room - one.num_prompt - spare for one in self._whole]
        furthest = min(one.furthest(count) for one, count in zip(self._whole, before, strict=True))
        if all(len(one.ends) <= count for one, count in zip(self._whole, before, strict=True)):
            return len(self._text)
        first, last = np.searchsorted(self._places, [start, furthest], side="right").tolist()
        if first >= last:  # no place that all sides share
            return min(max(furthest, start + 1), len(self._text))
        furthest = int(self._places[last - 1])
        nearest = furthest - (furthest - start) // LAST_PLACES
        first = max(first, int(np.searchsorted(self._places, nearest)))
        return max(self._places[first:last].tolist(), key=lambda place: (self._rank(place), place))

    def _rank(self, place: int) -> int:
        """How good a place is to end at: behind a line, before white space, any other."""
        before, behind = self._text[place - 1], self._text[place]
        if before == "\n" and behind != "\n":
            return 2
        return int(behind.isspace() and not before.isspace())

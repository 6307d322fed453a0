"""From a text's tokens to the example a model reads: beginning, end, maximum length, responses and labels.

Overlong examples follow one of four policies:
    skip             left out, with the reason as its status
    truncate-prompt  tokens go from the left of the prompt; if the responses alone are too long, from the right as well
    truncate         tokens go from the right
    window           likewise: what is still too long was no text to be cut into windows (windows.py), or was cut into
                     them for longer sides
An example that keeps no response token is left out. The end-of-sequence token stands only where nothing was cut from
the right. Ends keep counting in the whole text, so that both sides' boundaries still meet.

B = examples, R = responses of an example, N = tokens.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sra_data.choices import Overlong
from sra_data.corpus.chat import NOT_CLOSED
from sra_data.corpus.token_offsets import TextTokens
from sra_data.spans.alignment import TokenOffsets
from sra_data.spans.ragged import Ragged, flat_ranges, splits_of

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Frame:
    """What a tokenizer puts around a text.

    Attributes:
        prefix: Ids before it (the beginning token).
        suffix: Ids behind it, as its own post-processing has them.
        eos_id: The end-of-sequence token, put behind the suffix unless that holds it; None without one.
        bos_id: The beginning token a chat template may have written itself; None without one.
        chat_prefix: Ids before a chat: the prefix where the template is not the tokenizer's own, which writes its own.
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    eos_id: int | None
    bos_id: int | None
    chat_prefix: tuple[int, ...] = ()

    @property
    def tail(self) -> tuple[int, ...]:
        """Everything behind a text that was not cut."""
        if self.eos_id is None or self.eos_id in self.suffix:
            return self.suffix
        return (*self.suffix, self.eos_id)

    @property
    def num_labelled(self) -> int:
        """How many tokens of the tail are labels: up to the end-of-sequence token."""
        return self.tail.index(self.eos_id) + 1 if self.eos_id is not None else 0


@dataclass(frozen=True, eq=False)
class FittedBatch:
    """Examples as one model reads them; see ``TokenizedBatch`` for the meaning of the fields."""

    ids: Ragged
    offsets: TokenOffsets
    response_spans: Ragged
    label_spans: Ragged
    status: list[str]
    counts: Counter[str]


@dataclass(frozen=True, eq=False)
class _Responses:
    """Token ranges of all responses of the batch in the tokens of the texts.

    Attributes:
        splits: [B + 1] responses of each example.
        rows: [sum R] the example of each.
        starts: [sum R] first token.
        stops: [sum R] one past the last; equal to the start where the response has no token.
        label_stops: [sum R] one past what closes it in the text, where something does.
        is_open: [sum R] the text ends with the response, nothing closes it.
        is_ended: [sum R] something closes it in the text, or it is not at its end and nothing should.
    """

    splits: Index
    rows: Index
    starts: Index
    stops: Index
    label_stops: Index
    is_open: NDArray[np.bool_]
    is_ended: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Cuts:
    """Which tokens of the texts stay.

    Attributes:
        keep: [N] bool.
        kept: [N + 1] how many tokens before each stay.
        end_cut: [B] bool, the example lost its end.
        start_cut: [B] bool, the example lost tokens of its prompt.
        skipped: [B] bool, nothing stays.
    """

    keep: NDArray[np.bool_]
    kept: Index
    end_cut: NDArray[np.bool_]
    start_cut: NDArray[np.bool_]
    skipped: NDArray[np.bool_]


def fit(
    tokens: TextTokens,
    *,
    response_ranges: Ragged,
    closings: Ragged,
    frame: Frame,
    is_chat: bool,
    max_length: int | None,
    overlong: Overlong,
) -> FittedBatch:
    """Put beginning and end around the tokens of every text and make them fit.

    Args:
        tokens: [B] rows.
        response_ranges: [B] rows [R, 2], characters of the responses.
        closings: [B] rows [R, 2], where what closes each ends, and whether something does (chat.py).
        frame: What stands around a text that is no chat; behind a response that goes on nothing does.
        is_chat: The text is a rendered chat: nothing is put around it, but for the frame's prefix of chats and an
            end-of-sequence token where it ends with a response that nothing closes.
        max_length: The most tokens of an example; None for no limit.
        overlong: What happens beyond it.
    """
    responses = _responses(tokens, response_ranges, closings)
    num_examples = len(tokens.ids)
    prefix, tail = frame.prefix, frame.tail
    has_tail, num_labelled = np.full(num_examples, bool(tail)), frame.num_labelled
    has_tail[responses.rows[responses.is_ended]] = False  # one that goes on is not at its end
    if is_chat:
        prefix, tail = frame.chat_prefix, () if frame.eos_id is None else (frame.eos_id,)
        has_tail[:], num_labelled = False, len(tail)
        has_tail[responses.rows[responses.is_open]] = bool(tail)

    if max_length is None:
        cuts = _no_cuts(tokens)
    else:
        room = max_length - len(prefix) - len(tail) * has_tail
        cuts = _cuts(tokens, responses, room, len(tail) * has_tail, overlong, frame.bos_id)
    has_tail &= ~(cuts.end_cut | cuts.skipped)
    ids, offsets = _assemble(tokens, cuts, prefix, tail, has_tail)
    response_spans, label_spans = _fitted_spans(tokens, cuts, responses, len(prefix), num_labelled * has_tail)
    counts = Counter(
        overlong_skipped=int(cuts.skipped.sum()),
        overlong_truncated=int((cuts.end_cut & ~cuts.skipped).sum()),
        overlong_prompt_truncated=int((cuts.start_cut & ~cuts.skipped).sum()),
        ends_not_labelled=_without_end(responses, cuts, bool(num_labelled)),
    )
    return FittedBatch(
        ids=ids,
        offsets=offsets,
        response_spans=response_spans,
        label_spans=label_spans,
        status=["skipped:overlong" if skip else "ok" for skip in cuts.skipped.tolist()],
        counts=+counts,  # only what happened
    )


def _without_end(responses: _Responses, cuts: _Cuts, has_end: bool) -> int:
    """Responses after which no token is labelled that would end them, though they were not cut."""
    is_lost = (cuts.end_cut | cuts.skipped)[responses.rows]
    return int((~(responses.is_ended | (responses.is_open & has_end)) & ~is_lost).sum())


def _responses(tokens: TextTokens, ranges: Ragged, closings: Ragged) -> _Responses:
    """Tokens of each response: not special, ending behind its first character and starting before its end."""
    rows = ranges.rows
    begin, end = (ranges.values[:, column].astype(np.int64) for column in (0, 1))
    stride = 2 + max(int(tokens.ends.values.max(initial=0)), int(closings.values[:, 0].max(initial=0)))
    base = np.repeat(np.arange(len(tokens.ids), dtype=np.int64) * stride, tokens.ids.lengths)
    first = tokens.ids.splits[rows]
    starts = np.searchsorted(tokens.ends.values + base, rows * stride + begin, side="right") - first
    stops = np.searchsorted(tokens.starts.values + base, rows * stride + end, side="left") - first
    stops = np.maximum(stops, starts)
    label_end, how = (closings.values[:, column].astype(np.int64) for column in (0, 1))
    label_stops = np.searchsorted(tokens.starts.values + base, rows * stride + label_end, side="left") - first
    label_stops = np.maximum(label_stops, stops)
    is_last = (label_stops == tokens.ids.lengths[rows]) & (how == NOT_CLOSED)
    last_of_row = ranges.splits[rows + 1] - 1 == np.arange(len(rows))
    return _Responses(ranges.splits, rows, starts, stops, label_stops, is_last & last_of_row, how != NOT_CLOSED)


def _no_cuts(tokens: TextTokens) -> _Cuts:
    num_tokens = len(tokens.ids.values)
    nothing = np.zeros(len(tokens.ids), dtype=bool)
    return _Cuts(np.ones(num_tokens, dtype=bool), np.arange(num_tokens + 1), nothing, nothing, nothing)


def _cuts(
    tokens: TextTokens, responses: _Responses, room: Index, num_tail: Index, overlong: Overlong, bos_id: int | None
) -> _Cuts:
    """Decide what goes where the text has more tokens than ``room`` [B] beside prefix and tail.

    ``num_tail`` [B] is the length of each example's tail, which goes first where the end is cut.
    """
    cuts = _no_cuts(tokens)
    keep, splits, lengths = cuts.keep, tokens.ids.splits, tokens.ids.lengths
    over = np.flatnonzero(lengths > room)
    if not len(over):
        return cuts
    end_cut, start_cut = np.zeros((2, len(lengths)), dtype=bool)
    for row in over.tolist():
        length, excess = int(lengths[row]), int(lengths[row] - room[row])
        if overlong == "truncate-prompt":
            dropped = _drop_prompt(row, excess, keep, tokens, responses, bos_id)
            start_cut[row] = dropped > 0
            excess -= dropped
        if excess > 0:
            end_cut[row] = True
            # Without its tail the example is shorter already; only what is still too much goes.
            excess = length if overlong == "skip" else min(max(excess - int(num_tail[row]), 0), length)
            keep[splits[row + 1] - excess : splits[row + 1]] = False

    skipped = (end_cut | start_cut) & _without_response(_kept(keep), splits, responses)
    keep[flat_ranges(splits[:-1][skipped], lengths[skipped])] = False
    return _Cuts(keep, _kept(keep), end_cut, start_cut, skipped)


def _kept(keep: NDArray[np.bool_]) -> Index:
    return np.concatenate(([0], np.cumsum(keep)))


def _drop_prompt(
    row: int,
    excess: int,
    keep: NDArray[np.bool_],
    tokens: TextTokens,
    responses: _Responses,
    bos_id: int | None,
) -> int:
    """Unmark up to ``excess`` tokens of one example, from the left of what stands before its first response.

    A beginning token that a chat template wrote itself stays. Changes ``keep`` [N]; returns how many tokens went.
    """
    start = int(tokens.ids.splits[row])
    own = responses.starts[responses.splits[row] : responses.splits[row + 1]]
    prompt = int(own[0]) if len(own) else 0
    lead = int(prompt > 0 and tokens.is_special.values[start] and tokens.ids.values[start] == bos_id)
    dropped = min(excess, prompt - lead)
    keep[start + lead : start + lead + dropped] = False
    return dropped


def _without_response(kept: Index, splits: Index, responses: _Responses) -> NDArray[np.bool_]:
    """[B] examples that have no token left, or none of a response though they had one."""
    first = splits[responses.rows]
    left = kept[first + responses.stops] - kept[first + responses.starts]
    before = np.bincount(responses.rows, responses.stops - responses.starts, len(splits) - 1)
    after = np.bincount(responses.rows, left, len(splits) - 1)
    return (np.diff(kept[splits]) == 0) | ((before > 0) & (after == 0))


def _assemble(
    tokens: TextTokens,
    cuts: _Cuts,
    prefix: tuple[int, ...],
    tail: tuple[int, ...],
    has_tail: NDArray[np.bool_],
) -> tuple[Ragged, TokenOffsets]:
    """Ids and offsets of the examples: prefix, the kept tokens, tail."""
    num_kept = np.diff(cuts.kept[tokens.ids.splits])
    num_prefix = np.where(cuts.skipped, 0, len(prefix))
    num_tail = len(tail) * has_tail
    splits = splits_of(num_prefix + num_kept + num_tail)
    places = flat_ranges(splits[:-1] + num_prefix, num_kept)
    chosen: slice | NDArray[np.bool_] = slice(None) if num_kept.sum() == len(cuts.keep) else cuts.keep

    ids, starts, ends = np.zeros((3, splits[-1]), dtype=np.int32)
    closes, is_special = np.zeros((2, splits[-1]), dtype=bool)
    is_special[:] = True
    for offset, token_id in enumerate(prefix):
        ids[splits[:-1][~cuts.skipped] + offset] = token_id
    for offset, token_id in enumerate(tail):
        ids[splits[1:][has_tail] - len(tail) + offset] = token_id
    ids[places] = tokens.ids.values[chosen]
    starts[places] = tokens.starts.values[chosen]
    ends[places] = tokens.ends.values[chosen]
    closes[places] = tokens.closes.values[chosen]
    is_special[places] = tokens.is_special.values[chosen]
    if tokens.is_special.values.any():  # a chat's own, which had the offsets of their strings
        starts[is_special] = ends[is_special] = 0
        closes[is_special] = False
    return Ragged(ids, splits), TokenOffsets(*(Ragged(values, splits) for values in (starts, ends, is_special, closes)))


def _fitted_spans(
    tokens: TextTokens, cuts: _Cuts, responses: _Responses, num_prefix: int, num_labelled: Index
) -> tuple[Ragged, Ragged]:
    """Response and label spans [sum R, 2] in the ids of the examples; (0, 0) for a response that was cut off.

    ``num_labelled`` [B] are the tokens of each example's tail that close an open response.
    """
    rows, first = responses.rows, tokens.ids.splits[responses.rows]
    starts, stops, label_stops = (
        cuts.kept[first + edges] - cuts.kept[first] + num_prefix
        for edges in (responses.starts, responses.stops, responses.label_stops)
    )
    label_stops = label_stops + np.where(responses.is_open, num_labelled[rows], 0)
    lost = cuts.skipped[rows] | (cuts.end_cut[rows] & (stops == starts))
    spans = np.stack([starts, stops], axis=1).astype(np.int32)
    labels = np.stack([starts, label_stops], axis=1).astype(np.int32)
    spans[lost] = labels[lost] = 0
    return Ragged(spans, responses.splits), Ragged(labels, responses.splits)

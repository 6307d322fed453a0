"""Two tokenizers compared by the edit distance of their pieces: a map of ids, and a path between two sequences.

Source: FuseLLM (arXiv 2401.10491), its token alignment by minimum edit distance. A piece is compared as the bytes it
stands for, one character a byte, as the byte-level alphabet writes it; an id that stands for none is the empty string.

    nearest_ids     every source id -> the target id whose string has the smallest distance; an equal one is at 0
    warped_pairs    a path of least total distance through two sequences of strings (dynamic time warping), of which
                    those steps are kept where one token of each side stands for one of the other's

The map is exact and not the all-pairs product it looks like: strings whose lengths differ by g have a distance of g or
more, so lengths are searched from the nearest on, and only while they can still be nearer than what was found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from sra_data.spans.pushforward import NO_IMAGE, lowest_ids
from sra_data.spans.vocabulary import Vocabulary

BLOCK = 2048  # source strings compared at once


def nearest_ids(*, source: Vocabulary, target: Vocabulary) -> NDArray[np.int32]:
    """The target's id of the smallest edit distance for every source id.

    Among equally near ones that of the nearest length, then the shorter, then the lowest id.

    Returns:
        [source's ids] int32, `NO_IMAGE` for ids that stand for no bytes (or where the target has no string at all).
    """
    lowest = lowest_ids(target)
    found = {piece: lowest[piece] for piece in lowest_ids(source) if piece in lowest}
    lacking = defaultdict(list)
    for piece in lowest_ids(source):
        if piece not in found:
            lacking[len(piece)].append(piece)
    by_length = _strings_by_length(lowest)
    for length, pieces in lacking.items() if by_length else ():
        for start in range(0, len(pieces), BLOCK):
            block = pieces[start : start + BLOCK]
            found |= zip(block, _nearest(block, length, by_length).tolist(), strict=True)
    images = [NO_IMAGE if piece is None else found.get(piece, NO_IMAGE) for piece in source.byte_strings]
    return np.array(images, dtype=np.int32)


def _strings_by_length(lowest: dict[bytes, int]) -> dict[int, tuple[list[str], NDArray[np.int32]]]:
    """Length -> strings and ids, by increasing id."""
    found: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for piece, token_id in sorted(lowest.items(), key=lambda pair: pair[1]):
        found[len(piece)].append((token_id, piece.decode("latin-1")))
    return {
        length: ([text for _, text in known], np.array([token_id for token_id, _ in known], dtype=np.int32))
        for length, known in found.items()
    }


def _nearest(
    pieces: Sequence[bytes], length: int, by_length: dict[int, tuple[list[str], NDArray[np.int32]]]
) -> NDArray[np.int32]:
    """[n] ids of the strings nearest to `pieces`, all of one length."""
    texts = [piece.decode("latin-1") for piece in pieces]
    best = np.full(len(texts), np.iinfo(np.int32).max, dtype=np.int32)
    ids = np.full(len(texts), NO_IMAGE, dtype=np.int32)
    for other in sorted(by_length, key=lambda one: (abs(one - length), one)):
        open_rows = np.flatnonzero(best > abs(other - length))  # the rest cannot get nearer any more
        if not len(open_rows):
            break
        strings, known = by_length[other]
        limit = int(min(best[open_rows].max() - 1, max(other, length)))
        distances = cdist(
            [texts[row] for row in open_rows],
            strings,
            scorer=Levenshtein.distance,
            score_cutoff=limit,
            dtype=np.int32,
            workers=-1,
        )
        at = distances.argmin(1)  # the first of equals: the lowest id
        nearest = distances[np.arange(len(at)), at]
        better = nearest < best[open_rows]
        best[open_rows[better]], ids[open_rows[better]] = nearest[better], known[at[better]]
    return ids


def warped_pairs(one: Sequence[bytes], other: Sequence[bytes]) -> NDArray[np.int64]:
    """Places [S, 2] that stand for each other alone on a path of least total edit distance, in order.

    A path goes from the first pair to the last by steps of one on either side or on both. Of equally good steps back
    the one on both sides is taken, then the one on the first. A place that the path passes with several of the other
    side's is no 1:1 place.
    """
    if not one or not other:
        return np.zeros((0, 2), np.int64)
    texts = [[piece.decode("latin-1") for piece in pieces] for pieces in (one, other)]
    costs = cdist(*texts, scorer=Levenshtein.distance, dtype=np.int32).astype(np.int64)
    path = _path(_totals(costs))
    alone = np.bincount(path[:, 0], minlength=len(one))[path[:, 0]] == 1
    alone &= np.bincount(path[:, 1], minlength=len(other))[path[:, 1]] == 1
    return path[alone]


def _totals(costs: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n, m] the least total of a path that ends at each pair.

    Within a row, total_j = cost_j + min(above_j, total_(j-1)) is a running minimum once the row's own costs are taken
    off: total_j - sum_j = min over i <= j of (above_i - sum_(i-1)).
    """
    totals = np.empty_like(costs)
    totals[0] = np.cumsum(costs[0])
    for row in range(1, len(costs)):
        above = totals[row - 1].copy()
        np.minimum(above[1:], totals[row - 1, :-1], out=above[1:])
        sums = np.cumsum(costs[row])
        totals[row] = sums + np.minimum.accumulate(above - (sums - costs[row]))
    return totals


def _path(totals: NDArray[np.int64]) -> NDArray[np.int64]:
    """[L, 2] the pairs of a best path, in order."""
    row, column = totals.shape[0] - 1, totals.shape[1] - 1
    path = [(row, column)]
    while row or column:
        if not row or not column:
            row, column = max(row - 1, 0), max(column - 1, 0)
        else:
            steps = [(row - 1, column - 1), (row - 1, column), (row, column - 1)]
            row, column = min(steps, key=lambda step: totals[step])
        path.append((row, column))
    return np.array(path[::-1], dtype=np.int64)

"""Truncated log-probabilities of a capture as pages hold them: distinct ids, a whole probability, its exact rest.

At temperature 1 what lies outside the top k is 1 - sum of its probabilities, so one log tail is known; at any other
temperature it is not. A value that was rounded, or read off a curve, may put the sum above 1: then the k values are
divided by their sum and nothing is left for the rest. How often and how far is counted. A sum that no rounding explains
is refused: the bytes were read by the wrong configuration.

Legend: P positions, k ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sra_data.errors import CaptureError

LARGEST_SUM = 2.0  # of the probabilities of one position


@dataclass(frozen=True)
class Distributions:
    """What is known of P next tokens.

    Attributes:
        ids: int32 [P, k], most probable first.
        values: float64 [P, k] log-probabilities at temperature 1; -inf where an id stands a second time.
        log_tails: float64 [P], the logarithm of the probability outside the top k; -inf where none is.
        num_rescaled: positions whose probabilities added up to more than 1; `largest_sum` the largest of those sums.
        num_repeated: ids that stood twice at a position and are counted once.
    """

    ids: NDArray[np.int32]
    values: NDArray[np.float64]
    log_tails: NDArray[np.float64]
    num_rescaled: int
    largest_sum: float
    num_repeated: int


def distributions(
    ids: NDArray[np.int64], values: NDArray[np.float64], *, vocabulary_size: int, where: str
) -> Distributions:
    """Stored ids and values [P, k] as distributions.

    Raises:
        CaptureError: For an id beyond the vocabulary, a value that is no number, or a sum that is far from 1.
    """
    wrong = np.argwhere(ids >= vocabulary_size)
    if len(wrong):
        position, place = wrong[0]
        raise CaptureError(
            f"{where}: id {ids[position, place]} at position {position}, the teacher's vocabulary has "
            f"{vocabulary_size} ids; is this the capture of another teacher?"
        )
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        raise CaptureError(f"{where}: a log-probability at position {wrong[0][0]} is no number; capture it again")
    order = np.argsort(-values, axis=1, kind="stable")
    ids, values = np.take_along_axis(ids, order, 1), np.take_along_axis(values, order, 1)
    is_again = _stands_before(ids)
    _refuse_mostly_repeated(is_again, where)
    values = np.where(is_again, -np.inf, values)
    sums = np.exp(values).sum(axis=1)
    if len(sums) and not sums.max() <= LARGEST_SUM:
        raise CaptureError(
            f"{where}: the probabilities at position {int(sums.argmax())} add up to {sums.max():.3g}; is the "
            "configuration beside it that of this capture?"
        )
    is_above = sums > 1
    values = np.where(is_above[:, None], values - np.log(sums)[:, None], values)
    is_all = ids.shape[1] == vocabulary_size
    with np.errstate(divide="ignore"):
        tails = np.log(np.where(is_above | is_all, 0.0, 1 - sums))
    largest = float(sums.max()) if is_above.any() else 1.0
    return Distributions(ids.astype(np.int32), values, tails, int(is_above.sum()), largest, int(is_again.sum()))


def _stands_before(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[P, k] whether an id stands further to the left of its row already."""
    order = np.argsort(ids, axis=1, kind="stable")
    ordered = np.take_along_axis(ids, order, 1)
    again = np.zeros(ids.shape, bool)
    np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], 1)
    return again


def _refuse_mostly_repeated(is_again: NDArray[np.bool_], where: str) -> None:
    """Ids are distinct but for rare ties; where half of them are not, they were unpacked wrongly."""
    counts = is_again.sum(axis=1)
    if len(counts) and 2 * counts.max() > is_again.shape[1]:
        raise CaptureError(
            f"{where}: {counts.max()} of the {is_again.shape[1]} ids at position {int(counts.argmax())} stand there "
            "twice; is the configuration beside it that of this capture?"
        )

"""How sure a difference is: a hierarchical bootstrap over seeds, and over examples within each.

Two methods trained with the same seeds and tested on the same examples are compared pair by pair: what makes an
example hard, or an order of training lucky, is the same on both sides and drops out of their difference.

Legend: S seeds both have, E examples, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
SEED = 20_250_701  # of the resampling, so that the same numbers give the same interval
DRAWS_AT_ONCE = 2_000_000  # int32 and two float64 each: 40 MB


@dataclass(frozen=True)
class Difference:
    """Bits per byte of a method less those of another; below 0 the method is better.

    Attributes:
        mean: over seeds.
        low, high: ends of the 95 % interval.
        num_seeds: that both have.
    """

    mean: float
    low: float
    high: float
    num_seeds: int

    @property
    def is_sure(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def paired_difference(
    bits: NDArray[np.float64],
    other_bits: NDArray[np.float64],
    num_bytes: NDArray[np.int64],
    *,
    resamples: int = RESAMPLES,
    share: float = 0.95,
) -> Difference:
    """`bits` less `other_bits`, per byte, with its interval.

    Seeds are drawn with replacement, then for each of them examples with replacement, the same for both methods; the
    statistic is the ratio of summed bits to summed bytes.

    Args:
        bits: [S, E]; row s of both was trained with the same seed.
        other_bits: [S, E].
        num_bytes: [E], positive in sum.
        resamples: R.
        share: of the resamples inside the interval.
    """
    if bits.shape != other_bits.shape or bits.shape[1:] != num_bytes.shape or not bits.size:
        raise ValueError(f"bits {bits.shape}, other bits {other_bits.shape}, bytes {num_bytes.shape} do not fit")
    difference = bits - other_bits
    drawn = resampled_ratios(difference, num_bytes.astype(np.float64), resamples=resamples)
    edge = (1 - share) / 2
    low, high = np.quantile(drawn, [edge, 1 - edge])
    mean = float(difference.sum() / (num_bytes.sum() * len(difference)))
    return Difference(mean, float(low), float(high), len(difference))


def resampled_ratios(
    values: NDArray[np.float64], num_bytes: NDArray[np.float64], *, resamples: int
) -> NDArray[np.float64]:
    """Summed values over summed bytes of each resample [R]; in blocks, so that memory does not grow with R."""
    num_seeds, num_examples = values.shape
    random = np.random.default_rng(SEED)
    block = max(1, DRAWS_AT_ONCE // (num_seeds * num_examples))
    flat = values.reshape(-1)
    found = []
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        seeds = random.integers(num_seeds, size=(count, num_seeds, 1), dtype=np.int32)
        examples = random.integers(num_examples, size=(count, num_seeds, num_examples), dtype=np.int32)
        total_bytes = num_bytes.take(examples).sum((1, 2))
        examples += seeds * num_examples
        found.append(flat.take(examples).sum((1, 2)) / np.maximum(total_bytes, 1))
    return np.concatenate(found)

"""Which examples stand for the whole corpus where looking at all of them would cost too much."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def sample_rows(num_positions: NDArray[Any], num_examples: int) -> NDArray[np.int64]:
    """Row numbers of `num_examples` examples that have positions, spread evenly over the corpus."""
    rows = np.flatnonzero(np.asarray(num_positions) > 0)
    return rows[np.unique(np.linspace(0, max(len(rows) - 1, 0), num_examples).astype(np.int64))] if len(rows) else rows

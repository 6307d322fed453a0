"""Which characters spans cover: from the boundary before a span to its own, whatever its tokens skip in between.

A token of WordPiece begins behind the white space before it, so neither its start nor the end of the token before says
where a span begins. The boundary before it does or, for the first span of a stretch (a response, or what two texts of
it have in common), the stretch's first character: what stands before that is nobody's.
    "Say: fox", response "fox" = [5, 8), tokens (0, 3) (3, 4) (5, 8) -> the span of the last covers [5, 8), not [4, 8)

B = examples, K = spans of an example.
"""

import numpy as np

from sra_data.spans.ragged import Ragged
from sra_data.spans.segments import Segments


def stretches_of(segments: Segments, num_examples: int) -> Ragged:
    """The student's characters of each segment: [B] rows [S, 2]."""
    ranges = np.stack([segments.student_start, segments.student_start + segments.length], axis=1)
    return Ragged.from_lengths(ranges, np.bincount(segments.example, minlength=num_examples))


def covered_characters(*, spans: Ragged, ends: Ragged, stretches: Ragged) -> Ragged:
    """The characters [start, stop) of every span.

    Args:
        spans: [B] rows [K, 2], tokens of one side, in order; each lies in one stretch.
        ends: [B] rows, one past the last character of each token; 0 for special ones.
        stretches: [B] rows [S, 2], characters within which spans lie, in order and disjoint.
    """
    rows = spans.rows
    shift = ends.splits[:-1][rows]
    first, last = spans.values[:, 0] + shift, spans.values[:, 1] + shift - 1
    stops = ends.values[last].astype(np.int64)
    before = np.where(spans.values[:, 0] > 0, ends.values[np.maximum(first - 1, 0)], 0)
    stride = 2 + max(int(ends.values.max(initial=0)), int(stretches.values.max(initial=0)))
    begins = stretches.values[:, 0].astype(np.int64)
    own = np.searchsorted(stretches.rows * stride + begins, rows * stride + stops, side="left") - 1
    return spans.with_values(np.stack([np.maximum(before, begins[own]), stops], axis=1))

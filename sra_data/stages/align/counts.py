"""What the stage did, in numbers that add up: counted per batch (counting.py), kept in receipts, added for a summary.

A side counts its tokens, an alignment its spans. Counts of an alignment are over examples that are ``ok`` on both
sides; characters and tokens are those of the responses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

LARGEST_SHOWN = 5  # tokens of one side in the n:m histogram; more are counted as "5+"


class Sums:
    """Numbers and counters that add up, whatever they count."""

    def add(self, other: Self) -> None:
        """Add another's sums to these."""
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a receipt."""
        return {
            name: dict(sorted(value.items())) if isinstance(value, Counter) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(**{name: Counter(item) if isinstance(item, dict) else item for name, item in value.items()})

    @classmethod
    def total(cls, notes: Sequence[dict[str, Any]]) -> Self:
        """The sums over the notes of some receipts."""
        found = cls()
        for note in notes:
            found.add(cls.from_json(note))
        return found


@dataclass
class SideCounts(Sums):
    """Of one side.

    Attributes:
        statuses: Examples by status.
        cut: Examples by what was cut or could not be used whole.
        tokens: All tokens, prompts too.
        response_tokens: Those of the responses.
        labels: Tokens to learn.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    response_tokens: int = 0
    labels: int = 0


@dataclass
class PairCounts(Sums):
    """Of one alignment; left and right as in its name.

    Attributes:
        statuses: Examples by status.
        spans: K in all; `merged_spans` went into a neighbour because of max_spans.
        without_spans: Examples that share no boundary at all.
        left_tokens: Tokens of the responses on the left side; right_tokens likewise.
        left_shared: Those whose id is in the shared vocabulary; right_shared likewise.
        characters: Of the responses, as the left side reads them; `covered` of them lie in spans.
        sizes: Spans by "left tokens:right tokens".
        left_first_piece: Spans whose first token on the right is the first-piece image of their first on the left: how
            often a map is right about what follows. right_first_piece from right to left, byte_prefix likewise.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    spans: int = 0
    merged_spans: int = 0
    without_spans: int = 0
    left_tokens: int = 0
    right_tokens: int = 0
    left_shared: int = 0
    right_shared: int = 0
    characters: int = 0
    covered: int = 0
    left_first_piece: int = 0
    right_first_piece: int = 0
    left_byte_prefix: int = 0
    right_byte_prefix: int = 0

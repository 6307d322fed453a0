"""How many tokens a model reads, from its configuration alone: what it declares, and what it reads at most.

A text is cut to the number that is declared (`positions_in`). A row is refused only above the number that nothing in
the configuration covers (`most_positions`): rotary frequencies may be stretched beyond what is declared, and biases by
distance (ALiBi) reach any length, whatever they were trained on. A sliding window bounds what a token sees and not how
many tokens there are; a state-space model declares nothing.
"""

from __future__ import annotations

import math
from typing import Any

POSITION_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
TABLE_OF_DISTANCES = "max_seq_len"  # MPT's biases by distance are a table of so many
WITHOUT_POSITIONS = frozenset({"bloom"})  # biases by distance, without a flag that says so
STRETCHED = frozenset({"linear", "dynamic", "yarn", "longrope", "llama3"})


def positions_in(config: Any) -> int | None:
    """Tokens a model says it reads; None where its configuration says nothing."""
    text = config.get_text_config()
    for name in POSITION_NAMES:
        found = getattr(text, name, None)
        if isinstance(found, int) and not isinstance(found, bool) and found > 0:
            return found
    return None


def most_positions(config: Any) -> int | None:
    """Tokens above which no row is read as the model was made for; None where there is no such number."""
    text = config.get_text_config()
    is_by_distance = getattr(text, "alibi", False) is True and not hasattr(text, TABLE_OF_DISTANCES)
    if is_by_distance or getattr(text, "model_type", None) in WITHOUT_POSITIONS:
        return None
    declared = positions_in(config)
    rope = getattr(text, "rope_parameters", None)
    if declared is None or not isinstance(rope, dict) or rope.get("rope_type") not in STRETCHED:
        return declared  # rotary parameters by layer type among them: those declare what they reach
    trained = _positive(rope.get("original_max_position_embeddings")) or declared
    return max(declared, int(trained * (_positive(rope.get("factor")) or 1)))


def _positive(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and 0 < value < math.inf else None  # type: ignore[operator,return-value]

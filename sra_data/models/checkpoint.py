"""Whether a checkpoint is the model it was opened as: what `from_pretrained` reports of the names and shapes it met.

transformers fills a tensor that a checkpoint lacks with random numbers, and drops one that has no place, with a warning
at most. Here both are refused, for teachers and students alike. What is let through: tensors that the library does not
count itself (a head tied to the embeddings, buffers that are computed anew), buffers that older releases saved, and
parts that are neither body nor head (a vision tower, a value head).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from sra_data.errors import ModelError
from sra_data.models.decoder import body_name, decoder_body, unwrap

# Computed from the configuration; older releases wrote them beside the weights.
SAVED_BUFFER = re.compile(
    r"(^|\.)(inv_freq|(cos|sin)_cached|position_ids|masked_bias|causal_mask)$"
    r"|(^|\.)(attn|attention|self_attn)(\.attention)?\.bias$"
)
NAMES_SHOWN = 3


def refuse_unlike(model: nn.Module, info: Mapping[str, Any], *, who: str) -> None:
    """Refuse a model whose checkpoint lacks some of its tensors, has them in other shapes, or has more of them.

    Args:
        model: as `from_pretrained` made it.
        info: its `output_loading_info`: "missing_keys", "mismatched_keys", "unexpected_keys".
        who: "teacher X" or "student X", for the message.

    Raises:
        ModelError: With how many tensors and the first names.
    """
    kind = type(unwrap(model)).__name__
    missing = {name for name in info.get("missing_keys", ()) if not SAVED_BUFFER.search(name)}
    if missing:
        raise ModelError(
            f"{who}: its checkpoint lacks {len(missing)} tensors of {kind} ({_some(missing)}), which would be random "
            "numbers; use a whole checkpoint with the config.json that belongs to it"
        )
    mismatched = {found[0] if isinstance(found, tuple) else found for found in info.get("mismatched_keys", ())}
    if mismatched:
        raise ModelError(
            f"{who}: its checkpoint has {len(mismatched)} tensors in other shapes than {kind} ({_some(mismatched)}), "
            "which would be random numbers; use the config.json that belongs to the checkpoint"
        )
    unexpected = {name for name in info.get("unexpected_keys", ()) if _is_of_body_or_head(model, name)}
    if unexpected:
        raise ModelError(
            f"{who}: its checkpoint has {len(unexpected)} tensors of a body or head that {kind} has no place for "
            f"({_some(unexpected)}); use the config.json that belongs to the checkpoint"
        )


def _is_of_body_or_head(model: nn.Module, name: str) -> bool:
    """Whether a tensor without a place would stand inside a part that the body or the head consists of."""
    if SAVED_BUFFER.search(name):
        return False
    causal, place = unwrap(model), body_name(model) or ""
    inside = name.removeprefix(f"{causal.base_model_prefix}.").removeprefix(f"{place}.")
    body = {child for child, _ in decoder_body(model).named_children()}
    around = {child for child, _ in causal.named_children()} - {place.partition(".")[0]}
    return inside.partition(".")[0] in body | around


def _some(names: Collection[str]) -> str:
    """The first few names, in order."""
    shown = sorted(names)[:NAMES_SHOWN]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")

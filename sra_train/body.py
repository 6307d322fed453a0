"""A language model's body on right-padded ids: hidden states out, no logits, and nothing that makes the host wait.

A causal body reads no later token, so on the right padding changes nothing for real tokens (they are equal to the last
bit, or to rounding where torch takes another kernel) and no mask is handed in: attention keeps its fast causal kernels,
and transformers need not look at the mask's values. What it would look at instead, without a mask, is whether several
examples were packed into one row, and whether there is padding on the left; both are known here, and each look would
wait for the device in every forward.

A body that sees later tokens too (bidirectional attention) gets its mask.

Legend: B batch, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sra_data.models.decoder import decoder_body, decoder_layers, text_config

PACKING_CHECK = "find_packed_sequence_indices"
PADDING_CHECK = "warn_if_padding_and_no_attention_mask"


class Body:
    """The body of a Hugging Face causal language model, or of a PEFT model around one."""

    def __init__(self, model: nn.Module) -> None:
        self.module = decoder_body(model)
        self.with_mask = needs_padding_mask(model)
        if hasattr(self.module, PADDING_CHECK):
            setattr(self.module, PADDING_CHECK, _nothing)  # of this model alone: its padding is on the right

    def __call__(
        self, input_ids: Tensor, lengths: Tensor, *, all_layers: bool = False, router_logits: bool = False
    ) -> Any:
        """The body's output for a right-padded batch.

        Args:
            input_ids: [B, N].
            lengths: [B] tokens that are no padding.
            all_layers: Whether the hidden states of every layer are kept.
            router_logits: Whether those of a mixture of experts are, [B x N, experts] of each of its layers.
        """
        mask = None
        if self.with_mask:
            mask = (torch.arange(input_ids.shape[1], device=input_ids.device) < lengths[:, None]).long()
        wanted = {"output_router_logits": True} if router_logits else {}  # a dense body knows no such word
        with _nothing_is_packed():
            return self.module(
                input_ids=input_ids, attention_mask=mask, use_cache=False, output_hidden_states=all_layers, **wanted
            )


def needs_padding_mask(model: nn.Module) -> bool:
    """Whether real tokens of the model see padding on their right: whether any of its attention looks ahead."""
    config = text_config(model)
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", None):
        return True
    return any(getattr(module, "is_causal", True) is False for module in decoder_layers(model).modules())


@contextmanager
def _nothing_is_packed() -> Iterator[None]:
    """Tell transformers that every row of a batch is one example; releases that do not ask need no answer."""
    from transformers import masking_utils

    check = getattr(masking_utils, PACKING_CHECK, None)
    if check is not None:
        setattr(masking_utils, PACKING_CHECK, _nothing)
    try:
        yield
    finally:
        if check is not None:
            setattr(masking_utils, PACKING_CHECK, check)


def _nothing(*_: Any) -> None:
    """Neither packed nor padded on the left."""

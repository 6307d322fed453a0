"""The attention row of one query, summed over heads, while a model runs: never the map it is a row of.

SRA needs, at each mapped layer, how much the last real token attends to every position. Asking a model for
``output_attentions`` would force the eager path: tokens x tokens x heads x layers of memory. Here the model keeps its
own attention (SDPA, FlashAttention); two ways lead to the row:

* Models on transformers' ``AttentionInterface`` get a registered function that calls the original one and, for mapped
  layers only, computes softmax(q_last K^T) from the query and key it was handed (after rotary embedding), with the
  model's scaling, grouped keys, soft-cap, sinks, mask and sliding window.
* Families that do not follow the interface (BLOOM, Falcon, MPT, GPT-J, ...), and models on the eager path, get hooks on
  the attention modules of the mapped layers. While such a module runs, the one softmax or SDPA call inside it is
  listened to (attention_hooks.py): the row is read, and what the model computes is not touched.

Dropout never reaches the row, no gradient does, and the model's outputs stay what they were. A model without attention
is refused, with the remedy.

Legend: B batch, S positions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from sra_data.errors import ModelError
from sra_data.models.attention_hooks import Removable, listen_to_attention
from sra_data.models.attention_row import Total, last_query_row
from sra_data.models.decoder import attention_module, check_layers, decoder_layers, unwrap

PREFIX = "last_query_"
SINK = "_last_query_sink"


class LastQueryAttention:
    """Reads attention rows of chosen layers during a model's own forward.

    Attach once; then wrap each forward whose rows are wanted::

        last_query = LastQueryAttention.attach(model, layers=[12])
        with last_query.capture(query_index=lengths - 1) as rows:
            model(input_ids=..., attention_mask=...)
        rows[12]    # float32 [B, S], each row sums to 1

    Layer l is the attention of decoder block l-1, whose output is ``hidden_states[l]``.
    """

    def __init__(self, model: nn.Module, layers: tuple[int, ...], total: Total | None = None) -> None:
        self.model = model
        self.layers = layers
        self.total = total
        self.rows: dict[int, Tensor] = {}
        self.query_index: Tensor | None = None
        self._configs: list[tuple[Any, str]] = []
        self._modules: list[nn.Module] = []
        self._hooks: list[Removable] = []

    @classmethod
    def attach(
        cls, model: nn.Module, layers: list[int] | tuple[int, ...], *, total: Total | None = None
    ) -> LastQueryAttention:
        """Make `model` hand over the rows of `layers` (1..L) when asked; its outputs do not change.

        Args:
            model: the causal language model.
            layers: whose rows.
            total: adds up over the processes that share its heads; None where all heads are here.

        Raises:
            ModelError: If a layer is out of range, has no attention, or runs an implementation whose query and key
                cannot be seen (flex_attention).
        """
        attached = cls(model, check_layers(model, layers), total)
        try:
            blocks = decoder_layers(model)
            for layer in attached.layers:
                attached._attach_layer(layer, blocks[layer - 1])
        except BaseException:
            attached.detach()
            raise
        return attached

    def _attach_layer(self, layer: int, block: nn.Module) -> None:
        module = attention_module(block)
        if module is None:
            raise ModelError(
                f"layer {layer} of {type(unwrap(self.model)).__name__}: it has no attention to weigh tokens by; "
                "choose a layer with attention, or pooling=mean or pooling=last (a teacher: --no-attention)"
            )
        if hasattr(module, SINK):
            raise ModelError(f"layer {layer}: its attention is already being read; detach the earlier reader first")
        config = getattr(module, "config", None)
        implementation = getattr(config, "_attn_implementation", None)
        follows_interface = hasattr(sys.modules.get(type(module).__module__), "ALL_ATTENTION_FUNCTIONS")
        if config is not None and follows_interface and implementation not in (None, "eager"):
            registered = register_last_query(implementation)
            setattr(module, SINK, (self, layer))
            self._modules.append(module)
            if registered != implementation:
                self._configs.append((config, implementation))
                config._attn_implementation_internal = registered
        else:
            self._hooks += listen_to_attention(module, lambda: self.query_index, self._keep(layer), total=self.total)

    def _keep(self, layer: int) -> Callable[[Tensor], None]:
        def keep(row: Tensor) -> None:
            # The first row wins: gradient checkpointing may run the block again inside the same capture.
            if self.query_index is not None and layer not in self.rows:
                self.rows[layer] = row

        return keep

    @contextmanager
    def capture(self, query_index: Tensor) -> Iterator[dict[int, Tensor]]:
        """Fill the yielded dict with the rows of `query_index` while the block runs one forward.

        Args:
            query_index: [B] int64, each example's position of the last real token (with right padding: length - 1).

        Yields:
            layer -> float32 [B, S], summed over heads, normalised over positions, no gradient.

        Raises:
            ModelError: After the block, if a layer ran without showing a softmax over positions.
        """
        rows: dict[int, Tensor] = {}
        self.rows, self.query_index = rows, query_index.detach()
        try:
            yield rows
        finally:
            self.rows, self.query_index = {}, None
        missing = [layer for layer in self.layers if layer not in rows]
        if missing:
            raise ModelError(
                f"layers {missing} of {type(unwrap(self.model)).__name__}: no attention over positions was seen while "
                "they ran; choose layers with softmax attention, or pooling=mean or pooling=last"
            )

    def detach(self) -> None:
        """Give the model back as it was."""
        for config, implementation in self._configs:
            config._attn_implementation_internal = implementation
        for module in self._modules:
            delattr(module, SINK)
        for hook in self._hooks:
            hook.remove()
        self._configs, self._modules, self._hooks = [], [], []


def register_last_query(implementation: str) -> str:
    """Register the reading twin of an attention implementation, once; return its name.

    The name keeps the original's as a part, because transformers looks for "flash" or "sdpa" inside it.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if implementation.startswith(PREFIX):
        return implementation
    name = PREFIX + implementation
    if "flex" in implementation or implementation not in ALL_ATTENTION_FUNCTIONS:
        raise ModelError(
            f"attention implementation {implementation!r}: its attention row cannot be read; load the model with "
            "attn_implementation='sdpa', 'eager' or a FlashAttention one"
        )
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _reading(ALL_ATTENTION_FUNCTIONS[implementation]))
        if implementation in ALL_MASK_ATTENTION_FUNCTIONS:
            AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[implementation])
    return name


def _reading(original: Callable[..., Any]) -> Callable[..., Any]:
    """An attention function that reads the row where a layer asks for it, then does what the original does."""

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> Any:
        sink = getattr(module, SINK, None)
        if sink is not None:
            reader, layer = sink
            if reader.query_index is not None and layer not in reader.rows:
                reader.rows[layer] = last_query_row(
                    module, query, key, attention_mask, reader.query_index, total=reader.total, **options
                )
        return original(module, query, key, value, attention_mask, **options)

    return attention

"""Where things stand inside a decoder-only language model, whatever its family calls them.

Everything here takes a module that is already in memory and finds parts of it: the body without the output head, the
list of decoder blocks, a block's attention, the input embeddings. It goes through the wrappers people put around a
model (DistributedDataParallel, torch.compile, a LoRA adapter) and it cannot load anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sra_data.errors import ModelError
from sra_data.models.placement import device_of_module, weight_of

ATTENTION_CLASS_NAME = re.compile(r"attention|attn", re.IGNORECASE)


def unwrap(model: nn.Module) -> Any:
    """The causal language model inside DDP, torch.compile and PEFT wrappers; adapter layers stay in place."""
    found: Any = model
    while True:
        if hasattr(found, "_orig_mod"):
            found = found._orig_mod
        elif hasattr(found, "get_base_model"):
            found = found.get_base_model()
        elif isinstance(found, nn.parallel.DistributedDataParallel):
            found = found.module
        else:
            return found


def text_config(model: nn.Module) -> Any:
    """The configuration of the text decoder (models that also see images nest it)."""
    return unwrap(model).config.get_text_config(decoder=True)


def decoder_body(model: nn.Module) -> nn.Module:
    """The model without its output head: ids in, `last_hidden_state` after the final norm out.

    Raises:
        ModelError: If there is none apart from the head.
    """
    name = body_name(model)
    if name is None:
        raise ModelError(
            f"model class {type(unwrap(model)).__name__}: no body apart from its output head was found; "
            "use a decoder-only model that AutoModelForCausalLM opens"
        )
    return unwrap(model).get_submodule(name)


def body_name(model: nn.Module) -> str | None:
    """Where the body stands in the causal language model, with dots; None where there is none.

    It is where the class says it is. Llama 4 says "language_model", which is a part of its model that sees images: its
    text model's body is its `model`, and in the larger one both stand one inside the other.
    """
    causal = unwrap(model)
    prefix = getattr(causal, "base_model_prefix", "")
    if prefix and isinstance(getattr(causal, prefix, None), nn.Module):
        return None if getattr(causal, prefix) is causal else prefix
    if isinstance(getattr(causal, "model", None), nn.Module):
        return "model"
    inner = getattr(causal, "language_model", None)
    inside = body_name(inner) if isinstance(inner, nn.Module) else None
    return None if inside is None else f"language_model.{inside}"


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks, in order: block l-1 computes `hidden_states[l]`.

    Raises:
        ModelError: If no list of `num_hidden_layers` blocks exists.
    """
    count = text_config(model).num_hidden_layers
    for module in decoder_body(model).modules():
        # The blocks are the longest-lived ModuleList of that length; one inside a block cannot come first, because
        # modules() walks from the outside in.
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(
        f"model class {type(unwrap(model)).__name__}: no list of its {count} decoder blocks was found; "
        "use a decoder-only model that AutoModelForCausalLM opens"
    )


def check_layers(model: nn.Module, layers: list[int] | tuple[int, ...]) -> tuple[int, ...]:
    """Refuse layer numbers outside 1..L (Hugging Face counting: L is the last, after the final norm)."""
    count = len(decoder_layers(model))
    for layer in layers:
        if not 1 <= layer <= count:
            raise ModelError(
                f"layer {layer}: {type(unwrap(model)).__name__} has layers 1 to {count}; choose one of them or `last`"
            )
    return tuple(layers)


def length_border(model: nn.Module) -> int | None:
    """Tokens above which a row of a batch changes the positions of all rows in it; None where none does.

    "longrope" has two sets of frequencies and takes the long one where the LONGEST row of the batch asks for it, so a
    batch must not hold rows on both sides of the border.
    """
    return length_border_of(text_config(model))


def length_border_of(config: Any) -> int | None:
    """The same of a text decoder's configuration."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]  # of all layers, or by layer type
    borders = [
        int(kind["original_max_position_embeddings"])
        for kind in kinds
        if kind.get("rope_type") == "longrope" and kind.get("original_max_position_embeddings")
    ]
    return min(borders, default=None)


@torch.no_grad()
def states_offset(model: nn.Module) -> int:
    """What to add to an inner layer's number l to find it in the body's own list of hidden states.

    That list begins with the embeddings in most families (0); state-space families leave them out (-1). Proved by a
    forward of a few ids: layer l is what block l-1 gives.

    Raises:
        ModelError: If the outputs of the blocks are not in the list, so that nobody knows which layer is which.
    """
    body, blocks = decoder_body(model), decoder_layers(model)
    said: list[Tensor] = []
    handles = [
        block.register_forward_hook(
            lambda _, inputs, output: said.append(output[0] if isinstance(output, tuple) else output)
        )
        for block in list(blocks)[:-1]
    ]
    was_training = body.training
    body.eval()
    embedding = unwrap(model).get_input_embeddings()
    ids = torch.arange(3, 8, device=device_of_module(embedding))[None] % embedding.weight.shape[0]
    try:
        states = body(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states or ()
    finally:
        body.train(was_training)
        for handle in handles:
            handle.remove()
    for offset in (0, -1):
        listed = states[1 + offset : len(blocks) + offset]
        pairs = list(zip(said, listed, strict=False))
        if len(said) == len(listed) == len(blocks) - 1 and all(_are_equal(*pair) for pair in pairs):
            return offset
    raise ModelError(
        f"model class {type(unwrap(model)).__name__}: the outputs of its {len(blocks)} blocks are not the hidden "
        "states it lists, so that inner layers cannot be told apart; use the last layer alone"
    )


def _are_equal(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two are the same, NaN included: they are of one forward, so nothing is rounded."""
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=0.0, atol=0.0, equal_nan=True)


def attention_module(block: nn.Module) -> nn.Module | None:
    """A block's outermost attention module, or None where it has none (a state-space block)."""
    for module in block.modules():
        if module is not block and ATTENTION_CLASS_NAME.search(type(module).__name__):
            return module
    return None


def hidden_size(model: nn.Module) -> int:
    """Width of the hidden states the output head reads."""
    weight = unwrap(model).get_output_embeddings().weight
    return int(weight.shape[-1])


@dataclass(frozen=True)
class InputEmbeddings:
    """The table that turns ids into vectors.

    Attributes:
        weight: [V, D], as stored in the model.
        scale: What the family multiplies the looked-up vector by before the first block (Gemma: sqrt(D); Granite:
            embedding_multiplier; otherwise 1). `weight[ids] * scale` is `hidden_states[0]` up to position embeddings.
        is_tied: Whether the output head is this same table.
    """

    weight: Tensor
    scale: float
    is_tied: bool


def input_embeddings(model: nn.Module) -> InputEmbeddings:
    """Find the input embeddings, their scaling, and whether the output head shares them."""
    causal = unwrap(model)
    embedding = causal.get_input_embeddings()
    config = text_config(model)
    scale = 1.0
    embed_scale = getattr(embedding, "embed_scale", None)
    if embed_scale is not None:
        scale = float(embed_scale)
    elif config.model_type in ("gemma", "gemma2"):
        # These two scale inside the body, rounded to the model's dtype.
        scale = float(torch.tensor(config.hidden_size**0.5, dtype=embedding.weight.dtype))
    elif getattr(config, "embedding_multiplier", None):
        scale = float(config.embedding_multiplier)
    head = causal.get_output_embeddings()
    is_tied = head is not None and head.weight is embedding.weight
    return InputEmbeddings(weight=weight_of(embedding), scale=scale, is_tied=is_tied)


def refuse_encoder(config: Any, *, who: str) -> None:
    """Refuse a configuration of an encoder with a decoder: its encoder would be left out without a word.

    Raises:
        ModelError: Saying so.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{who}: {config.model_type} is an encoder with a decoder, and its encoder would be left out; "
            "use a decoder-only model"
        )

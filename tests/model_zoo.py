"""Tiny, randomly initialised Hugging Face causal language models of many families, from fixed seeds.

`tiny_model("llama", vocab_size=..., ...)` gives one; every keyword overrides the family's configuration. Weights are
larger than the libraries' initialisation, so that attention and next-token distributions are far from uniform and a
wrong mask, scaling or head shows.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

COMMON = {"vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
WINDOW = 6  # shorter than the test batches, so that windows cut

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**LLAMA_LIKE},
    "qwen2": {**LLAMA_LIKE},
    "qwen3": {**LLAMA_LIKE, "head_dim": 8},
    "mistral": {**LLAMA_LIKE, "sliding_window": WINDOW},
    "gemma2": {
        **LLAMA_LIKE,
        "head_dim": 8,
        "sliding_window": WINDOW,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 8,
    },
    "gemma3_text": {
        **LLAMA_LIKE,
        "head_dim": 8,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "phi3": {**LLAMA_LIKE},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128},
    "gpt_neox": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    },
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    },
    "falcon": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "alibi": False},
    "falcon_alibi": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "alibi": True},
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4},
    "granite": {
        **LLAMA_LIKE,
        "logits_scaling": 4.0,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.7,
    },
    "cohere": {**LLAMA_LIKE, "logit_scale": 0.5},
    "mixtral": {**LLAMA_LIKE, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
    "qwen2_moe": {
        **LLAMA_LIKE,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "phi": {**LLAMA_LIKE},
    "gptj": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "rotary_dim": 8},
    "mpt": {"d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 128},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 8},
}
# Not among those that everything is tried with: parts of them have names of their own, or no attention.
UNUSUAL_FAMILIES: dict[str, dict[str, Any]] = {
    "llama4_text": {
        **LLAMA_LIKE,
        "head_dim": 8,
        "intermediate_size_mlp": 48,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "attention_chunk_size": 8,
        "layer_types": ["chunked_attention", "full_attention", "chunked_attention"],
        "no_rope_layers": [1, 0, 1],
    },
    "recurrent_gemma": {
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "attention_window_size": 8,
        "logits_soft_cap": 3.0,
    },
    "xlstm": {"hidden_size": 32, "num_hidden_layers": 3, "num_heads": 4, "output_logit_soft_cap": 2.0},
}
ATTENTION_FAMILIES = tuple(family for family in FAMILIES if family != "mamba")


def tiny_model(
    family: str, *, seed: int = 0, attn_implementation: str | None = None, **overrides: Any
) -> PreTrainedModel:
    """A tiny float32 model in eval mode.

    Args:
        family: A key of FAMILIES or UNUSUAL_FAMILIES.
        seed: Of the weights; the global random state is left as it was.
        attn_implementation: As in `from_pretrained`; the library's default where None.
        **overrides: Configuration values (say, vocab_size=512, num_hidden_layers=2).
    """
    model_type = "falcon" if family == "falcon_alibi" else family
    config = AutoConfig.for_model(model_type, **{**COMMON, **(FAMILIES | UNUSUAL_FAMILIES)[family], **overrides})
    if family == "gemma2" and attn_implementation is None:
        attn_implementation = "eager"  # what newer releases choose; older ones run SDPA without the soft-cap
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, **options)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 1.3 * parameter.shape[-1] ** -0.5)
                elif name.endswith("bias"):
                    parameter.normal_(0.0, 0.2)
    return model.eval()

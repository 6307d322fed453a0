"""A small teacher that has learnt something, and one that computes the same function through outlier channels.

Large models write a few channels many times larger than the rest; a random tiny one does not, and its flat
distributions forgive every rounding. So the honest small case for int8 is a TRAINED model whose final norm is
multiplied by 50 in six channels and whose head divides the same columns by 50: the function stays, the states do not.
"""

from __future__ import annotations

import json.decoder
import json.encoder
import textwrap
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 256  # ids are bytes
OUTLIER_FACTOR = 50.0
OUTLIERS = (3, 17, 40, 71, 96, 120)  # channels of the final norm


def text_ids() -> np.ndarray:
    """Bytes of a few modules of Python's own library, as ids: int64 [n]."""
    files = [module.__file__ for module in (textwrap, json.decoder, json.encoder)]
    return np.frombuffer(b"".join(Path(str(file)).read_bytes() for file in files), np.uint8).astype(np.int64)


def train_teacher(*, steps: int, hidden_size: int = 128, batch_size: int = 8, length: int = 96) -> LlamaForCausalLM:
    """A Llama of two layers over bytes with tied embeddings, trained on `text_ids` from a fixed seed."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden_size,
            intermediate_size=2 * hidden_size,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=512,
            tie_word_embeddings=True,
        )
    )
    ids, generator = torch.from_numpy(text_ids()), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    for _ in range(steps):
        starts = torch.randint(0, len(ids) - length, (batch_size,), generator=generator)
        batch = ids[starts[:, None] + torch.arange(length)]  # [B, N]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


@torch.no_grad()
def give_outliers(model: LlamaForCausalLM) -> None:
    """Multiply `OUTLIERS` of the final norm and divide the head's columns by the same; the function is unchanged.

    Tied embeddings are untied first: the input's rows must stay.
    """
    if model.config.tie_word_embeddings:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    channels = list(OUTLIERS)
    model.model.norm.weight[channels] *= OUTLIER_FACTOR
    model.lm_head.weight[:, channels] /= OUTLIER_FACTOR

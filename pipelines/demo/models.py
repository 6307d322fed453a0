"""The demo's models: both with byte-level BPE tokenizers, as the published pairs have, but of different sizes.

Made on the spot with fixed seeds. The student's tokenizer was trained on a part of the text, with fewer pieces, so that
the two agree on most borders and on the ids of most, not all, tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, PreTrainedTokenizerFast, set_seed
from transformers.utils import logging

END_OF_TEXT = "<|end|>"
POSITIONS = 160  # most docstrings are shorter; what is cut is counted by `sra-data align`


def train_byte_level_bpe(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, as GPT-2, Llama 3 and Qwen have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)


def write_teacher(folder: Path, texts: list[str], *, seed: int) -> None:
    """Write the untrained teacher: a GPT-2 of 1.2 M parameters."""
    tokenizer = train_byte_level_bpe(texts, vocab_size=3072)
    save_random_model(gpt2(tokenizer, width=128, layers=4), tokenizer, folder, seed=seed)


def write_student(folder: Path, texts: list[str], *, seed: int) -> None:
    """Write the untrained student: a GPT-2 of 0.4 M parameters with another tokenizer."""
    tokenizer = train_byte_level_bpe(texts[::6], vocab_size=1536)
    save_random_model(gpt2(tokenizer, width=80, layers=3), tokenizer, folder, seed=seed)


def gpt2(tokenizer: PreTrainedTokenizerFast, *, width: int, layers: int, positions: int = POSITIONS) -> GPT2Config:
    """A small GPT-2 without dropout: students learn too little to need it."""
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=width,
        n_layer=layers,
        n_head=4,
        n_positions=positions,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def save_random_model(config: GPT2Config, tokenizer: PreTrainedTokenizerFast, folder: Path, *, seed: int) -> None:
    """Write a randomly initialised model and its tokenizer as a plain Hugging Face folder."""
    from transformers import AutoModelForCausalLM

    logging.disable_progress_bar()
    set_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.model_max_length = config.n_positions
    tokenizer.save_pretrained(folder)

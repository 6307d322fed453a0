"""The demo's two families: a byte-level BPE teacher and a Unigram student, made on the spot with fixed seeds.

They are the hard pair on purpose: one cuts bytes and keeps the space in front of a word, the other scores whole pieces
and writes the space as a visible mark, so that their tokens agree on some borders only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, LlamaConfig, PreTrainedTokenizerFast, set_seed
from transformers.utils import logging

END_OF_TEXT = "<|end|>"
POSITIONS = 192  # most docstrings are shorter; what is cut is counted by `sra-data align`


def train_teacher_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
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


def train_student_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """A Unigram tokenizer in the manner of SentencePiece: "▁" for the space, unknown characters cut into bytes."""
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", behavior="isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="never", split=True),
        ]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - len(byte_pieces),
        special_tokens=["<unk>", "</s>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.model = with_byte_fallback(tokenizer, byte_pieces)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never"), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>", bos_token=None
    )


def with_byte_fallback(tokenizer: Tokenizer, byte_pieces: list[str]) -> models.Unigram:
    """The trained Unigram model with the 256 byte pieces added at the score of its rarest piece."""
    vocabulary = [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    rarest = min(score for _, score in vocabulary)
    vocabulary += [(piece, rarest - 10.0) for piece in byte_pieces]
    return models.Unigram(vocabulary, unk_id=0, byte_fallback=True)


def write_teacher(folder: Path, texts: list[str], *, seed: int) -> None:
    """Write the untrained teacher: a Llama of 1.2 M parameters with its tokenizer."""
    tokenizer = train_teacher_tokenizer(texts, vocab_size=3072)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    save_random_model(config, tokenizer, folder, seed=seed)


def write_student(folder: Path, texts: list[str], *, seed: int) -> None:
    """Write the untrained student: a GPT-2 of 0.6 M parameters with another tokenizer."""
    tokenizer = train_student_tokenizer(texts[::6], vocab_size=1536)  # a sixth will do, in a sixth of the time
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=96,
        n_layer=3,
        n_head=4,
        n_positions=POSITIONS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    save_random_model(config, tokenizer, folder, seed=seed)


def save_random_model(
    config: GPT2Config | LlamaConfig, tokenizer: PreTrainedTokenizerFast, folder: Path, *, seed: int
) -> None:
    """Write a randomly initialised model and its tokenizer as a plain Hugging Face folder."""
    from transformers import AutoModelForCausalLM

    logging.disable_progress_bar()
    set_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)

"""One teacher and two far smaller students with clearly different tokenizers, made on the spot with a fixed seed.

The teacher cuts with a byte-level BPE of 4,096 pieces trained on the corpus; one student with a byte-level BPE of 1,800
pieces, the other with a Unigram model of 1,800, both trained on OTHER text beside a part of the corpus, as a student's
tokenizer is in earnest: it was not made for the data it is distilled on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from models import gpt2, save_random_model, train_byte_level_bpe
from steps import read_rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

STUDENTS = ("bpe", "unigram")
SIZES = {"teacher": (256, 4), "bpe": (96, 3), "unigram": (96, 3)}  # width, layers


def write_models(output: Path, data: Path, arguments: argparse.Namespace) -> None:
    """Write untrained models and their tokenizers below `output`/untrained, where they are not there."""
    folder = output / "untrained"
    if (folder / "done").exists():
        return
    corpus, other = (texts_of(data / f"{name}.jsonl") for name in ("train", "other"))
    mixed = other[::8] + corpus[::24]
    tokenizers = {
        "teacher": train_byte_level_bpe(corpus, vocab_size=4096),
        "bpe": train_byte_level_bpe(mixed, vocab_size=1800),
        "unigram": train_unigram(mixed, vocab_size=1800),
    }
    for place, (name, tokenizer) in enumerate(tokenizers.items()):
        width, layers = SIZES[name]
        config = gpt2(tokenizer, width=width, layers=layers)
        save_random_model(config, tokenizer, folder / name, seed=arguments.seed + place)
    (folder / "done").touch()


def texts_of(path: Path) -> list[str]:
    """Prompt and response in one, of every row."""
    return [row["prompt"] + row["response"] for row in read_rows(path)]


def train_unigram(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
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

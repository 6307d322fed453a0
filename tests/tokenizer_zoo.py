"""Small tokenizers of every family, trained in the test: the same texts give the same tokenizer.

    tokenizer = train_unigram(ZOO_TEXTS, vocab_size=400)
    tokenizer.save_pretrained(folder)                      # AutoTokenizer and SideTokenizer.load open it

All are ``PreTrainedTokenizerFast``. Those of decoder-only families have "</s>" as end-of-sequence token; those of
SentencePiece style put "<s>" in front of a text, WordPiece "[CLS]" and "[SEP]" around it.
"""

import json
from collections.abc import Callable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

ZOO_TEXTS: tuple[str, ...] = (
    "The quick brown fox jumps over the lazy dog. The dog sleeps; the fox does not.",
    "Pack my box with five dozen liquor jugs! How quickly daft jumping zebras vex.",
    "Él está aquí: mañana comerá piñas y café con azúcar, ¿verdad? Übergrößenträger.",
    "def f(x):\n    return x ** 2 + 1  # square\n\nfor i in range(10):\n\tprint(f(i))\r\n",
    "我们今天学习自然语言处理。今天天气很好，我们去公园。東京は日本の首都です。",
    "مرحبا بالعالم، كيف حالك اليوم؟ नमस्ते दुनिया, आप कैसे हैं? สวัสดีชาวโลก",
    "Emoji: 👩‍🚀 👍🏽 🇩🇪 😀😀 ❤️ and text — “quotes”, ﬁ ﬃ ½ ™ … 한국어 조선말.",
    "0123456789 3.14159 1,000,000 50% $20 a@b.c https://example.org/path?query=1&other=2",
)

Train = Callable[[Sequence[str], int], PreTrainedTokenizerFast]


def train_byte_level_bpe(
    texts: Sequence[str] = ZOO_TEXTS, vocab_size: int = 400, *, nfc: bool = False, add_prefix_space: bool = False
) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2's; with ``nfc`` as Qwen's, with ``add_prefix_space`` as RoBERTa's."""
    tokenizer = Tokenizer(models.BPE())
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    _train(tokenizer, texts, trainers.BpeTrainer, vocab_size, ["</s>"], pre_tokenizers.ByteLevel.alphabet())
    return _wrapped(tokenizer)


def train_byte_level(texts: Sequence[str] = ZOO_TEXTS, vocab_size: int = 257) -> PreTrainedTokenizerFast:
    """One token a byte; the texts do not matter."""
    del vocab_size
    return train_byte_level_bpe(texts, 257)


def train_unigram(
    texts: Sequence[str] = ZOO_TEXTS,
    vocab_size: int = 500,
    *,
    byte_fallback: bool = True,
    prepend_scheme: str = "first",
    nfkc: bool = False,
) -> PreTrainedTokenizerFast:
    """SentencePiece-like Unigram: "▁" for spaces, one in front; with ``nfkc`` normalised as T5 or XLM-R do."""
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    tokenizer = Tokenizer(models.Unigram())
    if nfkc:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), " ")]
        )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - len(byte_pieces),
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    pieces = _in_fixed_order(json.loads(tokenizer.to_str())["model"]["vocab"])
    # The trainer knows no byte pieces: they go behind its pieces, less likely than the least likely of them.
    pieces += [(piece, pieces[-1][1] - 10) for piece in byte_pieces]
    tokenizer.model = models.Unigram(pieces, unk_id=0, byte_fallback=byte_fallback)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _add_beginning(tokenizer)
    return _wrapped(tokenizer, bos_token="<s>", unk_token="<unk>")


def train_t5_like(texts: Sequence[str] = ZOO_TEXTS, vocab_size: int = 500) -> PreTrainedTokenizerFast:
    """Unigram to whose pre-tokenizer white space is a border and nothing else, as T5's: a run of it is one space."""
    tokenizer = train_unigram(texts, vocab_size)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    return tokenizer


def train_sentencepiece_bpe(
    texts: Sequence[str] = ZOO_TEXTS, vocab_size: int = 600, *, prepend_normalizer: bool = False
) -> PreTrainedTokenizerFast:
    """BPE with "▁" and byte fallback, as Llama 2's; ``prepend_normalizer`` writes the "▁" with normalisers."""
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    specials = ["<unk>", "<s>", "</s>", *byte_pieces]
    _train(tokenizer, texts, trainers.BpeTrainer, vocab_size, specials, [])
    tokenizer = _without_added(tokenizer, byte_pieces)
    if prepend_normalizer:
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(steps)
        tokenizer.pre_tokenizer = None
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _add_beginning(tokenizer)
    return _wrapped(tokenizer, bos_token="<s>", unk_token="<unk>")


def train_wordpiece(texts: Sequence[str] = ZOO_TEXTS, vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """BERT's WordPiece: lower-cases, strips accents, drops control characters, skips spaces."""
    # The WordPiece trainer breaks ties at random; BPE does not, and its pieces serve with and without "##".
    source = Tokenizer(models.BPE())
    source.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    source.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    _train(source, texts, trainers.BpeTrainer, vocab_size // 2, specials, [])
    pieces = sorted(source.get_vocab(), key=source.token_to_id)[len(specials) :]
    vocabulary = {piece: rank for rank, piece in enumerate([*specials, *pieces, *(f"##{piece}" for piece in pieces)])}

    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = source.normalizer, source.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )


def train_character_level(texts: Sequence[str] = ZOO_TEXTS, vocab_size: int = 300) -> PreTrainedTokenizerFast:
    """One token a character; those not among the ``vocab_size`` most frequent of the texts are unknown."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=["<unk>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer, unk_token="<unk>")


def zoo() -> dict[str, PreTrainedTokenizerFast]:
    """One of each kind, by name."""
    return {
        "byte_level_bpe": train_byte_level_bpe(),
        "byte_level_bpe_nfc": train_byte_level_bpe(nfc=True),
        "byte_level_bpe_prefix_space": train_byte_level_bpe(add_prefix_space=True),
        "byte_level": train_byte_level(),
        "unigram": train_unigram(),
        "unigram_always": train_unigram(prepend_scheme="always"),
        "unigram_nfkc": train_unigram(byte_fallback=False, prepend_scheme="always", nfkc=True, vocab_size=300),
        "sentencepiece_bpe": train_sentencepiece_bpe(),
        "sentencepiece_bpe_prepend": train_sentencepiece_bpe(prepend_normalizer=True),
        "wordpiece": train_wordpiece(),
        "character_level": train_character_level(),
    }


def _train(
    tokenizer: Tokenizer, texts: Sequence[str], trainer: type, vocab_size: int, special: list[str], alphabet: list[str]
) -> None:
    options = {"initial_alphabet": alphabet} if alphabet else {}
    tokenizer.train_from_iterator(
        texts, trainer(vocab_size=vocab_size, special_tokens=special, show_progress=False, **options)
    )


def _wrapped(tokenizer: Tokenizer, **named: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **named)


def _add_beginning(tokenizer: Tokenizer) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )


def _in_fixed_order(vocabulary: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """A Unigram vocabulary without the trainer's random order of ties and last digits; the special tokens first."""
    pieces = sorted((-round(score, 1), piece) for piece, score in vocabulary[3:])
    return [(piece, score) for piece, score in vocabulary[:3]] + [(piece, -cost) for cost, piece in pieces]


def _without_added(tokenizer: Tokenizer, pieces: list[str]) -> Tokenizer:
    """The tokenizer with ``pieces`` in its vocabulary but not matched in texts as added tokens."""
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in pieces]
    return Tokenizer.from_str(json.dumps(content))

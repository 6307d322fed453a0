"""Small tokenizers of two kinds and a corpus in many scripts, for the tests of the stages that read text."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "The quick brown fox jumps over the lazy dog.\n\nAnd then?\tIt sleeps. ",
    "def add(a, b):\n    return a + b  # addition\n",
    "東京都は日本の首都です。",
    "naïve café — déjà vu",
    "مرحبا بالعالم · हिन्दी भाषा · สวัสดี",
    "emoji 😀 👩‍👩‍👧 👍🏽 🇩🇪 end",
    "0123456789 aaaa bbbb    cccc",
]


def rows(count: int) -> list[dict[str, str]]:
    """Prompt/response rows, every script in turn."""
    return [
        {
            "id": f"row-{number}",
            "prompt": f"Question {number}: {TEXTS[number % 3]}\n",
            "response": f"{TEXTS[number % len(TEXTS)]} {number} {TEXTS[(number * 5 + 1) % len(TEXTS)]}",
        }
        for number in range(count)
    ]


def write_jsonl(path: Path, values: list[dict]) -> Path:
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), "utf-8")
    return path


def save_byte_level(folder: Path, *, vocab_size: int = 400, chat_template: str | None = None) -> Path:
    """A byte-level BPE tokenizer like GPT-2's, with the tokens of a chat template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|end|>", "<|turn|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", extra_special_tokens=["<|turn|>"], model_max_length=512
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return folder


def save_unigram(folder: Path, *, vocab_size: int = 500) -> Path:
    """A Unigram tokenizer with byte fallback and "▁" for spaces, like SentencePiece's."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("▁+[^▁]*"), "isolated")
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", "</s>", *byte_pieces],
        unk_token="<unk>",
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS[:4] * 3, trainer)
    state = json.loads(backend.to_str())
    state["model"]["byte_fallback"] = True
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in byte_pieces]
    state["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    return folder


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|turn|>' + message['role'] + '\n' + message['content'] | trim + '<|end|>\n' }}"
    "{% endfor %}"
)

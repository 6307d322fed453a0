"""Arbitrary text for property tests, with what breaks tokenizers made likely."""

from hypothesis import strategies as st

FRAGMENTS: tuple[str, ...] = (
    *(
        "e\u0301",
        "a\u0301\u0323",
        "q\u0301\u0323\u0327",
        "\u1e69",
        "s\u0323\u0307",
        "\u0301",
        "o\u0302\u0323",
        "\u212b",
    ),
    *("\u1100\u1161\u11a8", "\u1112\u1161", "한국어", "\u1161", "각\u11a8"),
    *("我们今天", "学习", "東京", "か\u3099", "ﾊﾟ", "中文,", "\u3000", "𠀀"),
    *("مرحبا", "السَّلَام", "नमस्ते", "क्षि", "สวัสดี", "กำ", "שָׁלוֹם", "\u200fאב\u200e"),
    *("👩‍🚀", "👍🏽", "🇩🇪", "🇩", "😀😀", "❤️", "👨‍👩‍👧", "1️⃣", "𝒜", "𐍈"),
    *("\u200b", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u0000", "\u0001", "\x1b[0m", "\x7f", "\u0085"),
    *("\r\n", "\n\n", "\t", "\t\t", "  ", "    ", " ", "\u00a0", "\u2028", "\r"),
    *("ﬁ", "ﬃ", "½", "™", "…", "①", "İ", "ß", "ẞ", "ǅ", "\u0130\u0307", "Ａｂ", "\ufdfa", "\ufffd", "''", "``"),
    *("▁", "▁▁", "Ġ", "##", "##ing", "<0x0A>", "</s>", "<s>", "<unk>", "<|endoftext|>", "[UNK]", "[SEP]", "<|im_end|>"),
    *(
        "The quick",
        " brown",
        "fox",
        " jumps",
        ".",
        ", ",
        "Hello",
        " world",
        "don't",
        "3.14159",
        "1,000",
        "if x:\n    y",
    ),
    *("Él", "está", "mañana", "Übergröße", "naïve", "ŝ", "Å", "ñ"),
)


def texts(max_fragments: int = 10) -> st.SearchStrategy[str]:
    """Fragments of many scripts strung together, with any character Unicode has between them (no surrogates)."""
    anything = st.text(st.characters(exclude_categories=("Cs",)), max_size=4)
    parts = st.one_of(st.sampled_from(FRAGMENTS), st.sampled_from(FRAGMENTS), anything)
    return st.lists(parts, max_size=max_fragments).map("".join)

"""What every token covers: exact where the pieces spell the text, checked where they do not, refused otherwise."""

import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from sra_data.corpus.token_offsets import TextTokens, TokenReader, vocabulary_of
from sra_data.errors import TokenizerError
from sra_data.spans.recovery import recovered_offsets
from sra_data.spans.vocabulary import Vocabulary
from tests.reference import alignment as reference
from tests.text_strategy import texts
from tests.tokenizer_zoo import zoo

NAMES = tuple(zoo())
SPELLING = tuple(name for name in NAMES if name not in ("wordpiece", "unigram_nfkc"))


@cache
def trained(name: str) -> tuple[PreTrainedTokenizerFast, TokenReader]:
    tokenizer = zoo()[name]
    return tokenizer, TokenReader(tokenizer, vocabulary_of(tokenizer), name)


def read(reader: TokenReader, text: str, recognise_special: bool = False) -> TextTokens:
    return reader.read([text], recognise_special=recognise_special, names=["the text"])


def closing(tokens: TextTokens) -> list[tuple[int, int]]:
    """(token, end) of the tokens that close."""
    return [
        (index, end) for index, (end, closes) in enumerate(zip(tokens.ends[0], tokens.closes[0], strict=True)) if closes
    ]


@cache
def byte_strings_of(tokenizer: PreTrainedTokenizerFast) -> list[bytes | None]:
    return vocabulary_of(tokenizer).byte_strings


def check_against_raw_offsets(tokenizer: PreTrainedTokenizerFast, reader: TokenReader, text: str) -> bool:
    """Compare with what the tokenizer says itself; returns whether its pieces spell the text."""
    tokens = read(reader, text)
    backend = tokenizer.backend_tokenizer
    is_unigram = backend.model.__class__.__name__ == "Unigram"
    if is_unigram and any(string in text for string in tokenizer.all_special_tokens):
        return False  # the model itself reads them as special; the reader sees to it that it does not
    backend.encode_special_tokens = True
    encoding = backend.encode(text, add_special_tokens=False)
    assert tokens.ids[0].tolist() == encoding.ids
    byte_strings = byte_strings_of(tokenizer)
    spelled = reference.tokens_by_bytes(text, [byte_strings[token_id] or b"\xff" for token_id in encoding.ids])
    if spelled is None:
        return False
    found = zip(tokens.starts[0].tolist(), tokens.ends[0].tolist(), tokens.closes[0].tolist(), strict=True)
    assert list(found) == [(token.start, token.end, token.closes) for token in spelled]
    if unicodedata.is_normalized("NFC", text):
        # Where a normaliser had nothing to do, the tokenizer's own offsets say the same. Unigram alone gives the bytes
        # of neighbouring unknown characters the offsets of all of them: there the pieces know more.
        by_rule = reference.tokens_by_rule(text, encoding.offsets)
        if is_unigram:
            assert {token.end for token in by_rule if token.closes} <= {end for _, end in closing(tokens)}
        else:
            assert [token.end for token in by_rule] == tokens.ends[0].tolist()
            assert [token.closes for token in by_rule] == tokens.closes[0].tolist()
            assert [start for start, _ in encoding.offsets] == tokens.starts[0].tolist()
    return True


@settings(max_examples=150, deadline=None)
@given(text=texts(), name=st.sampled_from(SPELLING))
def test_offsets_from_pieces_are_the_tokenizers_own(text: str, name: str) -> None:
    check_against_raw_offsets(*trained(name), text)


@pytest.mark.parametrize("name", ["gpt2", "qwen1.5-1.8b", "tinyllama-1.1b"])
def test_offsets_from_pieces_are_the_published_tokenizers_own(shared_folder: Path, name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_folder / "tokenizers" / name)
    reader = TokenReader(tokenizer, vocabulary_of(tokenizer), name)

    @settings(max_examples=80, deadline=None)
    @given(texts())
    def law(text: str) -> None:
        spells = check_against_raw_offsets(tokenizer, reader, text)
        assert spells or not unicodedata.is_normalized("NFC", text) or "▁" in text

    law()


@settings(max_examples=100, deadline=None)
@given(text=texts(), name=st.sampled_from(["byte_level_bpe_nfc", "unigram_nfkc", "wordpiece"]))
def test_what_stands_before_and_behind_a_closing_token_is_what_the_pieces_say(text: str, name: str) -> None:
    tokenizer, reader = trained(name)
    tokens = read(reader, text)
    byte_strings = byte_strings_of(tokenizer)
    pieces = [byte_strings[token_id] for token_id in tokens.ids[0].tolist()]
    normalise = tokenizer.backend_tokenizer.normalizer.normalize_str
    ends = [end for _, end in closing(tokens)]
    assert ends == sorted(set(ends))
    assert all(0 < end <= len(text) for end in ends)
    for token, end in closing(tokens):
        for part, own in ((text[:end], pieces[: token + 1]), (text[end:], pieces[token + 1 :])):
            if None not in own:  # an unknown piece says nothing about its characters
                assert _bare(normalise(part)) == _bare(b"".join(own).decode()), (end, own)


def _bare(text: str) -> str:
    return "".join(character for character in text if not character.isspace() and character != "▁")


def test_a_text_that_spells_the_name_of_a_byte_is_located_as_written() -> None:
    tokenizer, reader = trained("unigram")
    tokens = read(reader, "a <0x41><0x0A>b")
    assert tokenizer.convert_tokens_to_ids("<0x41>") in tokens.ids[0], "the model takes it for the byte"
    assert [end for _, end in closing(tokens)][-3:] == [8, 14, 15]
    assert read(reader, "<0x41>").ends[0].tolist()[-1] == 6


def test_reordered_marks_close_only_together() -> None:
    _, reader = trained("byte_level_bpe_nfc")
    tokens = read(reader, "q\u0301\u0323z")  # NFC swaps the marks; the tokenizer's offsets do not
    assert [end for _, end in closing(tokens)] == [1, 3, 4]
    tokens = read(reader, "a\u0301\u0323z")
    assert [end for _, end in closing(tokens)] == [3, 4]


@pytest.mark.parametrize(
    ("normaliser", "text", "ends"),
    [
        (normalizers.Replace("``", '"'), "a``b", [1, 3, 4]),
        (normalizers.Replace('"', "``"), 'a"b', [1, 2, 3]),
        (normalizers.Replace(Regex(" {2,}"), " "), "a   b", [1, 4, 5]),
        (normalizers.NFKC(), "aﬃb½", [1, 2, 3, 4]),
        (normalizers.Lowercase(), "aİB", [1, 2, 3]),
        (normalizers.Replace("b", ""), "abc", [1, 3]),
        (normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), "éa\u0301b", [1, 3, 4]),
    ],
)
def test_normalisers_that_change_length_are_exact_in_the_characters_covered(normaliser, text, ends) -> None:
    alphabet = {character: index for index, character in enumerate(["<unk>", *'abci`" 12⁄f\u0307'])}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[], unk_token="<unk>"))
    backend.normalizer = normaliser
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    tokens = read(TokenReader(tokenizer, vocabulary_of(tokenizer), "normalising"), text)
    assert [end for _, end in closing(tokens)] == ends


def test_trimmed_offsets_are_mended() -> None:
    from tokenizers import processors

    tokenizer = zoo()["byte_level_bpe_nfc"]
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    reader = TokenReader(tokenizer, vocabulary_of(tokenizer), "trimming")
    text = "e\u0301 a \n b\n"
    tokens = read(reader, text)
    assert [end for _, end in closing(tokens)][-1] == len(text)
    assert all(
        unicodedata.normalize("NFC", text[:end]).encode()
        == b"".join(byte_strings_of(tokenizer)[i] or b"" for i in tokens.ids[0][: token + 1].tolist())
        for token, end in closing(tokens)
    )


def test_special_strings_stay_text_unless_they_are_to_be_recognised() -> None:
    tokenizer, reader = trained("byte_level_bpe")
    text = "a</s>b"
    assert tokenizer.eos_token_id not in read(reader, text).ids[0]
    tokens = read(reader, text, recognise_special=True)
    assert tokens.ids[0].tolist().count(tokenizer.eos_token_id) == 1
    assert tokens.is_special[0].tolist() == [False, True, False]
    assert tokens.ends[0].tolist() == [1, 5, 6]


def test_word_piece_recognises_special_strings_in_a_chat() -> None:
    _, reader = trained("wordpiece")
    tokens = read(reader, "[CLS] Fox\u0301 [SEP] dog", recognise_special=True)
    assert tokens.is_special[0].tolist().count(True) == 2
    assert tokens.ends[0][tokens.closes[0]].tolist()[-1] == 20


# --- slow tokenizers, and tokenizers without usable offsets -----------------------------------------------------------


class SlowWords:
    """A slow tokenizer in miniature: words of one lower-cased text, unknown ones "[UNK]", no offsets."""

    is_fast = False
    unk_token_id = 0
    bos_token_id = eos_token_id = pad_token_id = None

    def __init__(self, words: list[str], special: dict[int, str] | None = None) -> None:
        self.words = ["[UNK]", *words]
        self.all_special_ids = [*(special or {})]
        self.all_special_tokens = [*(special or {}).values()]
        self.added_tokens_decoder: dict[int, object] = {}

    def get_vocab(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [self.words.index(w) if w in self.words else 0 for w in text.lower().split()]}


def slow_reader(*words: str, special: dict[int, str] | None = None) -> TokenReader:
    tokenizer = SlowWords(list(words), special)
    return TokenReader(tokenizer, vocabulary_of(tokenizer), "slow")


def test_offsets_of_a_slow_tokenizer_are_recovered_from_its_pieces() -> None:
    tokens = read(slow_reader("the", "fox", "e\u0301"), "The  fox E\u0301")
    assert list(zip(tokens.starts[0].tolist(), tokens.ends[0].tolist(), tokens.closes[0].tolist(), strict=True)) == [
        (0, 3, True),
        (5, 8, True),
        (9, 11, True),
    ]


def test_a_place_that_is_a_guess_gets_no_boundary() -> None:
    tokens = read(slow_reader("a"), "ab a")  # "[UNK] a": "a" might be character 0 or 3
    assert not tokens.closes.values.any()
    tokens = read(slow_reader("fox"), "cat fox")
    assert tokens.closes[0].tolist() == [False, True]
    assert tokens.ends[0].tolist()[1] == 7


def test_pieces_that_are_not_in_the_text_are_refused_by_name() -> None:
    tokenizer = SlowWords(["one", "two"])
    tokenizer.words[1] = "uno"
    reader = TokenReader(tokenizer, Vocabulary(["", "uno", "two"], [None, b"uno", b"two"]), "org/slow")
    tokenizer.words[1] = "one"
    with pytest.raises(
        TokenizerError, match=r"row-7: the tokens of the slow tokenizer org/slow cannot be matched .*leave"
    ):
        reader.read(["two one"], recognise_special=False, names=["row-7"])
    tokens = reader.read(["two", "two one", "two two"], recognise_special=False, skip_unlocatable=True)
    assert tokens.unlocatable.tolist() == [False, True, False]
    assert [len(row) for row in tokens.ids] == [1, 0, 2]
    assert [row.tolist() for row in tokens.ends] == [[3], [], [3, 7]]


def test_a_fast_tokenizer_that_rewrites_text_is_refused_rather_than_believed() -> None:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "z": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    pieces = Vocabulary([None, "q", "z"], [None, b"q", b"z"])  # says "q" where the text has "a"
    with pytest.raises(TokenizerError, match="text 0 of the batch: the tokens of the fast tokenizer odd cannot"):
        TokenReader(tokenizer, pieces, "odd").read(["za"], recognise_special=False, names=None)


@settings(max_examples=60, deadline=None)
@given(texts())
def test_byte_tokens_of_a_slow_tokenizer_are_exact(text: str) -> None:
    tokenizer = ByT5Tokenizer()
    tokens = read(TokenReader(tokenizer, vocabulary_of(tokenizer), "byt5"), text)
    expected = reference.tokens_by_bytes(text, [bytes([byte]) for byte in text.encode()])
    assert expected is not None
    assert tokens.ends[0].tolist() == [token.end for token in expected]
    assert tokens.closes[0].tolist() == [token.closes for token in expected]


@settings(max_examples=150, deadline=None)
@given(text=st.text("ab é\u0301ﬁ1", max_size=12), data=st.data())
def test_recovered_boundaries_are_true_wherever_a_text_is_cut(text: str, data: st.DataObject) -> None:
    """Cut a text anywhere, hide some pieces, lower others: a boundary that comes back is one that was cut."""
    cuts = sorted(data.draw(st.sets(st.integers(1, max(len(text) - 1, 1)), max_size=6)) | {0, len(text)})
    parts = [text[start:stop] for start, stop in pairwise(cuts)]
    surfaces = [
        data.draw(st.sampled_from([part.encode(), part.lower().encode(), part.strip().encode(), None]))
        for part in parts
    ]
    recovered = recovered_offsets(text, surfaces)
    assert recovered is not None
    starts, ends, closes = recovered
    for token in np.flatnonzero(closes).tolist():
        end = cuts[token + 1]
        while end < len(text) and unicodedata.category(text[end]).startswith("M") and ends[token] > end:
            end += 1
        trimmed = len(text[: cuts[token + 1]].rstrip())
        assert ends[token] in (end, trimmed), (token, parts, surfaces)
    assert all(np.diff(starts) >= 0)
    assert all(np.diff(ends) >= 0)

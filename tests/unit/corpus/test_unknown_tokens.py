"""The unknown token stands for text, whoever names it: the tokenizer's configuration or its model alone."""

from __future__ import annotations

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sra_data.corpus.tokenization import SideTokenizer

PIECES = ["<unk>", "</s>", "a", "b", "c"]
MODELS = {
    "BPE": models.BPE({piece: number for number, piece in enumerate(PIECES)}, [], unk_token="<unk>"),
    "WordLevel": models.WordLevel({piece: number for number, piece in enumerate(PIECES)}, unk_token="<unk>"),
    "WordPiece": models.WordPiece({piece: number for number, piece in enumerate(PIECES)}, unk_token="<unk>"),
    "Unigram": models.Unigram([(piece, -1.0) for piece in PIECES], unk_id=0),
}


def side_of(model: str, *, is_special: bool = True, named: bool = False) -> SideTokenizer:
    backend = Tokenizer(MODELS[model])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.add_special_tokens(["<unk>", "</s>"] if is_special else ["</s>"])
    names = {"unk_token": "<unk>"} if named else {}
    return SideTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", **names), model)


@pytest.mark.parametrize("is_special", [True, False], ids=["special", "piece"])
@pytest.mark.parametrize("model", MODELS)
def test_an_unknown_token_that_only_the_model_names_stops_no_corpus(model: str, is_special: bool) -> None:
    side = side_of(model, is_special=is_special)
    assert side.tokenizer.unk_token_id is None
    texts, ranges = ["abc", "a\u4e2dbc"], [[(0, 3)], [(0, 4)]]
    batch = side.encode(texts, response_ranges=ranges, is_chat=False)
    assert batch.status == ["ok", "ok"]
    assert batch.ids[1].tolist() == [2, 0, 3, 4, 1]
    named = side_of(model, is_special=True, named=True).encode(texts, response_ranges=ranges, is_chat=False)
    for had, got in ((named.offsets.ends, batch.offsets.ends), (named.offsets.closes, batch.offsets.closes)):
        assert got.values.tolist() == had.values.tolist()
    assert batch.offsets.is_special[1].tolist() == [False] * 4 + [True]


@pytest.mark.parametrize("model", MODELS)
def test_an_end_of_sequence_that_is_the_unknown_token_too_stays_special(model: str) -> None:
    backend = Tokenizer(MODELS[model])
    backend.add_special_tokens(["<unk>"])
    side = SideTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<unk>"), model)
    assert side.special_tokens == {0: "<unk>"}

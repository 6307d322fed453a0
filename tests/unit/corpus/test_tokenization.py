"""Whole texts to examples: beginnings and ends, responses and labels, truncation, chats, bad names."""

import pickle
import warnings
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_data.corpus.chat import CLOSED, NOT_CLOSED
from sra_data.corpus.tokenization import (
    SideTokenizer,
    TextBatch,
    TokenizedBatch,
    replace_lone_surrogates,
    split_revision,
)
from sra_data.errors import TokenizerError
from tests.text_strategy import texts
from tests.tokenizer_zoo import train_byte_level, train_byte_level_bpe, train_unigram, train_wordpiece

PROMPT, RESPONSE = "Name a fox.", " The quick one."


@pytest.fixture(scope="module")
def byte_level() -> SideTokenizer:
    return SideTokenizer(train_byte_level(), "bytes")


@pytest.fixture(scope="module")
def unigram() -> SideTokenizer:
    return SideTokenizer(train_unigram(), "unigram")


def encode(side: SideTokenizer, prompt: str, response: str, **options) -> TokenizedBatch:
    ranges = [[(len(prompt), len(prompt) + len(response))]]
    return side.encode([prompt + response], response_ranges=ranges, is_chat=False, **options)


def text_of(side: SideTokenizer, ids: np.ndarray) -> str:
    return b"".join(side.vocabulary.byte_strings[token_id] or b"" for token_id in ids.tolist()).decode()


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_revision_is_split_off_a_hub_id_but_not_off_a_folder(tmp_path: Path) -> None:
    assert split_revision("org/model") == ("org/model", None)
    assert split_revision("org/model@v1.0") == ("org/model", "v1.0")
    assert split_revision("org/model@refs/pr/1") == ("org/model", "refs/pr/1")
    assert split_revision("@v1") == ("@v1", None)
    folder = tmp_path / "model@v1"
    folder.mkdir()
    assert split_revision(str(folder)) == (str(folder), None)


@pytest.mark.parametrize("name", ["no/such-model", "no/such-model@v1", "not-here", "./nowhere/at/all", "/nowhere"])
def test_an_unknown_name_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(TokenizerError, match="neither a folder nor a tokenizer reachable on the Hub") as caught:
        SideTokenizer.load(name)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(split_revision(name)[0])


def test_a_folder_without_a_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    for folder in (tmp_path, tmp_path.parent):
        with pytest.raises(
            TokenizerError, match=r"holds no tokenizer that transformers can open .*save_pretrained"
        ) as caught:
            SideTokenizer.load(str(folder))
        assert "\n" not in str(caught.value)


def test_a_tokenizer_comes_back_the_same_from_its_folder_and_from_a_pickle(tmp_path: Path) -> None:
    train_unigram().save_pretrained(tmp_path)
    side = SideTokenizer.load(str(tmp_path))
    copy = pickle.loads(pickle.dumps(side))
    assert len(pickle.dumps(side)) < 1000, "a worker opens the files, it is not sent them"
    assert copy.fingerprint == side.fingerprint == SideTokenizer(train_unigram(), "x").fingerprint
    first, second = (encode(each, PROMPT, RESPONSE) for each in (side, copy))
    assert np.array_equal(first.ids.values, second.ids.values)
    assert copy.max_positions is None

    train_byte_level().save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match="files changed while it was in use"):
        pickle.loads(pickle.dumps(side))


def test_a_tokenizer_made_in_memory_survives_a_pickle(byte_level: SideTokenizer) -> None:
    copy = pickle.loads(pickle.dumps(byte_level))
    assert len(copy.vocabulary) == len(byte_level.vocabulary)
    assert copy.fingerprint == byte_level.fingerprint


def test_the_fingerprint_tells_vocabularies_and_templates_apart() -> None:
    tokenizer = train_byte_level_bpe()
    prints = {SideTokenizer(tokenizer, "a").fingerprint, SideTokenizer(train_byte_level(), "a").fingerprint}
    tokenizer.chat_template = "{{ messages }}"
    side = SideTokenizer(tokenizer, "a")
    assert side.chat_template == "{{ messages }}"
    assert len(prints | {side.fingerprint}) == 3


def test_positions_come_from_the_model_beside_the_tokenizer_else_from_the_tokenizer(tmp_path: Path) -> None:
    from transformers import GPT2Config

    tokenizer = train_byte_level()
    tokenizer.model_max_length = 99
    tokenizer.save_pretrained(tmp_path)
    assert SideTokenizer.load(str(tmp_path)).max_positions == 99
    GPT2Config(n_positions=77).save_pretrained(tmp_path)
    assert SideTokenizer.load(str(tmp_path)).max_positions == 77
    assert SideTokenizer(train_byte_level(), "no folder of this name").max_positions is None


# --- what a tokenizer puts around a text ------------------------------------------------------------------------------


def test_each_tokenizer_adds_its_own_beginning_and_its_end_of_sequence(
    byte_level: SideTokenizer, unigram: SideTokenizer
) -> None:
    assert (byte_level.prefix_ids, byte_level.suffix_ids) == ((), ())
    assert unigram.prefix_ids == (unigram.tokenizer.bos_token_id,)
    batch = encode(unigram, PROMPT, RESPONSE)
    ids, special = batch.ids[0], batch.offsets.is_special[0]
    assert (ids[0], ids[-1]) == (unigram.tokenizer.bos_token_id, unigram.eos_id)
    assert np.flatnonzero(special).tolist() == [0, len(ids) - 1]
    assert not batch.offsets.closes[0][special].any()
    assert batch.offsets.starts[0][special].tolist() == batch.offsets.ends[0][special].tolist() == [0, 0]
    assert batch.ids.values.dtype == np.int32
    assert batch.offsets.ends.values.dtype == np.int32


def test_a_suffix_of_the_tokenizer_stays_and_is_no_label() -> None:
    side = SideTokenizer(train_wordpiece(), "wordpiece")
    batch = encode(side, PROMPT, RESPONSE)
    assert side.eos_id is None
    assert (batch.ids[0][0], batch.ids[0][-1]) == (side.prefix_ids[0], side.suffix_ids[0])
    assert batch.label_spans[0].tolist() == batch.response_spans[0].tolist()


def test_the_end_of_sequence_is_not_added_twice() -> None:
    from tokenizers import processors

    tokenizer = train_unigram()
    pair = [("<s>", 1), ("</s>", 2)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=pair
    )
    side = SideTokenizer(tokenizer, "t5-like")
    batch = encode(side, PROMPT, RESPONSE)
    assert batch.ids[0].tolist().count(2) == 1
    assert batch.label_spans[0][0, 1] == len(batch.ids[0])


def test_responses_and_labels_are_the_responses_tokens_and_what_closes_them(byte_level: SideTokenizer) -> None:
    batch = encode(byte_level, PROMPT, RESPONSE)
    start, stop = batch.response_spans[0][0]
    assert text_of(byte_level, batch.ids[0][start:stop]) == RESPONSE
    assert batch.label_spans[0].tolist() == [[start, stop + 1]]
    assert batch.ids[0][stop] == byte_level.eos_id
    assert (batch.status, dict(batch.counts)) == (["ok"], {})


def test_a_token_across_the_border_belongs_to_the_response() -> None:
    side = SideTokenizer(train_byte_level_bpe(), "bpe")
    text = "The quick"
    whole = side.encode([text], response_ranges=[[(0, 9)]], is_chat=False)
    inside = next(
        int(end) - 1
        for end, start in zip(whole.offsets.ends[0], whole.offsets.starts[0], strict=True)
        if end - start > 1
    )
    batch = side.encode([text], response_ranges=[[(inside, 9)]], is_chat=False)
    start = batch.response_spans[0][0, 0]
    assert batch.offsets.starts[0][start] < inside < batch.offsets.ends[0][start]


@pytest.mark.parametrize("marker", ["</s>", "<s>", "<unk>", "</s></s>", "a</s>b"])
def test_a_special_tokens_string_stays_text(unigram: SideTokenizer, byte_level: SideTokenizer, marker: str) -> None:
    for side in (unigram, byte_level):
        batch = encode(side, "Write:", marker)
        start, stop = batch.response_spans[0][0]
        assert text_of(side, batch.ids[0][start:stop]).strip() == marker
        assert not set(batch.ids[0][start:stop].tolist()) & set(side.special_tokens)
        assert not batch.offsets.is_special[0][start:stop].any()


def test_a_model_that_would_read_special_strings_cuts_all_other_text_as_before(unigram: SideTokenizer) -> None:
    text = "The quick <0x41> fox: 我们今天 naïve 😀"
    backend = unigram.tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    assert "</s>" in backend.encode("a</s>", add_special_tokens=False).tokens, "this model would"
    batch = encode(unigram, "", text)
    assert batch.ids[0][1:-1].tolist() == backend.encode(text, add_special_tokens=False).ids


def test_a_slow_tokenizer_that_reads_special_strings_all_the_same_is_refused_by_name() -> None:
    from tests.unit.corpus.test_tokenization_offsets import SlowWords, slow_reader

    assert SlowWords(["a"]).is_fast is False
    reader = slow_reader("a", "<end>", special={2: "<end>"})
    assert reader.read(["a"], recognise_special=False, names=None).ids[0].tolist() == [1]
    with pytest.raises(
        TokenizerError, match=r"row 9: slow reads a string .* special token '<end>' .*--on-invalid skip"
    ):
        reader.read(["a <end>"], recognise_special=False, names=["row 9"])
    tokens = reader.read(["a <end>", "a"], recognise_special=False, skip_unlocatable=True)
    assert tokens.unlocatable.tolist() == [True, False]
    assert [ids.tolist() for ids in tokens.ids] == [[], [1]]


def test_a_slow_tokenizer_is_opened_from_its_folder(tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path)
    side = SideTokenizer.load(str(tmp_path))
    assert not side.tokenizer.is_fast
    batch = encode(side, "hé", "llo 😀</s>")
    assert side.suffix_ids == (side.eos_id,)
    assert batch.ids[0].tolist().count(side.eos_id) == 1
    assert batch.offsets.ends[0].tolist() == [1, 2, 2, 3, 4, 5, 6, 7, 7, 7, 7, 8, 9, 10, 11, 0]
    assert pickle.loads(pickle.dumps(side)).fingerprint == side.fingerprint


def test_an_empty_response_has_an_empty_span_where_it_would_stand(byte_level: SideTokenizer) -> None:
    batch = encode(byte_level, "ab", "")
    assert batch.response_spans[0].tolist() == [[2, 2]]
    assert batch.label_spans[0].tolist() == [[2, 3]]
    nothing = byte_level.encode(["ab", ""], response_ranges=[[], []], is_chat=False)
    assert [len(row) for row in nothing.response_spans] == [0, 0]
    assert nothing.ids.lengths.tolist() == [3, 1]
    assert len(byte_level.encode([], response_ranges=[], is_chat=False).ids) == 0


# --- lone surrogates --------------------------------------------------------------------------------------------------


def test_lone_surrogates_become_replacement_characters_and_are_counted(byte_level: SideTokenizer) -> None:
    assert replace_lone_surrogates(["a\ud800b\udfff", "c"]) == (["a\ufffdb\ufffd", "c"], 2)
    assert replace_lone_surrogates(["plain", "😀"]) == (["plain", "😀"], 0)
    batch = encode(byte_level, "a\ud83d", "\ude00b")
    assert batch.counts["lone_surrogates"] == 2
    start, stop = batch.response_spans[0][0]
    assert text_of(byte_level, batch.ids[0][start:stop]) == "\ufffdb"


def test_batches_cut_at_once_are_those_cut_alone_each_with_its_own_counts(byte_level: SideTokenizer) -> None:
    batches = [(["abcd", "a\ud800"], [[(1, 4)], [(0, 2)]]), ([], []), (["abcdefgh"], [[(4, 8)]]), (["\ud800"], [[]])]
    options = {"is_chat": False, "max_length": 6, "overlong": "skip"}
    given = [
        TextBatch(texts, ranges, [[(stop, NOT_CLOSED) for _, stop in row] for row in ranges])
        for texts, ranges in batches
    ]
    together = byte_level.encode_batches(given, **options)
    alone = [byte_level.encode(texts, response_ranges=ranges, **options) for texts, ranges in batches]
    assert [dict(batch.counts) for batch in together] == [dict(batch.counts) for batch in alone]
    assert [dict(batch.counts) for batch in alone][1:] == [{}, {"overlong_skipped": 1}, {"lone_surrogates": 1}]
    for found, expected in zip(together, alone, strict=True):
        assert found.status == expected.status
        columns = (("ids",), ("offsets", "starts"), ("offsets", "ends"), ("response_spans",), ("label_spans",))
        for path in columns:
            one, other = (reduce(getattr, path, batch) for batch in (found, expected))
            assert one.splits.tolist() == other.splits.tolist()
            assert one.values.tolist() == other.values.tolist()


# --- truncation -------------------------------------------------------------------------------------------------------


def test_examples_that_fit_are_left_alone_by_every_policy(byte_level: SideTokenizer) -> None:
    whole = encode(byte_level, "abcd", "efgh")  # 8 + end of sequence
    for overlong in ("skip", "truncate-prompt", "truncate"):
        batch = encode(byte_level, "abcd", "efgh", max_length=9, overlong=overlong)
        assert np.array_equal(batch.ids.values, whole.ids.values)
        assert not batch.counts


def test_skip_leaves_the_example_out_with_its_reason(byte_level: SideTokenizer) -> None:
    batch = encode(byte_level, "abcd", "efgh", max_length=8, overlong="skip")
    assert batch.status == ["skipped:overlong"]
    assert batch.ids.lengths.tolist() == batch.offsets.ends.lengths.tolist() == [0]
    assert batch.response_spans[0].tolist() == batch.label_spans[0].tolist() == [[0, 0]]
    assert dict(batch.counts) == {"overlong_skipped": 1}


def test_truncate_cuts_from_the_right_and_drops_the_end_of_sequence_first(byte_level: SideTokenizer) -> None:
    batch = encode(byte_level, "abcd", "efgh", max_length=8, overlong="truncate")
    assert text_of(byte_level, batch.ids[0]) == "abcdefgh"
    assert byte_level.eos_id not in batch.ids[0]
    assert batch.label_spans[0].tolist() == batch.response_spans[0].tolist() == [[4, 8]]
    batch = encode(byte_level, "abcd", "efgh", max_length=6, overlong="truncate")
    assert text_of(byte_level, batch.ids[0]) == "abcdef"
    assert batch.label_spans[0].tolist() == [[4, 6]]
    assert dict(batch.counts) == {"overlong_truncated": 1}


def test_truncate_prompt_cuts_the_prompt_from_the_left_and_keeps_the_rest(unigram: SideTokenizer) -> None:
    whole = encode(unigram, PROMPT, RESPONSE)
    limit = len(whole.ids[0]) - 3
    batch = encode(unigram, PROMPT, RESPONSE, max_length=limit, overlong="truncate-prompt")
    assert batch.ids[0].tolist() == [whole.ids[0][0], *whole.ids[0][4:].tolist()]
    assert batch.ids[0][-1] == unigram.eos_id
    assert np.array_equal(batch.offsets.ends[0][1:], whole.offsets.ends[0][4:]), "ends count in the whole text"
    assert (batch.response_spans[0] == whole.response_spans[0] - 3).all()
    assert (batch.label_spans[0] == whole.label_spans[0] - 3).all()
    assert dict(batch.counts) == {"overlong_prompt_truncated": 1}


def test_truncate_prompt_cuts_the_response_too_where_it_alone_is_too_long(byte_level: SideTokenizer) -> None:
    batch = encode(byte_level, "abcd", "efgh", max_length=3, overlong="truncate-prompt")
    assert text_of(byte_level, batch.ids[0]) == "efg"
    assert batch.label_spans[0].tolist() == [[0, 3]]
    assert dict(batch.counts) == {"overlong_prompt_truncated": 1, "overlong_truncated": 1}


def test_an_example_without_a_response_token_left_is_skipped(byte_level: SideTokenizer) -> None:
    batch = encode(byte_level, "abcd", "efgh", max_length=4, overlong="truncate")
    assert batch.status == ["skipped:overlong"]
    assert batch.ids.lengths.tolist() == [0]
    assert dict(batch.counts) == {"overlong_skipped": 1}


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(texts(4), texts(4)), min_size=1, max_size=4),
    max_length=st.integers(0, 40),
    overlong=st.sampled_from(["skip", "truncate-prompt", "truncate"]),
    data=st.data(),
)
def test_truncated_examples_are_runs_of_the_whole_ones(byte_level, unigram, rows, max_length, overlong, data) -> None:
    side = data.draw(st.sampled_from([byte_level, unigram]))
    whole_texts = [prompt + response for prompt, response in rows]
    ranges = [[(len(prompt), len(prompt) + len(response))] for prompt, response in rows]
    given_options = {"response_ranges": ranges, "is_chat": False}
    whole = side.encode(whole_texts, **given_options)
    cut = side.encode(whole_texts, **given_options, max_length=max_length, overlong=overlong)
    num_prefix = len(side.prefix_ids)
    for row, status in enumerate(cut.status):
        ids = cut.ids[row].tolist()
        assert len(ids) <= max_length
        assert status in ("ok", "skipped:overlong")
        if status != "ok":
            assert ids == []
            continue
        fits = len(whole.ids[row]) <= max_length
        assert fits or overlong != "skip"
        assert ids[:num_prefix] == list(side.prefix_ids)
        dropped = (
            len(whole.ids[row]) - len(ids) if overlong == "truncate-prompt" and ids[-1:] == [side.eos_id] else None
        )
        start, stop = cut.response_spans[row][0].tolist()
        whole_start, whole_stop = whole.response_spans[row][0].tolist()
        if stop > start:
            assert ids[start:stop] == whole.ids[row][whole_start : whole_start + stop - start].tolist()
            assert np.array_equal(
                cut.offsets.ends[row][start:stop], whole.offsets.ends[row][whole_start : whole_start + stop - start]
            )
        label_start, label_stop = cut.label_spans[row][0].tolist()
        assert label_start == start
        assert label_stop - stop == (1 if ids[-1:] == [side.eos_id] else 0)
        if dropped is not None:
            assert stop - start == whole_stop - whole_start, "the end is there, so the response is whole"
    assert sum(status != "ok" for status in cut.status) == cut.counts["overlong_skipped"]


# --- chats ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chatty() -> SideTokenizer:
    tokenizer = train_byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})
    return SideTokenizer(tokenizer, "chatty")


def chat(side: SideTokenizer, text: str, responses: list[str], **options) -> TokenizedBatch:
    ranges, place = [], 0
    for response in responses:
        place = text.index(response, place)
        ranges.append((place, place + len(response)))
        place += len(response)
    closings = [
        (stop + len("<|end|>"), CLOSED) if text.startswith("<|end|>", stop) else (stop, NOT_CLOSED)
        for _, stop in ranges
    ]
    return side.encode([text], response_ranges=[ranges], closings=[closings], is_chat=True, **options)


def test_a_rendered_chat_gets_nothing_around_it_and_its_turns_are_closed_by_their_own_tokens(
    chatty: SideTokenizer,
) -> None:
    end = chatty.tokenizer.convert_tokens_to_ids("<|end|>")
    batch = chat(chatty, "<|start|>u:hi<|end|>\n<|start|>a:yo<|end|>\n<|start|>a:ha<|end|>\n", ["yo", "ha"])
    ids = batch.ids[0]
    assert chatty.eos_id not in ids
    assert batch.offsets.is_special[0].sum() == 6
    assert (batch.offsets.ends[0][batch.offsets.is_special[0]] == 0).all()
    for (start, stop), (label_start, label_stop), said in zip(
        batch.response_spans[0].tolist(), batch.label_spans[0].tolist(), ["yo", "ha"], strict=True
    ):
        assert text_of(chatty, ids[start:stop]) == said
        assert (label_start, label_stop) == (start, stop + 1)
        assert ids[stop] == end


def test_an_end_of_sequence_is_added_only_where_the_last_turn_ends_the_text(chatty: SideTokenizer) -> None:
    batch = chat(chatty, "u:hi\na:yo\na:ha", ["yo", "ha"])
    assert batch.ids[0][-1] == chatty.eos_id
    sizes = (batch.label_spans[0][:, 1] - batch.response_spans[0][:, 1]).tolist()
    assert sizes == [0, 1]
    batch = chat(chatty, "u:hi\na:yo\n", ["yo"])
    assert chatty.eos_id not in batch.ids[0]
    assert batch.label_spans[0].tolist() == batch.response_spans[0].tolist()


def test_turns_that_were_cut_off_have_no_tokens(chatty: SideTokenizer) -> None:
    text = "<|start|>a:yo<|end|><|start|>a:ha<|end|>"
    batch = chat(chatty, text, ["yo", "ha"], max_length=7, overlong="truncate")
    assert batch.response_spans[0].tolist() == [[3, 5], [0, 0]]
    assert batch.label_spans[0].tolist() == [[3, 6], [0, 0]]
    assert batch.status == ["ok"]


def test_a_turn_cut_in_the_middle_is_not_closed(chatty: SideTokenizer) -> None:
    batch = chat(chatty, "a:yo<|end|>", ["yo"], max_length=3, overlong="truncate")
    assert batch.label_spans[0].tolist() == [[2, 3]]


def test_truncate_prompt_keeps_a_beginning_token_the_template_wrote() -> None:
    tokenizer = train_unigram()
    tokenizer.chat_template = "its own, which writes the beginning"
    side = SideTokenizer(tokenizer, "unigram")
    text = "<s> the quick brown fox: ha</s>"
    whole = chat(side, text, ["ha"])
    batch = chat(side, text, ["ha"], max_length=len(whole.ids[0]) - 2, overlong="truncate-prompt")
    assert batch.ids[0].tolist() == [whole.ids[0][0], *whole.ids[0][3:].tolist()]
    assert batch.ids[0][0] == side.tokenizer.bos_token_id


# --- habits -----------------------------------------------------------------------------------------------------------


def test_long_texts_bring_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = train_byte_level()
    tokenizer.model_max_length = 16
    tokenizer.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        side = SideTokenizer.load(str(tmp_path))
        batch = encode(side, "a" * 100, "b" * 100)
        side.tokenizer("a" * 100)
    assert len(batch.ids[0]) == 201
    assert side.max_positions == 16
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_a_million_characters_are_one_example_like_any_other(byte_level: SideTokenizer, unigram: SideTokenizer) -> None:
    text = "e\u0301 foxes " * 111_112
    assert len(text) >= 1_000_000
    batch = unigram.encode([text], response_ranges=[[(10, len(text))]], is_chat=False)
    assert batch.offsets.ends[0].max() == len(text)
    batch = byte_level.encode([text], response_ranges=[[(10, len(text))]], is_chat=False, max_length=100)
    assert (len(batch.ids[0]), batch.offsets.ends[0].max()) == (100, 90)


@pytest.mark.parametrize(
    ("name", "prefix", "suffix", "positions"),
    [("gpt2", (), (), 1024), ("qwen1.5-1.8b", (), (), 32768), ("tinyllama-1.1b", (1,), (), 2048)],
)
def test_published_tokenizers_are_read_as_they_are(shared_folder, name, prefix, suffix, positions) -> None:
    side = SideTokenizer.load(str(shared_folder / "tokenizers" / name))
    assert (side.prefix_ids, side.suffix_ids, side.max_positions) == (prefix, suffix, positions)
    batch = encode(side, PROMPT, RESPONSE + " <|endoftext|></s>")
    assert batch.ids[0].tolist().count(side.eos_id) == 1
    assert batch.ids[0][-1] == side.eos_id

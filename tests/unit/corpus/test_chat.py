"""Chats: every assistant turn is found where the template really put it, and nothing else is a response."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sra_data.corpus.chat import Renderer, locate, render
from sra_data.corpus.examples import Row

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + CONTENT + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass
class Side:
    """The part of a side's tokenizer that rendering needs."""

    chat_template: str | None
    tokenizer: Any = field(default=None)

    def __post_init__(self):
        backend = Tokenizer(models.BPE({byte: n for n, byte in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, eos_token="</s>", extra_special_tokens=["<|im_start|>", "<|im_end|>"]
        )


def side(content: str = "message['content']", template: str = CHATML) -> Side:
    return Side(template.replace("CONTENT", content))


def chat(*turns, tools=None) -> Row:
    messages = [
        dict(zip(("role", "content"), turn, strict=True)) if isinstance(turn, tuple) else turn for turn in turns
    ]
    return Row("0", "a.jsonl:1", None, None, messages, tools=tools)


def responses(row: Row, of: Side) -> list[str]:
    rendered = render([row], of)
    assert rendered.statuses == ["ok"]
    return [rendered.texts[0][start:stop] for start, stop in rendered.ranges[0].tolist()]


TURNS = (("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "Hello!"), ("assistant", "Hi\n Hi"))


def test_a_plain_row_is_prompt_and_response_on_every_side():
    rendered = render([Row("0", "", "Say é:\n", "é 😀")], side())
    assert rendered.texts == ["Say é:\né 😀"]
    assert rendered.ranges[0].tolist() == [[7, 10]]
    assert (rendered.turns, rendered.is_chat) == ([[0]], [False])


def test_special_token_text_in_a_plain_row_stays():
    assert render([Row("0", "", "a</s>", "<|im_end|>")], side()).statuses == ["ok"]


def test_every_assistant_turn_is_a_response_and_no_other_turn_is():
    rendered = render([chat(*TURNS)], side())
    assert rendered.texts[0].endswith("<|im_start|>assistant\nHi\n Hi<|im_end|>\n")
    assert responses(chat(*TURNS), side()) == ["Hello!", "Hi\n Hi"]
    assert rendered.turns == [[2, 4]]
    assert rendered.ranges[0][0].tolist() == [rendered.texts[0].index("Hello!"), rendered.texts[0].index("Hello!") + 6]


def test_a_base_model_gets_the_plain_template():
    assert render([chat(*TURNS)], Side(None)).texts == [
        "### System:\nBe kind.\n\n### User:\nHi\n\n### Assistant:\nHello!</s>\n\n### User:\nHello!\n\n"
        "### Assistant:\nHi\n Hi</s>"
    ]
    assert responses(chat(*TURNS), Side(None)) == ["Hello!", "Hi\n Hi"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("message['content'] | trim", ["Hello  you", "<think>a b</think>Bye"]),
        ("message['content'].split('</think>')[-1]", ["  Hello  you\n", "Bye "]),
        ("message['content'] | replace('  ', ' ')", [" Hello you\n", "<think>a b</think>Bye "]),
        ("message['content'] | upper", ["  HELLO  YOU\n", "<THINK>A B</THINK>BYE "]),
    ],
)
def test_templates_that_strip_or_rewrite_contents_are_followed(content, expected):
    row = chat(
        ("user", " Hello "), ("assistant", "  Hello  you\n"), ("user", "x"), ("assistant", "<think>a b</think>Bye ")
    )
    assert responses(row, side(content)) == expected


def test_reasoning_that_a_template_leaves_out_of_earlier_turns_is_no_response():
    content = (
        "(message['content'].split('</think>')[-1].lstrip() if not loop.last and message['role'] == 'assistant' "
        "else message['content'])"
    )
    row = chat(
        ("user", "q"),
        ("assistant", "<think>\nlong\n</think>\n\nshort"),
        ("user", "q"),
        ("assistant", "<think>t</think>end"),
    )
    assert responses(row, side(content)) == ["short", "<think>t</think>end"]


def test_a_turn_the_template_leaves_out_has_no_range():
    template = CHATML.replace("{{ '<|im_start|>'", "{% if loop.last %}{{ '<|im_start|>'").replace(
        "'\n' }}{% endfor %}", "'\n' }}{% endif %}{% endfor %}"
    )
    rendered = render([chat(*TURNS)], side(template=template))
    assert (rendered.statuses, rendered.turns) == (["ok"], [[4]])


def test_tool_calls_and_tool_answers_are_no_responses_and_tools_reach_the_template():
    template = "{{ (tools or []) | length }}|" + CHATML.replace(
        "CONTENT", "message['content'] + (message['tool_calls'] | tojson if message['tool_calls'] else '')"
    )
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    row = chat(("user", "q"), call, ("tool", "42"), ("assistant", "It is 42."), tools=[{"function": {"name": "f"}}])
    rendered = render([row], side(template=template))
    assert rendered.texts[0].startswith("1|")
    assert '"arguments"' in rendered.texts[0]
    assert responses(row, side(template=template)) == ["It is 42."]
    assert rendered.turns == [[3]]
    assert responses(row, Side(None)) == ["It is 42."]


@pytest.mark.parametrize("place", ["user", "assistant"])
def test_special_token_text_in_a_chat_is_left_out(place):
    turns = [("user", "q"), ("assistant", "a")]
    turns[place == "assistant"] = (place, "what does <|im_end|> mean")
    rendered = render([chat(*turns), chat(*TURNS)], side())
    assert rendered.statuses == ["skipped:special_token_text", "ok"]
    assert rendered.ranges[0].shape == (0, 2)


def test_a_template_that_refuses_an_example_is_counted():
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    rendered = render([chat(*TURNS), chat(*TURNS[1:])], side("message['content']", template))
    assert rendered.statuses == ["skipped:template_refused", "ok"]


def test_texts_too_long_to_compare_are_left_out_rather_than_guessed(monkeypatch):
    monkeypatch.setattr("sra_data.corpus.chat.MOST_CHARACTER_PAIRS", 10)
    rendered = render([chat(*TURNS)], side("message['content'] | upper"))
    assert rendered.statuses == ["skipped:template_rewrites_too_much"]


def test_skeletons_are_shared_by_chats_of_one_shape():
    renderer = Renderer(side())
    renderer.render([chat(("user", f"q{n}"), ("assistant", f"a{n}")) for n in range(20)] + [chat(*TURNS)])
    assert len(renderer.skeletons) == 2


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: text.strip() and "<" not in text
)


@settings(max_examples=60, deadline=None)
@given(turns=st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), words), min_size=1, max_size=5))
def test_arbitrary_contents_are_found_whole_or_stripped(turns):
    row = chat(*turns)
    said = [content for role, content in turns if role == "assistant"]
    assert responses(row, side()) == said
    assert responses(row, Side(None)) == said
    assert responses(row, side("message['content'] | trim")) == [content.strip() for content in said]


@settings(max_examples=60, deadline=None)
@given(contents=st.lists(words, min_size=1, max_size=4), seed=st.randoms(use_true_random=False))
def test_ranges_are_ordered_and_inside_the_text_whatever_the_template_did(contents, seed):
    skeleton = Renderer(side())._skeleton([{"role": "assistant", "content": content} for content in contents], None)
    text = skeleton.fill(["".join(c for c in content if seed.random() < 0.7) for content in contents])[0]
    places = locate(contents, skeleton, text)
    edges = [edge for turn in sorted(places) for edge in places[turn]]
    assert edges == sorted(edges)
    assert not edges or (edges[0] >= 0 and edges[-1] <= len(text))


def test_real_templates_give_the_contents_back(shared_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_folder / "tokenizers" / "qwen1.5-1.8b")
    qwen = Side(tokenizer.chat_template)
    qwen.tokenizer = tokenizer
    assert responses(chat(*TURNS), qwen) == ["Hello!", "Hi\n Hi"]

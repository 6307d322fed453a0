"""The text one side's model reads, and where the responses stand in it.

Plain rows: the text is prompt + response, the same for both sides. Chats: each side's own chat template, and every
assistant turn with text is a response. Where a turn stands is not guessed by searching for its words (they may occur
twice): the template is rendered once with sentinels in place of the contents, which gives the literal pieces between
them; literals and contents put together again must equal the real rendering. Where they do not, because the template
strips or rewrites contents, then in this order:

1. the same with every content stripped of white space;
2. the literals found in order in the real text, with only a part of each content between them (templates that leave
   out the reasoning of earlier turns);
3. the longest common subsequence of both texts: a turn stretches from its first to its last character with a
   counterpart.

System, user, tool and tool-call turns are never responses. No generation prompt is added.

A content that holds a special token's string: in a plain row it stays text (it is never encoded as that token); in a
chat, where the template's own special tokens have to be encoded as such, the example is left out and counted as
``special_token_text``. A template that refuses an example (two user turns in a row, say) is counted as
``template_refused``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jinja2
import numpy as np
from numpy.typing import NDArray

from sra_data.corpus.examples import Message, Row

# For tokenizers without a chat template: roles as headings, an end-of-sequence token after every assistant turn.
PLAIN_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '' if loop.first else '\\n\\n' -}}"
    "{{- '### ' + message['role'] | capitalize + ':\\n' + message['content'] -}}"
    "{%- if message.get('tool_calls') -%}{{- message['tool_calls'] | tojson -}}{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
)
# What a template, which runs in transformers' sandbox, may raise: its own refusals, and its mistakes.
TEMPLATE_FAILURES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    jinja2.TemplateError,
)
OK = "ok"
SPECIAL_TOKEN_TEXT = "skipped:special_token_text"
TEMPLATE_REFUSED = "skipped:template_refused"
TEMPLATE_REWRITES = "skipped:template_rewrites_too_much"
SENTINEL = re.compile("\ue0f0([0-9]+)\ue0f1")
SKELETONS_KEPT = 4096
# The LCS holds one bit for every pair of characters: 2^32 pairs are 512 MB.
MOST_CHARACTER_PAIRS = 1 << 32

Ranges = NDArray[np.int32]


class ChatSide(Protocol):
    """What rendering needs to know of one side's tokenizer."""

    tokenizer: Any

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's own template, or None."""


@dataclass
class Rendered:
    """The texts of some rows on one side.

    Attributes:
        texts: The text of each row; empty where the template refused it.
        ranges: [R, 2] character ranges of the responses of each row.
        turns: Which of the row's messages each range is (0 for plain rows); R numbers a row.
        statuses: ``ok`` or ``skipped:<reason>`` for each row.
        is_chat: Whether each row came from messages.
    """

    texts: list[str] = field(default_factory=list)
    ranges: list[Ranges] = field(default_factory=list)
    turns: list[list[int]] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    is_chat: list[bool] = field(default_factory=list)

    def add(self, text: str, places: dict[int, tuple[int, int]], status: str, is_chat: bool) -> None:
        """Append one row; `places` maps a turn to its character range."""
        self.texts.append(text)
        self.ranges.append(np.array(list(places.values()), dtype=np.int32).reshape(-1, 2))
        self.turns.append(list(places))
        self.statuses.append(status)
        self.is_chat.append(is_chat)


@dataclass(frozen=True)
class Skeleton:
    """A rendering cut at its contents: literals[0] contents[order[0]] literals[1] ... literals[-1]."""

    literals: list[str]
    order: list[int]

    def fill(self, contents: Sequence[str]) -> tuple[str, dict[int, tuple[int, int]]]:
        """The text with `contents` in place, and each content's range (its first, where it stands twice)."""
        pieces: list[str] = []
        places: dict[int, tuple[int, int]] = {}
        length = 0
        for literal, turn in zip(self.literals, self.order, strict=False):
            pieces += (literal, contents[turn])
            start = length + len(literal)
            length = start + len(contents[turn])
            places.setdefault(turn, (start, length))
        pieces.append(self.literals[-1])
        return "".join(pieces), places


class Renderer:
    """Renders rows as one side's model reads them; keeps the skeletons of the chats it has seen."""

    def __init__(self, side: ChatSide) -> None:
        self.tokenizer = side.tokenizer
        self.template = side.chat_template or PLAIN_CHAT_TEMPLATE
        self.special_text = special_token_pattern(side.tokenizer)
        self.skeletons: dict[str, Skeleton] = {}

    def render(self, rows: Sequence[Row]) -> Rendered:
        """Texts, response ranges and statuses of `rows`."""
        rendered = Rendered()
        for row in rows:
            if row.messages is None:
                prompt, response = row.prompt or "", row.response or ""
                rendered.add(prompt + response, {0: (len(prompt), len(prompt) + len(response))}, OK, is_chat=False)
            else:
                rendered.add(*self._chat(row.messages, row.tools), is_chat=True)
        return rendered

    def _chat(self, messages: list[Message], tools: list[Any] | None) -> tuple[str, dict[int, tuple[int, int]], str]:
        try:
            text = self._apply(messages, tools)
            if self.special_text is not None and any(self.special_text.search(part) for part in _texts(messages)):
                return text, {}, SPECIAL_TOKEN_TEXT
            skeleton = self._skeleton(messages, tools)
        except TEMPLATE_FAILURES:
            return "", {}, TEMPLATE_REFUSED
        places = locate([message["content"] for message in messages], skeleton, text)
        if places is None:
            return text, {}, TEMPLATE_REWRITES
        responses = {
            turn: places[turn]
            for turn, message in enumerate(messages)
            if message["role"] == "assistant" and turn in places and places[turn][0] < places[turn][1]
        }
        return text, dict(sorted(responses.items(), key=lambda item: item[1])), OK

    def _apply(self, messages: list[Message], tools: list[Any] | None) -> str:
        text = self.tokenizer.apply_chat_template(
            messages, tools=tools, chat_template=self.template, tokenize=False, add_generation_prompt=False
        )
        if not isinstance(text, str):  # what a template in a stranger's folder need not be
            raise TypeError(f"a template that gives {type(text).__name__}")
        return text

    def _skeleton(self, messages: list[Message], tools: list[Any] | None) -> Skeleton:
        marked = [
            {**message, "content": f"\ue0f0{turn}\ue0f1" if message["content"] else ""}
            for turn, message in enumerate(messages)
        ]
        key = json.dumps([marked, tools], sort_keys=True, default=str)
        if key not in self.skeletons:
            if len(self.skeletons) >= SKELETONS_KEPT:
                self.skeletons.clear()
            pieces = SENTINEL.split(self._apply(marked, tools))
            self.skeletons[key] = Skeleton(pieces[0::2], [int(turn) for turn in pieces[1::2]])
        return self.skeletons[key]


def render(rows: Sequence[Row], side: ChatSide) -> Rendered:
    """Render `rows` once; keep a `Renderer` where there are many batches."""
    return Renderer(side).render(rows)


def locate(contents: Sequence[str], skeleton: Skeleton, text: str) -> dict[int, tuple[int, int]] | None:
    """Where each content stands in a rendering, {turn: [start, stop) characters}.

    Turns the template left out are missing. None: the texts differ and are too long to be compared.
    """
    for candidates in (contents, [content.strip() for content in contents]):
        ideal, places = skeleton.fill(candidates)
        if ideal == text:
            return places
    return _locate_between_literals(contents, skeleton, text) or _locate_by_text(*skeleton.fill(contents), text)


def _locate_between_literals(
    contents: Sequence[str], skeleton: Skeleton, text: str
) -> dict[int, tuple[int, int]] | None:
    """Find the literals in order; what stands between them must be a part of each content. Otherwise None."""
    first, last = skeleton.literals[0], skeleton.literals[-1]
    if not text.startswith(first):
        return None
    places: dict[int, tuple[int, int]] = {}
    start = len(first)
    for index, turn in enumerate(skeleton.order):
        literal = skeleton.literals[index + 1]
        if index + 1 == len(skeleton.order):
            stop = len(text) - len(last) if text.endswith(last) else -1
        else:
            stop = text.find(literal, start) if literal else -1
        if stop < start or text[start:stop] not in contents[turn]:
            return None
        places.setdefault(turn, (start, stop))
        start = stop + len(literal)
    return places


def _locate_by_text(ideal: str, places: dict[int, tuple[int, int]], text: str) -> dict[int, tuple[int, int]] | None:
    """Map ranges of `ideal` to `text` by the longest common subsequence of the two texts."""
    from rapidfuzz.distance import Indel

    if len(ideal) * len(text) > MOST_CHARACTER_PAIRS:
        return None
    # Equal blocks as rows (ideal start, ideal stop, text start).
    blocks = [
        (code.src_start, code.src_end, code.dest_start) for code in Indel.opcodes(ideal, text) if code.tag == "equal"
    ]
    found: dict[int, tuple[int, int]] = {}
    for turn, (start, stop) in places.items():
        inside = [(max(a, start), min(b, stop), c - a) for a, b, c in blocks if a < stop and b > start]
        if inside:
            found[turn] = (inside[0][0] + inside[0][2], inside[-1][1] + inside[-1][2])
    return found


def special_token_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    """A pattern that finds the string of any special token in a text."""
    strings = set(tokenizer.all_special_tokens)
    strings |= {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    longest_first = sorted(filter(None, strings), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _texts(messages: list[Message]) -> list[str]:
    """Every text of the messages that a template may put into the rendering."""
    texts: list[str] = []
    for message in messages:
        texts += (message["role"], message["content"])
        texts += [
            json.dumps(value, ensure_ascii=False) for name, value in message.items() if name not in {"role", "content"}
        ]
    return texts

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
   counterpart, and back over its own beginning where the text has that before it (a template that writes the marks of
   reasoning itself, and takes the reasoning out of the content, leaves it open whose they are).

System, user, tool and tool-call turns are never responses. No generation prompt is added.

What a student learns to end a turn with is the template's own end mark: what it writes behind an assistant turn,
learned once from a rendering of two turns each: white space and the first special token, or, where this tokenizer knows
no such token, the mark spelled out. A text that ends with a response that no mark closes gets an end-of-sequence token.
A turn that goes on with tool calls is not at its end: nothing is labelled behind it.

A content that holds a special token's string: in a plain row it stays text (it is never encoded as that token); in a
chat, where the template's own special tokens have to be encoded as such, the example is left out and counted as
``special_token_text``. A template that refuses an example (two user turns in a row, say) is counted as
``template_refused``.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
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
NOT_CLOSED, CLOSED, GOES_ON = range(3)  # how a response ends
CALLS = ("tool_calls", "function_call")  # fields of a turn that goes on with calls, the second in older data
SENTINEL = re.compile("\ue0f0([0-9]+)\ue0f1")
SKELETONS_KEPT = 4096
# The LCS holds one bit for every pair of characters: 2^32 pairs are 512 MB.
MOST_CHARACTER_PAIRS = 1 << 32

Ranges = NDArray[np.int32]
Places = dict[int, tuple[int, int]]  # a turn -> its character range


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
        closings: [R, 2] where what ends each response ends, in characters (where the response does, without), and
            whether the template closes it: NOT_CLOSED, CLOSED or GOES_ON.
        turns: Which of the row's messages each range is (0 for plain rows); R numbers a row.
        statuses: ``ok`` or ``skipped:<reason>`` for each row.
        is_chat: Whether each row came from messages.
    """

    texts: list[str] = field(default_factory=list)
    ranges: list[Ranges] = field(default_factory=list)
    closings: list[Ranges] = field(default_factory=list)
    turns: list[list[int]] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    is_chat: list[bool] = field(default_factory=list)

    def add(
        self, text: str, places: Places, status: str, is_chat: bool, closings: Sequence[tuple[int, int]] | None = None
    ) -> None:
        """Append one row; `places` maps a turn to its character range; `closings` one for each, none closed without."""
        self.texts.append(text)
        self.ranges.append(_pairs(list(places.values())))
        self.closings.append(
            _pairs([(stop, NOT_CLOSED) for _, stop in places.values()] if closings is None else closings)
        )
        self.turns.append(list(places))
        self.statuses.append(status)
        self.is_chat.append(is_chat)


def _pairs(values: Sequence[tuple[int, int]]) -> Ranges:
    return np.array(values, dtype=np.int32).reshape(-1, 2)


@dataclass(frozen=True)
class Skeleton:
    """A rendering cut at its contents: literals[0] contents[order[0]] literals[1] ... literals[-1]."""

    literals: list[str]
    order: list[int]

    def fill(self, contents: Sequence[str]) -> tuple[str, Places]:
        """The text with `contents` in place, and each content's range (its first, where it stands twice)."""
        pieces: list[str] = []
        places: Places = {}
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
                stop = len(prompt) + len(response)
                closings = [(stop, GOES_ON if row.goes_on else NOT_CLOSED)]
                rendered.add(prompt + response, {0: (len(prompt), stop)}, OK, is_chat=False, closings=closings)
            else:
                text, places, status = self._chat(row.messages, row.tools)
                closings = [self._closing(text, stop, row.messages[turn]) for turn, (_, stop) in places.items()]
                rendered.add(text, places, status, is_chat=True, closings=closings)
        return rendered

    def _closing(self, text: str, stop: int, message: Message) -> tuple[int, int]:
        """Where what ends a response ends, and how it is closed."""
        if any(message.get(name) for name in CALLS):
            return stop, GOES_ON
        for mark in self.end_marks:
            if text.startswith(mark, stop):
                return stop + len(mark), CLOSED
        is_last = not text[stop:].strip()  # and the end of sequence comes behind the white space
        return len(text) if is_last else stop, NOT_CLOSED

    @cached_property
    def end_marks(self) -> list[str]:
        """What the template writes behind an assistant turn to end it, at the end of a text and within it."""
        probe: list[Message] = [{"role": role, "content": "."} for role in ("user", "assistant") * 2]
        for turns in (4, 2):
            try:
                literals = self._cut(_marked(probe[:turns]), None).literals
            except TEMPLATE_FAILURES:
                continue
            if len(literals) == turns + 1:
                within = [literals[2].removesuffix(common_suffix(literals[2], literals[0]))] if turns == 4 else []
                marks = (end_mark(literal, self.special_text) for literal in [literals[-1], *within])
                return [mark for mark in dict.fromkeys(marks) if mark]
        return []

    def _chat(self, messages: list[Message], tools: list[Any] | None) -> tuple[str, Places, str]:
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
        marked = _marked(messages)
        key = json.dumps([marked, tools], sort_keys=True, default=str)
        if key not in self.skeletons:
            if len(self.skeletons) >= SKELETONS_KEPT:
                self.skeletons.clear()
            self.skeletons[key] = self._cut(marked, tools)
        return self.skeletons[key]

    def _cut(self, marked: list[Message], tools: list[Any] | None) -> Skeleton:
        pieces = SENTINEL.split(self._apply(marked, tools))
        return Skeleton(pieces[0::2], [int(turn) for turn in pieces[1::2]])


def _marked(messages: list[Message]) -> list[Message]:
    """The messages with sentinels in place of their contents."""
    return [
        {**message, "content": f"\ue0f0{turn}\ue0f1" if message["content"] else ""}
        for turn, message in enumerate(messages)
    ]


def render(rows: Sequence[Row], side: ChatSide) -> Rendered:
    """Render `rows` once; keep a `Renderer` where there are many batches."""
    return Renderer(side).render(rows)


def locate(contents: Sequence[str], skeleton: Skeleton, text: str) -> Places | None:
    """Where each content stands in a rendering, {turn: [start, stop) characters}.

    Turns the template left out are missing. None: the texts differ and are too long to be compared.
    """
    for candidates in (contents, [content.strip() for content in contents]):
        ideal, places = skeleton.fill(candidates)
        if ideal == text:
            return places
    return _locate_between_literals(contents, skeleton, text) or _locate_by_text(*skeleton.fill(contents), text)


def _locate_between_literals(contents: Sequence[str], skeleton: Skeleton, text: str) -> Places | None:
    """Find the literals in order; what stands between them must be a part of each content. Otherwise None."""
    first, last = skeleton.literals[0], skeleton.literals[-1]
    if not text.startswith(first):
        return None
    places: Places = {}
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


def _locate_by_text(ideal: str, places: Places, text: str) -> Places | None:
    """Map ranges of `ideal` to `text` by the longest common subsequence of the two texts."""
    from rapidfuzz.distance import Indel

    if len(ideal) * len(text) > MOST_CHARACTER_PAIRS:
        return None
    # Equal blocks as rows (ideal start, ideal stop, text start).
    blocks = [
        (code.src_start, code.src_end, code.dest_start) for code in Indel.opcodes(ideal, text) if code.tag == "equal"
    ]
    found: Places = {}
    for turn, (start, stop) in places.items():
        inside = [(max(a, start), min(b, stop), c - a) for a, b, c in blocks if a < stop and b > start]
        if inside:
            first, stop = inside[0][0] + inside[0][2], inside[-1][1] + inside[-1][2]
            least = max((end for _, end in found.values()), default=0)
            found[turn] = (_with_its_beginning(text, least, first, ideal[start : inside[0][0]]), stop)
    return found


def _with_its_beginning(text: str, least: int, start: int, beginning: str) -> int:
    """Where a turn starts: before its own beginning where that stands before ``start``, white space aside."""
    lead = beginning.strip()
    before = text[least:start].rstrip()
    return least + len(before) - len(lead) if lead and before.endswith(lead) else start


def end_mark(literal: str, special: re.Pattern[str] | None) -> str:
    """The end mark at the beginning of what a template writes behind a turn; empty where there is none.

    White space and the first special token; without one, the rest of the line up to where one comes.
    """
    space = literal[: len(literal) - len(literal.lstrip())]
    rest = literal[len(space) :]
    found = special.search(rest) if special is not None else None
    if found is not None and found.start() == 0:
        return space + found.group()
    line = (rest if found is None else rest[: found.start()]).split("\n")[0].rstrip()
    return space + line if line else ""


def common_suffix(one: str, other: str) -> str:
    """The longest text that both end with."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    length = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return one[len(one) - length :]


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

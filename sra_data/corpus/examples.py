"""What a raw row means: which columns hold the prompt, the response, the chat, the id and the split.

Columns are found by their usual names, per row, in this order: messages; prompt + response; instruction + input +
response; question + answer; text. Any of them can be named instead (`--columns prompt=q,response=a`).

Templates, all plain text:
  instruction   the Alpaca template, as in the Dolly prompts of the published results
  question      "Question: {question}\\n\\nAnswer:\\n"
  text          the prompt is empty, the whole text is the response

An invalid row is an error by default; with ``on_invalid="skip"`` it is counted under its reason. Nothing is repaired
silently: lone surrogates, which no tokenizer takes, become U+FFFD and are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import xxhash

from sra_data.errors import ConfigError, SourceError

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
QUESTION = "Question: {question}\n\nAnswer:\n"

# The usual names of each role, best first.
USUAL_NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "chat": {"messages": ("messages", "conversations", "conversation")},
    "pair": {"prompt": ("prompt",), "response": ("response", "completion")},
    "instruction": {
        "instruction": ("instruction",),
        "input": ("input", "context"),
        "response": ("output", "response"),
    },
    "question": {"question": ("question",), "response": ("answer",)},
    "text": {"text": ("text",)},
}
OPTIONAL_ROLES = frozenset({"input"})
EXTRA_NAMES = {"id": ("id",), "split": ("split",), "tools": ("tools",)}
ROLE_ALIASES = {
    "conversations": "messages",
    "completion": "response",
    "output": "response",
    "answer": "response",
    "context": "input",
}
ROLES = frozenset(role for roles in USUAL_NAMES.values() for role in roles) | frozenset(EXTRA_NAMES)
SPLITS = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "valid": "dev",
    "validation": "dev",
    "val": "dev",
    "eval": "dev",
    "test": "test",
}
SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
REPLACEMENT_CHARACTER = "�"

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class InvalidRow:
    """Why a row cannot be used: the reason it is counted under, what was found, and what to do."""

    reason: str
    found: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Row:
    """One valid example: prompt and response, or messages.

    Attributes:
        id: The row's own id, or its number in the source as 8 digits.
        where: File and line, for messages to people.
        split: ``train``, ``dev``, ``test``, or None where the source does not say.
        tools: What the chat template is given as tools.
        goes_on: The response is a stretch of a longer one that does not end here (windows.py).
    """

    id: str
    where: str
    prompt: str | None
    response: str | None
    messages: list[Message] | None = None
    split: str | None = None
    tools: list[Any] | None = None
    goes_on: bool = False

    def split_key(self) -> str:
        """What decides the split of a row that names none: the prompt, so that equal prompts stay together.

        In a chat, everything before the first assistant turn; in a row without a prompt, its text.
        """
        if self.messages is None:
            return self.prompt or self.response or ""
        turns = []
        for message in self.messages:
            if message["role"] == "assistant":
                break
            turns.append(f"{message['role']}\n{message.get('content') or ''}")
        return "\n".join(turns) or str(self.messages[0].get("content") or "")


class Rejected(Exception):
    """A row that is not valid; internal to this module."""

    def __init__(self, reason: str, found: str, remedy: str) -> None:
        super().__init__(found)
        self.invalid = InvalidRow(reason, found, remedy)


def parse_columns(columns: str | dict[str, str] | None) -> dict[str, str]:
    """Read ``prompt=question,response=answer`` into {role: column name}.

    ``id=`` with nothing behind it means: do not use any column as the id.

    Raises:
        ConfigError: Not of that form, an unknown role, or a role named twice.
    """
    if columns is None:
        return {}
    if isinstance(columns, str):
        pairs = [part.partition("=") for part in columns.split(",") if part.strip()]
        if any(not equals for _, equals, _ in pairs):
            raise ConfigError(f"--columns {columns}: not of the form prompt=question,response=answer; write it so")
        named = [(role.strip(), name.strip()) for role, _, name in pairs]
    else:
        named = list(columns.items())
    found: dict[str, str] = {}
    for alias, name in named:
        role = ROLE_ALIASES.get(alias, alias)
        if role not in ROLES:
            raise ConfigError(f"--columns {alias}={name}: no such role; use one of {', '.join(sorted(ROLES))}")
        if role in found:
            raise ConfigError(f"--columns {alias}={name}: the role {role} is named twice; name it once")
        found[role] = name
    return found


@dataclass(frozen=True, slots=True)
class Layout:
    """Which column plays which role in rows with one set of columns; None: no column does."""

    kind: str
    columns: dict[str, str | None]

    @property
    def words(self) -> str:
        """As `--columns` would name them: prompt=instruction, input=context, response=response."""
        return ", ".join(f"{role}={name}" for role, name in self.columns.items() if name is not None)

    def value(self, values: dict[str, Any], role: str) -> Any:
        """The row's value in a role, or None."""
        name = self.columns.get(role)
        return None if name is None else values.get(name)


def find_layout(names: Iterable[str], columns: dict[str, str]) -> Layout:
    """Find the columns of a row.

    Args:
        names: The columns the row has.
        columns: The columns the user named, by role.

    Raises:
        Rejected: No kind of example fits, or a named column is not there.
    """
    present = list(dict.fromkeys(names))
    for role, name in columns.items():
        if name and name not in present:
            raise Rejected(
                "missing_columns",
                f"no column {name!r} (named for {role}); the columns are {', '.join(present) or 'none'}",
                "name one of these",
            )
    wanted = {role for role in columns if role not in EXTRA_NAMES}
    for kind, roles in USUAL_NAMES.items():
        if not wanted <= set(roles):
            continue
        found = {role: _find(role, usual, present, columns) for role, usual in roles.items()}
        if all(name is not None or role in OPTIONAL_ROLES for role, name in found.items()):
            extra = {role: _find(role, usual, present, columns) for role, usual in EXTRA_NAMES.items()}
            return Layout(kind, {**found, **extra})
    raise Rejected(
        "missing_columns",
        f"no usual columns (messages; prompt + response; instruction + output; question + answer; text) among "
        f"{', '.join(present) or 'none'}",
        "name them, say --columns prompt=question,response=answer",
    )


def _find(role: str, usual: tuple[str, ...], present: list[str], columns: dict[str, str]) -> str | None:
    if role in columns:
        return columns[role] or None
    return next((name for name in usual if name in present), None)


class RowReader:
    """Turns raw rows into `Row`s and counts what it leaves out or replaces.

    Args:
        columns: Columns the user named, by role.
        split: A split given to every row, over what the row says; or None.
        file_split: The split of rows that do not say, from the file's name; or None.
        counts: Receives the reasons of skipped rows and ``lone_surrogates``.
    """

    def __init__(
        self,
        *,
        columns: dict[str, str],
        split: str | None = None,
        file_split: str | None = None,
        counts: Counter[str] | None = None,
    ) -> None:
        self.columns = columns
        self.split = split
        self.file_split = file_split
        self.counts = Counter() if counts is None else counts
        self.layouts: dict[tuple[str, ...], Layout] = {}

    def row(
        self,
        values: dict[str, Any] | None,
        problem: InvalidRow | None,
        *,
        where: str,
        number: int,
        on_invalid: str = "fail",
    ) -> Row | None:
        """One raw row as a `Row`, or None where it is invalid and `on_invalid` is ``skip``.

        Raises:
            SourceError: The row is invalid and `on_invalid` is ``fail``.
        """
        if values is not None:
            try:
                return self._make(values, where, number)
            except Rejected as rejected:
                problem = rejected.invalid
        assert problem is not None
        if on_invalid == "skip":
            self.counts[problem.reason] += 1
            return None
        raise SourceError(f"{where}: {problem.found}; {problem.remedy}, or leave such rows out with --on-invalid skip")

    def _make(self, values: dict[str, Any], where: str, number: int) -> Row:
        names = tuple(values)
        layout = self.layouts.get(names)
        if layout is None:
            layout = self.layouts[names] = find_layout(names, self.columns)
        row_id = self._id(layout, values, number)
        split = self.split or self._split(layout, values) or SPLITS.get(self.file_split or "")
        if layout.kind == "chat":
            messages = [self._message(message) for message in _messages(layout.value(values, "messages"))]
            if not any(message["role"] == "assistant" and message["content"].strip() for message in messages):
                raise Rejected("empty_response", "no assistant turn with text", "delete this row")
            tools = layout.value(values, "tools") or None
            if tools is not None and not isinstance(tools, list):
                raise _wrong_type("tools", tools, "a list")
            return Row(row_id, where, None, None, messages, split, tools)
        prompt, response = self._pair(layout, values)
        if not response.strip():
            raise Rejected("empty_response", f"the response is empty: {response!r}", "delete this row")
        return Row(row_id, where, prompt, response, None, split)

    def _pair(self, layout: Layout, values: dict[str, Any]) -> tuple[str, str]:
        if layout.kind == "text":
            return "", self._text(layout, values, "text")
        response = self._text(layout, values, "response")
        if layout.kind == "pair":
            return self._text(layout, values, "prompt"), response
        if layout.kind == "question":
            return QUESTION.format(question=self._text(layout, values, "question")), response
        instruction = self._text(layout, values, "instruction")
        given = "" if layout.value(values, "input") is None else self._text(layout, values, "input")
        if given.strip():
            return ALPACA_WITH_INPUT.format(instruction=instruction, input=given), response
        return ALPACA.format(instruction=instruction), response

    def _text(self, layout: Layout, values: dict[str, Any], role: str) -> str:
        value = layout.value(values, role)
        if not isinstance(value, str):
            raise _wrong_type(str(layout.columns[role]), value, "text")
        return self._clean(value)

    def _clean(self, text: str) -> str:
        if text.isascii():  # known without looking at the characters
            return text
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            self.counts["lone_surrogates"] += sum("\ud800" <= character <= "\udfff" for character in text)
            return "".join(REPLACEMENT_CHARACTER if "\ud800" <= c <= "\udfff" else c for c in text)
        return text

    def _id(self, layout: Layout, values: dict[str, Any], number: int) -> str:
        if layout.columns["id"] is None:
            return f"{number:08d}"
        value = layout.value(values, "id")
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise _wrong_type(str(layout.columns["id"]), value, "an id (text or a whole number)")
        return self._clean(str(value))

    def _split(self, layout: Layout, values: dict[str, Any]) -> str | None:
        value = layout.value(values, "split")
        if value is None or value == "":
            return None
        if not isinstance(value, str) or value.lower() not in SPLITS:
            raise Rejected(
                "wrong_split",
                f"the split {shorten(str(value))!r} is not known",
                "write train, dev or test, or say --columns split= to use no column",
            )
        return SPLITS[value.lower()]

    def _message(self, message: Any) -> Message:
        """One message with the usual keys: role, content, and what else it holds."""
        if not isinstance(message, dict):
            raise _wrong_type("messages", message, "a list of objects with role and content")
        kept = {name: value for name, value in message.items() if value is not None}
        role = kept.pop("role", None) or kept.pop("from", None)
        if not isinstance(role, str):
            raise _wrong_type("role", role, "text")
        content = kept.pop("content", kept.pop("value", ""))
        if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
            content = "".join(str(part["text"]) for part in content)
        if not isinstance(content, str):
            raise _wrong_type("content", content, "text")
        return {"role": SPEAKERS.get(role, role), "content": self._clean(content), **kept}


def _messages(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise _wrong_type("messages", value, "a list of objects with role and content")
    return value


def _wrong_type(name: str, value: Any, expected: str) -> Rejected:
    return Rejected(
        "wrong_type",
        f"{name!r} must be {expected}, this is {type(value).__name__}: {shorten(repr(value))}",
        "mend this row",
    )


def dev_share_of(row: Row) -> float:
    """A number in [0, 1) that depends on the prompt alone; rows below `--dev-share` are the development set."""
    return xxhash.xxh3_64_intdigest(row.split_key().encode("utf-8")) / 2**64


def shorten(text: str, limit: int = 80) -> str:
    """A value as it is quoted in a message: one line, not long."""
    line = " ".join(text[: 4 * limit].split())
    return line if len(line) <= limit else line[: limit - 1] + "…"

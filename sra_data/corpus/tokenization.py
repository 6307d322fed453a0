"""One side's tokenizer: texts in, ids with exact character offsets, response spans and labels out.

The whole text of an example is cut at once, as the model will read it; prompt and response are never cut apart and
glued. A special token's string inside a text stays text. What each token covers comes from ``token_offsets``, proved
text by text; what happens to overlong examples from ``truncation``.

B = texts, R = responses of a text.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from sra_data.corpus.chat import NOT_CLOSED
from sra_data.corpus.loading import (
    definition_of,
    fingerprint_of,
    frame_ids,
    load_tokenizer,
    opening_tokenizer,
    plain_template,
    positions_of,
    prepare,
    split_revision,
)
from sra_data.corpus.token_offsets import (
    BY_OFFSETS,
    IN_PARTS,
    LAID,
    TextTokens,
    TokenReader,
    special_tokens,
    vocabulary_of,
)
from sra_data.corpus.truncation import Frame, Overlong, fit
from sra_data.errors import TokenizerError
from sra_data.spans.alignment import TokenOffsets
from sra_data.spans.ragged import Ragged
from sra_data.spans.vocabulary import Vocabulary

__all__ = ["Overlong", "SideTokenizer", "TokenizedBatch", "replace_lone_surrogates", "split_revision"]

# Texts that the pieces do not spell: counted by how their tokens were located.
LOCATED = {"located_by_offsets": BY_OFFSETS, "located_by_laying": LAID, "located_in_parts": IN_PARTS}
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, eq=False)
class TokenizedBatch:
    """A batch as one side's model reads it; every field has B rows.

    Attributes:
        ids: int32, the example's input ids; none where it is skipped.
        offsets: What each token covers, in characters of the whole text; special tokens (0, 0).
        response_spans: [R, 2] int32, tokens [start, stop) of each response. (start, start) for a response without
            tokens, (0, 0) for one that was cut off or whose example is skipped.
        label_spans: [R, 2] int32, the response's tokens and the token that closes it, where it was not cut.
        status: "ok", "skipped:overlong" or "skipped:unlocatable".
        counts: How often what happened: overlong_skipped, overlong_truncated, overlong_prompt_truncated,
            lone_surrogates, ends_not_labelled, located_by_offsets, located_by_laying, located_in_parts.
    """

    ids: Ragged
    offsets: TokenOffsets
    response_spans: Ragged
    label_spans: Ragged
    status: list[str]
    counts: Counter[str]


class Texts(Protocol):
    """A batch to cut: what a renderer gives, say."""

    @property
    def texts(self) -> Sequence[str]:
        """[B] whole texts."""

    @property
    def ranges(self) -> Sequence[Any] | Ragged:
        """[B] arrays [R, 2], characters of the responses."""

    @property
    def closings(self) -> Sequence[Any] | Ragged:
        """[B] arrays [R, 2], where what closes each response ends, and how (chat.py)."""


@dataclass(frozen=True)
class TextBatch:
    """`Texts` from its parts."""

    texts: Sequence[str]
    ranges: Sequence[Any] | Ragged
    closings: Sequence[Any] | Ragged


def replace_lone_surrogates(texts: Sequence[str]) -> tuple[list[str], int]:
    """Texts with U+FFFD for every lone surrogate, which tokenizers and UTF-8 refuse, and how many there were.

    Character for character: ranges into the texts stay true.
    """
    replaced, num_surrogates = list(texts), 0
    try:  # nearly always there is none in the whole batch
        "".join(texts).encode()
    except UnicodeEncodeError:
        pass
    else:
        return replaced, 0
    for row, text in enumerate(texts):
        if text.isascii():  # known without looking at the characters
            continue
        try:
            text.encode()
        except UnicodeEncodeError:
            replaced[row], count = _SURROGATE.subn("\ufffd", text)
            num_surrogates += count
    return replaced, num_surrogates


class SideTokenizer:
    """The tokenizer of the teacher or of a student.

    Attributes:
        name: Hub id or folder, without the revision.
        revision: Of the Hub repository; None for its default or a folder.
        tokenizer: The Hugging Face object.
        fingerprint: sha256 hex of everything that decides how texts are cut and chats are written.
        chat_template: The tokenizer's own; None for a base model.
        eos_id: The end-of-sequence token; None without one.
        prefix_ids: What the tokenizer puts before a text.
        suffix_ids: What it puts behind one.
        special_tokens: Ids and strings of the tokens that are no text.
        max_positions: Tokens the model beside it can read; None where nothing says.
    """

    def __init__(
        self, tokenizer: Any, name: str, *, revision: str | None = None, trust_remote_code: bool = False
    ) -> None:
        """Wrap a loaded tokenizer (``SideTokenizer.load`` is the usual way); ``name`` is where it came from."""
        self.name = name
        self.revision = revision
        self.tokenizer = tokenizer
        self.max_positions = positions_of(name, revision, trust_remote_code, tokenizer)
        prepare(tokenizer)
        self._definition = definition_of(tokenizer)
        self.fingerprint = fingerprint_of(tokenizer, self._definition)
        self.chat_template = plain_template(tokenizer)
        self.eos_id: int | None = tokenizer.eos_token_id
        self.prefix_ids, self.suffix_ids = frame_ids(tokenizer)
        self.special_tokens = special_tokens(tokenizer)
        self._trust_remote_code = trust_remote_code
        self._loaded = False

    @classmethod
    def load(cls, name: str, revision: str | None = None, trust_remote_code: bool = False) -> "SideTokenizer":
        """Open a tokenizer by Hub id ("name" or "name@revision") or folder.

        Raises:
            TokenizerError: If there is none under that name.
        """
        if revision is None:
            name, revision = split_revision(str(name))
        tokenizer = load_tokenizer(name, revision, trust_remote_code)
        with opening_tokenizer(name, revision):
            side = cls(tokenizer, name, revision=revision, trust_remote_code=trust_remote_code)
        side._loaded = True
        return side

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """A worker process opens the same files again instead of receiving megabytes."""
        if self._loaded:
            return _reload, (self.name, self.revision, self._trust_remote_code, self.fingerprint)
        return type(self), (self.tokenizer, self.name)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What every id stands for; special tokens and the unknown token left out."""
        return vocabulary_of(self.tokenizer, self._definition)

    @property
    def _frame(self) -> Frame:
        chat_prefix = self.prefix_ids if self.chat_template is None else ()
        return Frame(self.prefix_ids, self.suffix_ids, self.eos_id, self.tokenizer.bos_token_id, chat_prefix)

    @cached_property
    def _reader(self) -> TokenReader:
        return TokenReader(self.tokenizer, self.vocabulary, self.name)

    def cut(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text by itself, without beginning or end."""
        return self._reader.ids_of(texts)

    def encode(
        self,
        texts: Sequence[str],
        *,
        response_ranges: Sequence[Any],
        is_chat: bool,
        max_length: int | None = None,
        overlong: Overlong = "truncate",
        closings: Sequence[Any] | None = None,
        names: Sequence[str] | None = None,
        skip_unlocatable: bool = False,
    ) -> TokenizedBatch:
        """Cut a batch of whole texts.

        Args:
            texts: [B] prompt and response in one, or a rendered chat.
            response_ranges: [B] arrays [R, 2] of character ranges, in order.
            is_chat: The text holds its template's special tokens: they are recognised, and nothing is put around it but
                an end-of-sequence token where it ends with a response that nothing closes, and, where the template is
                not the tokenizer's own, what the tokenizer puts before every text.
            max_length: The most tokens of an example; None for no limit.
            overlong: "skip", "truncate-prompt", "truncate" or "window" (truncation.py).
            closings: [B] arrays [R, 2], where what closes each response ends and how (chat.py); None: nothing does.
            names: [B] what to call each text in an error.
            skip_unlocatable: Whether a text whose tokens cannot be located is skipped, or refused.

        Raises:
            TokenizerError: If the tokens of a text cannot be located, and such texts are not skipped.
        """
        (batch,) = self.encode_batches(
            [TextBatch(texts, response_ranges, _not_closed(response_ranges) if closings is None else closings)],
            is_chat=is_chat,
            max_length=max_length,
            overlong=overlong,
            names=names,
            skip_unlocatable=skip_unlocatable,
        )
        return batch

    def encode_batches(
        self,
        batches: Sequence[Texts],
        *,
        is_chat: bool,
        max_length: int | None = None,
        overlong: Overlong = "truncate",
        names: Sequence[str] | None = None,
        skip_unlocatable: bool = False,
    ) -> list[TokenizedBatch]:
        """`encode` of several batches, which the tokenizer gets at once.

        ``names`` are those of all texts, one batch after the other; the others and the errors as for `encode`.
        """
        cleaned = [replace_lone_surrogates(batch.texts) for batch in batches]
        tokens = self._reader.read(
            [text for texts, _ in cleaned for text in texts],
            recognise_special=is_chat,
            names=names,
            skip_unlocatable=skip_unlocatable,
        )
        made, done = [], 0
        for (texts, num_surrogates), batch in zip(cleaned, batches, strict=True):
            own = tokens.slice(done, done + len(texts))
            made.append(self._fit(own, batch, num_surrogates, is_chat, max_length, overlong))
            done += len(texts)
        return made

    def _fit(
        self,
        tokens: TextTokens,
        batch: Texts,
        num_surrogates: int,
        is_chat: bool,
        max_length: int | None,
        overlong: Overlong,
    ) -> TokenizedBatch:
        """The tokens of a batch's texts as examples: beginning, end, maximum length, responses."""
        fitted = fit(
            tokens,
            response_ranges=_ragged_pairs(batch.ranges),
            closings=_ragged_pairs(batch.closings),
            frame=self._frame,
            is_chat=is_chat,
            max_length=max_length,
            overlong=overlong,
        )
        if num_surrogates:
            fitted.counts["lone_surrogates"] += num_surrogates
        for name, way in LOCATED.items():
            if count := int((tokens.located_by[~tokens.unlocatable] == way).sum()):
                fitted.counts[name] += count
        status = [
            "skipped:unlocatable" if is_lost else found
            for is_lost, found in zip(tokens.unlocatable.tolist(), fitted.status, strict=True)
        ]
        return TokenizedBatch(
            fitted.ids, fitted.offsets, fitted.response_spans, fitted.label_spans, status, fitted.counts
        )


def _ragged_pairs(pairs: Sequence[Any] | Ragged) -> Ragged:
    """Rows [R, 2] int32 from arrays or lists of pairs."""
    if isinstance(pairs, Ragged):
        return pairs
    return Ragged.from_list(pairs, "int32", (2,))


def _not_closed(ranges: Sequence[Any] | Ragged) -> Ragged:
    """Closings [R, 2] of responses that end with their last character."""
    rows = _ragged_pairs(ranges)
    ends = rows.values[:, 1]
    return rows.with_values(np.stack([ends, np.full_like(ends, NOT_CLOSED)], axis=1))


def _reload(name: str, revision: str | None, trust_remote_code: bool, fingerprint: str) -> SideTokenizer:
    side = SideTokenizer.load(name, revision, trust_remote_code)
    if side.fingerprint != fingerprint:
        raise TokenizerError(f"{name}: the tokenizer's files changed while it was in use; start again")
    return side

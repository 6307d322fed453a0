"""One tokenizer's tokens and the characters each of them covers, never on trust.

Three ways, the cheapest that can be proved for a text:
1. the pieces spell the text byte for byte (``spans.character_map``): nearly every text of byte-level and SentencePiece
   tokenizers, and the tokenizer need not even work out offsets;
2. the tokenizer's own offsets, put in order and checked by slicing (``spans.verification``): WordPiece, normalisers;
   where some of a text's tokens cannot be located, the others are, unless the third way finds more;
3. the pieces laid into the text (``spans.recovery``): slow tokenizers, and texts that fail the check.
A text for which none works is refused by name.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from operator import itemgetter
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models

from sra_data.errors import TokenizerError
from sra_data.spans.character_map import CharacterOffsets, PieceTable, offsets_from_pieces
from sra_data.spans.closing import closing_tokens
from sra_data.spans.ragged import Array, Ragged
from sra_data.spans.recovery import recovered_offsets
from sra_data.spans.verification import SliceCheck, Surface, verified
from sra_data.spans.vocabulary import Spelling, Vocabulary

_NEVER_IN_TEXT = "\U0010fffe\U0010ffff"  # noncharacters, reserved by Unicode for uses like this
_UNIGRAM_UNKNOWN = re.compile(r'"unk_id":\s*(\d+)')  # inside a JSON string the quotes would be escaped


SPELLED, BY_OFFSETS, LAID, IN_PARTS = range(4)  # the three ways, and the second with gaps


@dataclass(frozen=True, eq=False)
class TextTokens:
    """The tokens of the texts themselves, before a tokenizer's own beginning and end.

    Attributes:
        ids: int32.
        starts: int32, first character; not decreasing in a row.
        ends: int32, one past the last; not decreasing in a row. True where the token closes, else an upper bound.
        closes: bool, a span may end here (docs/method.md, section 2).
        is_special: bool, a special token recognised in the text (chats only); its offsets are those of its string.
        unlocatable: [B] bool, texts none of whose tokens is here because they could not be located.
        located_by: [B] uint8, by which of the three ways (SPELLED, BY_OFFSETS, LAID), or in parts by the second.
    """

    ids: Ragged
    starts: Ragged
    ends: Ragged
    closes: Ragged
    is_special: Ragged
    unlocatable: NDArray[np.bool_]
    located_by: NDArray[np.uint8]

    def slice(self, start: int, stop: int) -> "TextTokens":
        """Texts [start, stop), as views."""
        ids, starts, ends, closes, is_special = (
            one.slice(start, stop) for one in (self.ids, self.starts, self.ends, self.closes, self.is_special)
        )
        rows = slice(start, stop)
        return TextTokens(ids, starts, ends, closes, is_special, self.unlocatable[rows], self.located_by[rows])

    def without(self, rows: Sequence[int]) -> "TextTokens":
        """The same texts, those of these rows without tokens and marked."""
        unlocatable = self.unlocatable.copy()
        unlocatable[rows] = True
        keep, lengths = ~unlocatable[self.ids.rows], self.ids.lengths * ~unlocatable
        ids, starts, ends, closes, is_special = (
            Ragged.from_lengths(one.values[keep], lengths)
            for one in (self.ids, self.starts, self.ends, self.closes, self.is_special)
        )
        return TextTokens(ids, starts, ends, closes, is_special, unlocatable, self.located_by)


class TokenReader:
    """Cuts texts with a Hugging Face tokenizer and finds what each token covers."""

    def __init__(self, tokenizer: Any, vocabulary: Vocabulary, name: str) -> None:
        """``tokenizer``: fast or slow; ``vocabulary``: its pieces; ``name``: for messages."""
        self._tokenizer = tokenizer
        self._name = name
        self._backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        special = special_tokens(tokenizer)
        size = max(len(vocabulary), max(special, default=-1) + 1)
        byte_strings = vocabulary.byte_strings + [None] * (size - len(vocabulary))
        self._surfaces: list[Surface] = [*byte_strings]
        for token_id, content in special.items():
            self._surfaces[token_id] = content
        self._pieces = PieceTable([_encoded(surface) for surface in self._surfaces])
        wordless = [token_id for token_id, surface in enumerate(self._surfaces) if not isinstance(surface, bytes)]
        self._text_backend = _backend_for_text(self._backend, wordless) if self._backend is not None else None
        self._is_special = np.array([isinstance(surface, str) for surface in self._surfaces], dtype=bool)
        normaliser = self._backend.normalizer if self._backend is not None else None
        self._check = SliceCheck(
            normaliser.normalize_str if normaliser is not None else None, collapses=cache(self._collapses_white_space)
        )

    def read(
        self,
        texts: Sequence[str],
        *,
        recognise_special: bool,
        names: Sequence[str] | None = None,
        skip_unlocatable: bool = False,
    ) -> TextTokens:
        """Cut ``texts`` [B] (no lone surrogates) and locate every token.

        Args:
            texts: What to cut.
            recognise_special: Whether a special token's string in a text is that token (a rendered chat) or text.
            names: [B] what to call each text in a message; by its number without.
            skip_unlocatable: Whether a text whose tokens cannot be located is given no token and marked, or refused.

        Raises:
            TokenizerError: If no way of locating the tokens of a text can be proved, and such texts are not skipped.
        """
        encodings, id_lists = self._cut(texts, recognise_special)
        ids = _ragged(id_lists)
        found = offsets_from_pieces(ids=ids, pieces=self._pieces, texts=texts)
        located_by = np.where(found.exact, SPELLED, LAID).astype(np.uint8)
        not_located = self._locate(encodings, found, ids, texts, recognise_special, located_by)
        lost = dict.fromkeys(not_located, self._not_located)
        is_special = self._is_special[ids.values]
        if not recognise_special and is_special.any():
            lost |= dict.fromkeys(ids.rows[is_special].tolist(), self._not_text)
        if lost and not skip_unlocatable:
            row, why = min(lost.items(), key=itemgetter(0))
            self._refuse(_name(names, row), why(ids[row]))
        nothing_lost = np.zeros(len(ids), dtype=bool)
        tokens = TextTokens(
            ids, found.starts, found.ends, found.closes, ids.with_values(is_special), nothing_lost, located_by
        )
        return tokens.without(sorted(lost)) if lost else tokens

    def ids_of(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts that are not the corpus's: nothing is located, and a special token's string stays text.

        By a copy of the tokenizer: BPE remembers the first 10,000 words that it meets and no others, and if those were
        a vocabulary's pieces, the corpus would be cut a quarter slower from then on.
        """
        if self._backend is None:
            return self._cut(texts, recognise_special=False)[1]
        copy = Tokenizer.from_str(self._backend_for(recognise_special=False).to_str())
        copy.encode_special_tokens = True
        return [encoding.ids for encoding in copy.encode_batch(list(texts), add_special_tokens=False)]

    def _collapses_white_space(self) -> bool:
        """Whether a run of white space is one space to the tokenizer."""
        one, run = self.ids_of(["x x", "x \n\n\t x"])
        return one == run

    def _locate(
        self,
        encodings: list[Any] | None,
        found: CharacterOffsets,
        ids: Ragged,
        texts: Sequence[str],
        recognise_special: bool,
        located_by: NDArray[np.uint8],
    ) -> list[int]:
        """Fill the rows of ``found`` that are not exact, and say in ``located_by`` which way it was.

        Returns those for which there is no way.
        """
        inexact = np.flatnonzero(~found.exact).tolist()
        if inexact and self._backend is not None:
            located_by[inexact] = BY_OFFSETS
            in_parts, inexact = self._check_offsets(inexact, encodings, found, ids, texts, recognise_special)
            located_by[inexact] = LAID
            for row in in_parts:
                num_closing = int(found.closes[row].sum())
                is_more = self._recover(row, found, ids[row], texts[row], at_least=num_closing + 1)
                located_by[row] = LAID if is_more else IN_PARTS
        return [row for row in inexact if not self._recover(row, found, ids[row], texts[row])]

    def _cut(self, texts: Sequence[str], recognise_special: bool) -> tuple[list[Any] | None, list[list[int]]]:
        """Encodings with offsets, where the tokenizer has any, and ids."""
        if self._backend is None:
            options = {"add_special_tokens": False, "split_special_tokens": not recognise_special, "verbose": False}
            return None, [self._tokenizer(text, **options)["input_ids"] for text in texts]
        # Not encode_batch_fast: leaving the offsets out costs more processor time, not less (tokenizers 0.23: +15 %).
        encodings = self._backend_for(recognise_special).encode_batch(list(texts), add_special_tokens=False)
        return encodings, [encoding.ids for encoding in encodings]

    def _backend_for(self, recognise_special: bool) -> Any:
        backend = self._backend if recognise_special or self._text_backend is None else self._text_backend
        assert backend is not None, "a slow tokenizer has no backend"
        backend.encode_special_tokens = not recognise_special
        return backend

    def _check_offsets(
        self,
        rows: list[int],
        encodings: list[Any] | None,
        found: CharacterOffsets,
        ids: Ragged,
        texts: Sequence[str],
        recognise_special: bool,
    ) -> tuple[list[int], list[int]]:
        """Fill ``rows`` of ``found`` from the tokenizer's own offsets where they pass.

        Returns the rows in which some tokens do not, and those in which they cannot be used.
        """
        in_parts, failed = [], []
        chosen_texts = [texts[row] for row in rows]
        if encodings is None:
            chosen = self._backend_for(recognise_special).encode_batch(chosen_texts, add_special_tokens=False)
        else:
            chosen = [encodings[row] for row in rows]
        pairs = Ragged.from_list([encoding.offsets for encoding in chosen], np.int64, (2,))
        starts, ends = (pairs.with_values(pairs.values[:, column]) for column in (0, 1))
        closed = closing_tokens(starts=starts, ends=ends, texts=chosen_texts)
        for index, row in enumerate(rows):
            passed = verified(
                texts[row],
                starts=closed.starts[index],
                ends=closed.ends[index],
                closes=closed.closes[index],
                covered=closed.covered[index],
                surfaces=[self._surfaces[token_id] for token_id in ids[row].tolist()],
                check=self._check,
            )
            if passed is None:
                failed.append(row)
                continue
            _fill(found, row, (passed.starts, passed.ends, passed.closes))
            if passed.num_gaps:
                in_parts.append(row)
        return in_parts, failed

    def _recover(self, row: int, found: CharacterOffsets, ids: Array, text: str, at_least: int = 0) -> bool:
        """Fill one row by laying the pieces into the text; False where they do not lie in it.

        ``at_least``: How many tokens have to close for it.
        """
        surfaces = [_encoded(self._surfaces[token_id]) for token_id in ids.tolist()]
        recovered = recovered_offsets(text, surfaces)
        if recovered is None or int(recovered[2].sum()) < at_least:
            return False
        _fill(found, row, recovered)
        return True

    def _not_located(self, ids: Array) -> str:
        kind = "fast" if self._backend is not None else "slow"
        return f"the tokens of the {kind} tokenizer {self._name} cannot be matched to the characters of this text"

    def _not_text(self, ids: Array) -> str:
        first = int(ids[int(self._is_special[ids].argmax())])
        return (
            f"{self._name} reads a string in this text as the special token {self._surfaces[first]!r} and "
            "cannot be told not to"
        )

    def _refuse(self, name: str, why: str) -> NoReturn:
        raise TokenizerError(f"{name}: {why}; leave such texts out with --on-invalid skip, or use another tokenizer")


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Ids and strings of the tokens that are no text; the unknown token stands for text, so it is not one of them."""
    added = {token_id: token.content for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    unknown = {tokenizer.unk_token_id}
    if tokenizer.is_fast:
        unknown.add(_unknown_of_model(tokenizer.backend_tokenizer))
    unknown -= {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return {token_id: content for token_id, content in {**added, **named}.items() if token_id not in unknown}


def _unknown_of_model(backend: Any) -> int | None:
    """The id a model gives to what it does not know; the tokenizer's configuration need not name it."""
    if isinstance(backend.model, models.Unigram):  # which keeps its id to itself
        found = _UNIGRAM_UNKNOWN.search(backend.to_str())
        return int(found[1]) if found else None
    piece: str | None = getattr(backend.model, "unk_token", None)
    return None if piece is None else backend.token_to_id(piece)


def vocabulary_of(tokenizer: Any, definition: str | None = None) -> Vocabulary:
    """What every id stands for: of a fast tokenizer by its definition, of a slow one by how its pieces look."""
    if tokenizer.is_fast:
        return Vocabulary.from_tokenizer_json(definition or tokenizer.backend_tokenizer.to_str())
    pieces = {token_id: piece for piece, token_id in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    excluded = {*special_tokens(tokenizer), tokenizer.unk_token_id} - {None}
    literal = {token_id: token.content for token_id, token in added.items() if token_id not in excluded}
    plain = [piece for token_id, piece in pieces.items() if token_id not in added and token_id not in excluded]
    return Vocabulary.from_pieces(pieces, spelling=_spelling_of_pieces(plain), literal=literal, excluded=excluded)


def _backend_for_text(backend: Any, wordless: Sequence[int]) -> Any | None:
    """A backend to which the strings of the ids in ``wordless``, special or unknown, are text like any other.

    ``encode_special_tokens`` keeps a backend from looking for them, but some models have them among their pieces and
    find them all the same (every Unigram model). Those get a copy in which such pieces bear a name no text holds; None
    says that ``backend`` itself will do.
    """
    backend.encode_special_tokens = True
    strings = [string for token_id in wordless if (string := backend.id_to_token(token_id)) is not None]
    probes = [f"{before}{string}{after}" for string in strings for before, after in (("", ""), ("a", "b"), (" ", " "))]
    found = (encoding.tokens for encoding in backend.encode_batch(probes, add_special_tokens=False))
    leaking = {string for tokens in found for string in strings if string in tokens}
    if not leaking:
        return None
    content = json.loads(backend.to_str())
    model = content["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = [[_hidden(piece, leaking), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {_hidden(piece, leaking): token_id for piece, token_id in model["vocab"].items()}
        if model.get("unk_token") in leaking:
            model["unk_token"] = _hidden(model["unk_token"], leaking)
    for token in content["added_tokens"]:
        token["content"] = _hidden(token["content"], leaking)
    content["post_processor"] = None  # it names special tokens; they are put around a text later
    return Tokenizer.from_str(json.dumps(content))


def _hidden(piece: str, leaking: set[str]) -> str:
    return f"{_NEVER_IN_TEXT}{piece}{_NEVER_IN_TEXT}" if piece in leaking else piece


def _spelling_of_pieces(pieces: list[str]) -> Spelling:
    """A guess; every text is checked against it, so a wrong one refuses texts rather than misplacing tokens."""
    known = set(pieces)
    if len(known) == 256 and all(chr(byte) in known for byte in range(256)):
        return Spelling(latin_1=True)
    if any(piece.startswith("Ġ") for piece in pieces) and not any(piece.startswith("▁") for piece in pieces):
        return Spelling(byte_level=True)
    return Spelling(
        space="▁" if any(piece.startswith("▁") for piece in pieces) else "",
        byte_fallback="<0x0A>" in known,
        continuing_prefix="##" if any(piece.startswith("##") and len(piece) > 2 for piece in pieces) else "",
        word_suffix=next((mark for mark in ("</w>", "@@") if any(piece.endswith(mark) for piece in pieces)), ""),
    )


def _fill(found: CharacterOffsets, row: int, offsets: tuple[Array, Array, Array]) -> None:
    """Write one text's offsets into the batch's arrays, which rows are views of."""
    for target, values in zip((found.starts, found.ends, found.closes), offsets, strict=True):
        target[row][:] = values


def _name(names: Sequence[str] | None, row: int) -> str:
    return names[row] if names is not None else f"text {row} of the batch"


def _encoded(surface: Surface) -> bytes | None:
    return surface.encode() if isinstance(surface, str) else surface


def _ragged(id_lists: Sequence[list[int]]) -> Ragged:
    lengths = [len(ids) for ids in id_lists]
    flat = np.fromiter(chain.from_iterable(id_lists), dtype=np.int32, count=sum(lengths))
    return Ragged.from_lengths(flat, lengths)

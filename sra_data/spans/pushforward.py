"""Where the ids of one tokenizer go among the ids of another when both have read the same bytes.

Equal strings pair only a part of two vocabularies (``vocabulary.py``). At a boundary both sides agree on, more can be
said: what comes next is bytes, and a token of one side says how they begin. Two maps, source id -> target id:

    byte_prefix   the target's longest byte string that the source's bytes begin with
    first_piece   the first piece of the target's own cut of the source's text

A source id without an image (a special token; bytes that are no text, for `first_piece`) is -1: its mass goes to one
residual outcome. What both leave out: an id of the target LONGER than the source's token is nobody's image, although
the text may go on that way; exact for both models would only be a coarser event, such as the next byte.

Source: docs/method.md, section 6. Pure: a tokenizer comes in as a function that cuts texts.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sra_data.spans.vocabulary import Vocabulary

NO_IMAGE = -1
Cut = Callable[[Sequence[str]], Sequence[Sequence[int]]]  # texts -> their ids, without special tokens


def byte_prefix_map(*, source: Vocabulary, target: Vocabulary) -> NDArray[np.int32]:
    """The longest byte string of the target with which each of the source's begins.

    Several ids of the target with one string: the lowest stands for them. With a target that has every byte, every
    source id that stands for bytes has an image.

    Returns:
        [source's ids] int32, `NO_IMAGE` where there is none.
    """
    lowest = lowest_ids(target)
    longest = max(map(len, lowest), default=0)
    images = np.full(len(source), NO_IMAGE, dtype=np.int32)
    for source_id, piece in enumerate(source.byte_strings):
        for length in range(min(len(piece or b""), longest), 0, -1):
            image = lowest.get(piece[:length])  # type: ignore[index]
            if image is not None:
                images[source_id] = image
                break
    return images


def first_piece_map(*, source: Vocabulary, target: Vocabulary, cut: Cut) -> NDArray[np.int32]:
    """The first piece of the target's own cut of each source id's text.

    A cut whose first piece is not how the text begins (a normaliser put a space before it, as SentencePiece's do at the
    beginning of a text) says nothing about a token in the middle of a text: there the longest prefix stands in.

    Args:
        source: Whose ids are mapped.
        target: The pieces of the tokenizer that cuts.
        cut: Texts to ids.

    Returns:
        [source's ids] int32, `NO_IMAGE` where there is none.
    """
    texts = {source_id: text for source_id, piece in enumerate(source.byte_strings) if (text := as_text(piece))}
    lowest, prefixes = lowest_ids(target), byte_prefix_map(source=source, target=target)
    images = np.full(len(source), NO_IMAGE, dtype=np.int32)
    for (source_id, text), ids in zip(texts.items(), cut(list(texts.values())), strict=True):
        first = target.byte_strings[ids[0]] if len(ids) and ids[0] < len(target) else None
        begins = bool(first) and text.encode().startswith(first)  # type: ignore[arg-type]
        images[source_id] = lowest[first] if begins else prefixes[source_id]  # type: ignore[index]
    return images


def lowest_ids(vocabulary: Vocabulary) -> dict[bytes, int]:
    """Byte string -> the lowest id that stands for it."""
    lowest: dict[bytes, int] = {}
    for token_id, piece in enumerate(vocabulary.byte_strings):
        if piece:
            lowest.setdefault(piece, token_id)
    return lowest


def as_text(piece: bytes | None) -> str:
    """The text that bytes spell; "" where they spell none (a part of a character)."""
    try:
        return (piece or b"").decode()
    except UnicodeDecodeError:
        return ""

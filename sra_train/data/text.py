"""What bits per byte needs of a batch: which tokens spell the responses, and how many bytes the responses have.

Legend: B examples, N student tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sra_data.shards.schema import IntArray, side_text
from sra_train.contract import Batch, LabelRows
from sra_train.data.examples import ExampleParts
from sra_train.data.index_rows import gathered
from sra_train.data.staging import StagingBuffer


@dataclass(frozen=True)
class ResponseText:
    """The responses of a batch as text."""

    rows: LabelRows  # positions that predict a token of text: neither end-of-sequence nor a template's closing token
    num_bytes: int  # UTF-8 bytes of all responses
    num_unpredicted: int = 0  # tokens of text that nothing stands before, and no row predicts


def response_text(examples: Sequence[ExampleParts | None], batch: Batch, staging: StagingBuffer) -> ResponseText:
    """The text of `batch`, which was made of `examples`; read with their corpus rows.

    A special token has the end 0 (its offsets are nothing), so a label with a positive end is text. A token that
    straddles the response's start counts whole. Nothing predicts token 0, which is text where a tokenizer puts no
    beginning token before a row without a prompt: it is counted, for its bytes are.
    """
    num_slots, width = batch.input_ids.shape
    is_text = np.zeros((num_slots, width), dtype=bool)
    num_bytes = 0
    for slot, one in enumerate(examples):
        if one is None:
            continue
        for start, stop in one.side.label_spans.tolist():
            is_text[slot, start:stop] = one.side.ends[start:stop] > 0
        num_bytes += response_bytes(one)
    predicts = np.zeros_like(is_text)
    predicts[:, :-1] = is_text[:, 1:]
    targets = np.roll(batch.input_ids.numpy(), -1, axis=1).reshape(-1)
    rows = gathered("text_rows", np.flatnonzero(predicts), targets, width, staging)
    return ResponseText(rows, num_bytes, int(is_text[:, 0].sum()))


def response_bytes(example: ExampleParts) -> int:
    """UTF-8 bytes of the responses as the student reads them."""
    side = example.side
    assert example.example is not None, "the text was not read"
    text = side_text(side, example.example)
    return sum(
        len(read_part(text, start, stop, side.ends[first:last]).encode())
        for (start, stop), (first, last) in zip(side.response_ranges.tolist(), side.label_spans.tolist(), strict=True)
    )


def read_part(text: str, start: int, stop: int, ends: IntArray) -> str:
    """What the student reads of the response text[start:stop]: all of it, or as far as its tokens go where it was cut.

    Spaces that no token covers at the end (WordPiece) are part of a response that was not cut.
    """
    reached = int(ends.max(initial=start))
    return text[start:stop] if not text[reached:stop].strip() else text[start:reached]

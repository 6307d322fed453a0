"""A model on the development split and on the test data: bits of every example, its best temperature, Rouge-L.

The development split is measured here as the test data are, from the user's text, and not as training does it: a
student that was never trained and a teacher must go under the same ruler. One scalar temperature of the softmax is
fitted on the development split, because methods differ in how sharp they make a student, which a user can undo
afterwards: bits at that temperature say what is left. The sum of bits is convex in 1 / temperature, so that a coarse
grid finds the valley and a parabola through its lowest points the bottom.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sra_data.errors import ConfigError, SourceError
from sra_data.shards.store import ShardSet
from sra_train.compare.jobs import HeldOut
from sra_train.compare.records import Scored
from sra_train.config import GenerationConfig
from sra_train.measure.evaluation import (
    OK,
    count_response_bytes,
    encode,
    example_bits,
    make_prompts,
    read_rows,
    rows_of_split,
)
from sra_train.measure.generation import rouge_scores

TEMPERATURES = tuple(float(f"{2.0 ** (step / 4):.6g}") for step in range(-8, 9))  # 0.25 to 4, with 1 among them
BATCH_SIZE = 8


def reported_rows(shards: ShardSet, test: HeldOut) -> list[Any]:
    """The examples that are reported on.

    Raises:
        SourceError: If there are none.
    """
    if test.data is None:
        return development_rows(shards)
    return read_rows(test.data, columns=test.columns, split=test.split, limit=test.max_examples)


def development_rows(shards: ShardSet) -> list[Any]:
    """The examples that rates and temperatures are chosen on.

    Raises:
        ConfigError: If there are none.
    """
    found = rows_of_split(shards, "dev")
    if not found:
        raise ConfigError(
            f"{shards.path}: the development split is empty, but rates are chosen on it; align again with --dev-data or"
            " --dev-share"
        )
    return found


def digest_of(rows: Sequence[Any]) -> str:
    """Of the text of the rows, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.prompt, row.response, row.messages, row.tools], ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()[:32]


class Measured:
    """One model with its tokenizer, on its device.

    Args:
        name: for messages.
        model: a causal language model.
        side: its tokenizer.
    """

    def __init__(self, name: str, model: nn.Module, side: Any) -> None:
        self.name, self.side = name, side
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def bits(
        self, rows: Sequence[Any], temperatures: Sequence[float], *, max_length: int | None = None
    ) -> tuple[NDArray[np.float64], dict[str, int]]:
        """Bits of every example at every temperature.

        Returns:
            float64 [T, E], NaN where an example does not fit the model; how many are left out, by reason.

        Raises:
            SourceError: If none fits.
        """
        encoded = encode(self.side, rows, max_length=max_length)
        kept = [index for index, status in enumerate(encoded.status) if status == OK]
        left_out = dict(Counter(status for status in encoded.status if status != OK))
        if not kept:
            reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
            raise SourceError(f"{self.name}: no example fits it ({reasons}); give shorter examples")
        bits = np.full((len(temperatures), len(rows)), np.nan)
        bits[:, kept] = example_bits(
            self.model,
            [encoded.ids[index] for index in kept],
            [encoded.wanted[index] for index in kept],
            batch_size=BATCH_SIZE,
            temperatures=temperatures,
        )
        return bits, left_out

    def development(self, rows: Sequence[Any]) -> tuple[float, float, int]:
        """(bits per byte at temperature 1, the best temperature, examples that fit) on the development split."""
        bits, _ = self.bits(rows, TEMPERATURES)
        fits = ~np.isnan(bits[0])
        totals = np.where(fits, bits, 0.0).sum(1)
        num_bytes = byte_counts(rows)[fits].sum()
        at_one = float(totals[TEMPERATURES.index(1.0)] / max(int(num_bytes), 1))
        return at_one, best_temperature(TEMPERATURES, totals), int(fits.sum())

    def test(self, rows: Sequence[Any], test: HeldOut, temperature: float) -> Scored:
        """Everything that is reported of the test data; `temperature` is the development split's best."""
        bits, left_out = self.bits(rows, (1.0, temperature), max_length=test.max_length)
        rouge = None
        if test.rouge:
            protocol = GenerationConfig(seeds=test.rouge, max_new_tokens=test.max_new_tokens)
            rouge = rouge_scores(self.model, self.side.tokenizer, make_prompts(rows, self.side), protocol).per_seed
        return Scored(test.asked, bits[0], bits[1], byte_counts(rows), rouge, left_out)


def byte_counts(rows: Sequence[Any]) -> NDArray[np.int64]:
    """UTF-8 bytes of every example's responses [E]."""
    return np.array([count_response_bytes(row) for row in rows], np.int64)


def best_temperature(temperatures: Sequence[float], totals: NDArray[np.float64]) -> float:
    """Where the bits are fewest: the bottom of a parabola in the logarithm through the lowest point and its neighbours.

    Args:
        temperatures: ascending, evenly spaced in the logarithm [T].
        totals: bits at each [T].

    Returns:
        A temperature within the grid; an end of it where the bits fall to that end, 1 where they are not finite.
    """
    if not np.isfinite(totals).all():
        return 1.0
    place = int(np.argmin(totals))
    if place in (0, len(temperatures) - 1):
        return float(temperatures[place])
    left, middle, right = totals[place - 1 : place + 2]
    curvature = left - 2 * middle + right
    if curvature <= 0:  # flat: three equal values
        return float(temperatures[place])
    shift = 0.5 * (left - right) / curvature
    step = np.log(temperatures[place + 1] / temperatures[place])
    return float(temperatures[place] * np.exp(shift * step))

"""A global batch cut into micro-batches by a budget of tokens and shared out over ranks: pure functions, no state.

Every term of a loss is divided by the totals of the GLOBAL step, so which rows share a micro-batch, and on which rank,
changes no gradient; it changes how much is computed. A micro-batch computes rows x longest tokens, the padding
included, and costs some time whatever its size (`overhead_tokens`, in tokens that take as long). A worked example, 10
tokens of overhead: rows of 50, 48, 9 and 8 tokens cost 4 x 50 + 10 = 210 in one micro-batch and
(2 x 50 + 10) + (2 x 9 + 10) = 138 in two.

With rows sorted by length, the cheapest cut of all is one into runs of neighbours (let the micro-batch with the longest
row have the next longest too, and the others need fewer columns), and dynamic programming finds it. With several ranks
a step lasts as long as its slowest rank; the best share-out is bin packing, so a few ways to cut are dealt out greedily
and the one whose slowest rank does least is taken.

The plan depends on which rows there are and how long they are, not on the order they are given in.

Legend: G rows of a global batch with its empty slots, n real rows of them sorted by length, the longest first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from sra_train.data.order import NO_ROW


@dataclass(frozen=True)
class TokenBudget:
    """What a micro-batch may be and what it costs beside its tokens."""

    most_tokens: int  # rows x longest; a single row may be longer
    overhead_tokens: int  # a micro-batch takes as long as so many tokens more
    most_rows: int | None = None

    def limited(self, *, most_tokens: int | None = None, most_rows: int | None = None) -> TokenBudget:
        """The same with a user's limits where there are any."""
        return replace(self, most_tokens=most_tokens or self.most_tokens, most_rows=most_rows or self.most_rows)

    def __str__(self) -> str:
        rows = "" if self.most_rows is None else f" and {self.most_rows:,} examples"
        return f"at most {self.most_tokens:,} tokens{rows}"


# CPU: small micro-batches are as fast a token as large ones and need less memory. But each goes over the head's whole
# matrix a few times (its gradient, the embeddings', their sum): as long as 80 tokens of GPT-2 (4 x 256) took; a wider
# student has more to do for a token, and needs fewer.
# CUDA: not measured. A GPU is busy with some ten thousand tokens at once, and while the some 2,000 kernels of a
# micro-batch are launched one by one, a small student could have computed about as many tokens.
BUDGETS = {
    "cpu": TokenBudget(most_tokens=4_096, overhead_tokens=64),
    "cuda": TokenBudget(most_tokens=16_384, overhead_tokens=2_048),
}
# Beside the even cut, cuts whose largest micro-batch is this much larger: less even, but less padded.
PEAK_FACTORS = (1.0, 1.35)


def budget_of_device(device_type: str) -> TokenBudget:
    """The budget where the user sets none; every accelerator is taken for a GPU."""
    return BUDGETS["cpu" if device_type == "cpu" else "cuda"]


def plan_micro_batches(
    rows: np.ndarray,
    lengths: np.ndarray,
    *,
    rank: int,
    world_size: int,
    budget: TokenBudget,
) -> list[np.ndarray]:
    """One rank's micro-batches of a global batch.

    Args:
        rows: [G] row numbers, `NO_ROW` for empty slots.
        lengths: [G] tokens of each row; of empty slots anything.
        rank: This process.
        world_size: Number of processes.
        budget: Of each micro-batch.

    Returns:
        Row numbers of each micro-batch, the one of most tokens (and memory) first: equally many arrays on every rank,
        of different sizes, every real row once over all ranks. `NO_ROW` stands alone in an array, where a rank has
        nothing to do while others have.
    """
    assert 0 <= rank < world_size
    real = rows != NO_ROW
    order = np.lexsort((rows[real], -lengths[real]))
    rows = rows[real][order].astype(np.int64)
    lengths = np.maximum(lengths[real][order].astype(np.int64), 1)
    dealt = min(
        (
            _deal(cuts, lengths, world_size, budget.overhead_tokens)
            for cuts in _ways_to_cut(lengths, world_size, budget)
        ),
        key=lambda one: (one.slowest, one.total),
    )
    own = [(start, stop) for (start, stop), owner in zip(dealt.runs, dealt.owners, strict=True) if owner == rank]
    own.sort(key=lambda run: -_padded(lengths, *run))
    nothing = np.full(1, NO_ROW, dtype=np.int64)
    return [rows[start:stop] for start, stop in own] + [nothing] * (dealt.per_rank - len(own))


@dataclass(frozen=True)
class _Dealt:
    """Runs of neighbouring rows given to ranks."""

    runs: list[tuple[int, int]]
    owners: list[int]
    per_rank: int  # micro-batches of each rank
    slowest: int  # cost of the rank that has most to do
    total: int  # cost of all ranks


def _padded(lengths: np.ndarray, start: int, stop: int) -> int:
    """Tokens of the run [start, stop), padding included."""
    return (stop - start) * int(lengths[start])


def _ways_to_cut(lengths: np.ndarray, world_size: int, budget: TokenBudget) -> Iterator[list[int]]:
    """Borders of runs, 0 and n included: the cheapest cut, and for several ranks some that are more even."""
    cheapest = _cheapest_cuts(lengths, budget)
    yield cheapest
    if world_size == 1 or not len(lengths):
        return
    per_rank = math.ceil((len(cheapest) - 1) / world_size)
    for micros in range(max(1, per_rank - 1), per_rank + 3):
        most_even = _most_even_cuts(lengths, micros * world_size, budget)
        if most_even is None:
            continue
        yield most_even
        peak = max(_padded(lengths, start, stop) for start, stop in _runs(most_even))
        for factor in PEAK_FACTORS:
            yield _cheapest_cuts(lengths, budget.limited(most_tokens=min(int(peak * factor), budget.most_tokens)))


def _widest(length: int, budget: TokenBudget) -> int:
    """How many rows fit into a micro-batch whose longest has `length` tokens."""
    fitting = max(1, budget.most_tokens // length)
    return fitting if budget.most_rows is None else min(fitting, budget.most_rows)


def _cheapest_cuts(lengths: np.ndarray, budget: TokenBudget) -> list[int]:
    """The cut into runs that costs least in all; of equal ones, that with the longest runs at the end."""
    num_rows = len(lengths)
    cost = np.full(num_rows + 1, np.iinfo(np.int64).max)  # of the rows before each border
    cost[0] = 0
    before = np.zeros(num_rows + 1, dtype=np.int64)  # the border before, in the cheapest way there
    for start, length in enumerate(lengths.tolist()):
        ends = slice(start + 1, min(start + _widest(length, budget), num_rows) + 1)
        reached = cost[start] + budget.overhead_tokens + length * np.arange(1, ends.stop - start)
        cheaper = reached < cost[ends]
        np.copyto(cost[ends], reached, where=cheaper)
        np.copyto(before[ends], start, where=cheaper)
    cuts = [num_rows]
    while cuts[-1] > 0:
        cuts.append(int(before[cuts[-1]]))
    return cuts[::-1]


def _most_even_cuts(lengths: np.ndarray, most_runs: int, budget: TokenBudget) -> list[int] | None:
    """At most `most_runs` runs whose largest has as few tokens as can be; None where the budget asks for more runs.

    Filling each run up to a peak, from the longest row on, needs the fewest runs that the peak allows.
    """

    def filled(peak: int) -> list[int]:
        allowed, cuts = budget.limited(most_tokens=peak), [0]
        while cuts[-1] < len(known):
            cuts.append(min(cuts[-1] + _widest(known[cuts[-1]], allowed), len(known)))
        return cuts

    known = lengths.tolist()
    low, high = 0, budget.most_tokens  # a peak that is too low, one that is not
    if len(filled(high)) - 1 > most_runs:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if len(filled(middle)) - 1 <= most_runs else (middle, high)
    return filled(high)


def _deal(cuts: list[int], lengths: np.ndarray, world_size: int, overhead_tokens: int) -> _Dealt:
    """Give the runs to the ranks, equally many each: the costliest first, to the rank that has least so far.

    Where runs are too few for that, the largest are split; an empty micro-batch is for a rank that no row is left for.
    """
    per_rank = max(1, math.ceil((len(cuts) - 1) / world_size))
    runs = _runs(cuts)
    while len(runs) < min(per_rank * world_size, len(lengths)):
        start, stop = max((run for run in runs if run[1] - run[0] > 1), key=lambda run: _padded(lengths, *run))
        saved = (stop - np.arange(start + 1, stop)) * (lengths[start] - lengths[start + 1 : stop])
        middle = start + 1 + int(saved.argmax()) if saved.any() else (start + stop) // 2
        runs.remove((start, stop))
        runs += [(start, middle), (middle, stop)]
    runs.sort(key=lambda run: (-_padded(lengths, *run), run))
    # A rank without a run in some round computes one token there.
    costs = [_padded(lengths, *run) + overhead_tokens for run in runs]
    loads, counts, owners = [0] * world_size, [0] * world_size, []
    for cost in costs:
        owner = min((rank for rank in range(world_size) if counts[rank] < per_rank), key=lambda rank: loads[rank])
        loads[owner] += cost
        counts[owner] += 1
        owners.append(owner)
    loads = [load + (per_rank - count) * (overhead_tokens + 1) for load, count in zip(loads, counts, strict=True)]
    return _Dealt(runs, owners, per_rank, slowest=max(loads), total=sum(loads))


def _runs(cuts: list[int]) -> list[tuple[int, int]]:
    """Borders as half-open runs."""
    return list(pairwise(cuts))

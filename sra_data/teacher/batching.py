"""Which examples go through the teacher together: fixed by lengths and a token budget, by nothing else.

Examples of a unit are sorted by length and cut where the padded batch would exceed the budget, so little is padding
and the same unit gives the same batches in every process and after every restart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from sra_data.models.devices import free_memory, is_out_of_memory

SMALLEST_BUDGET = 1024
# A GPU is busy with some ten thousand tokens; a unit of the Dolly set, 90,000 tokens, run in one batch of 131,072 was
# padded to 2.4 times its tokens, and an H100 took twice as long for it.
LARGEST_BUDGET = 1 << 15
# A CPU gains nothing from larger batches: from 1,024 to 8,192 tokens a teacher of 6 layers x 512 was 7 % faster per
# padded token (one thread, Dolly's lengths), and a unit's padding grows by 8 %.
CPU_BUDGET = 4096


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Cut examples into batches of similar length, longest first (so that a lack of memory shows at once).

    Args:
        lengths: tokens of each example.
        batch_tokens: most padded tokens of a batch; an example longer than that is a batch of its own.

    Returns:
        Indices into `lengths`, every one exactly once; ties keep their order.

    Raises:
        ValueError: If batch_tokens is not positive.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be positive, got {batch_tokens}")
    batches: list[list[int]] = []
    width = 0
    for index in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist():
        if batches and width * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            width = max(lengths[index], 1)
    return batches


def find_batch_tokens(try_batch: Callable[[int], None], *, longest: int, device: torch.device) -> int:
    """The default budget, found by trying before the plan is fixed.

    Args:
        try_batch: runs one full batch of that many padded tokens, of the corpus's longest examples; raises an
            out-of-memory error where it does not fit.
        longest: tokens of the longest example: no budget is below it.
        device: a CPU takes `CPU_BUDGET`; an accelerator half of what just fits, to leave room for fragmentation.
    """
    budget = max(CPU_BUDGET if device.type == "cpu" else SMALLEST_BUDGET, longest)
    if device.type == "cpu":
        return budget
    fits = 0
    while budget <= LARGEST_BUDGET:
        try:
            try_batch(budget)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            free_memory()
            break
        fits, budget = budget, budget * 2
    return max(fits // 2, longest, SMALLEST_BUDGET)

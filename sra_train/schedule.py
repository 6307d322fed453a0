"""The learning rate as a pure function of the step: there is no scheduler, so there is none to save or to lose."""

from __future__ import annotations

import math


def num_warmup_steps(total_steps: int, warmup: float) -> int:
    """Steps of linear warm-up: `warmup` of all, rounded up, and never every step."""
    return min(math.ceil(warmup * total_steps), max(total_steps - 1, 0))


def learning_rate(step: int, *, total_steps: int, warmup: float, peak: float, minimum: float, schedule: str) -> float:
    """The rate used by step `step`.

    Args:
        step: From 0.
        total_steps: Of the run.
        warmup: Share of all steps in which the rate rises linearly to `peak`; its first step is above 0.
        peak: Highest rate.
        minimum: The last step's rate (where it is below `peak`); `constant` never falls.
        schedule: "cosine", "linear" or "constant".
    """
    warmup_steps = num_warmup_steps(total_steps, warmup)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    minimum = min(minimum, peak)
    done = (step - warmup_steps + 1) / max(total_steps - warmup_steps, 1)
    left = 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return minimum + (peak - minimum) * left

"""Where a device's memory runs out in training: one line that says what needs less of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from sra_data.errors import TrainingError
from sra_data.models.devices import is_out_of_memory

GB = 1e9


@contextmanager
def memory_refused(device: torch.device, doing: Callable[[], str], remedy: Callable[[], str]) -> Iterator[None]:
    """Say what ran out of memory, and what needs less.

    Args:
        device: Whose memory it is.
        doing: What is being done ("step 3"); asked for when it is too late.
        remedy: What to set, likewise.

    Raises:
        TrainingError: If memory ran out in the block.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"{doing()}: out of memory on {device}{room_of(device)}; {remedy()}") from error


def room_of(device: torch.device) -> str:
    """How much memory a GPU has, and how much of it torch holds; nothing of other devices."""
    if device.type != "cuda":
        return ""
    held, whole = torch.cuda.memory_reserved(device), torch.cuda.get_device_properties(device).total_memory
    return f" ({held / GB:.1f} of {whole / GB:.1f} GB are this run's)"


def less_at_once(rows: int, tokens: int, others: str) -> str:
    """The remedy where `rows` examples of up to `tokens` tokens were run at once; `others` is what helps besides."""
    smaller = f"training.micro_batch_tokens={rows // 2 * tokens} (it changes no result), " if rows > 1 else ""
    return f"set {smaller}{others}; the last checkpoint is untouched"

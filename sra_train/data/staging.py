"""Memory that batches are built in and that is used again: page-locked where a GPU will copy from it.

A batch of hidden states is tens of megabytes; asking the system for it afresh every time costs page faults, and a copy
to a GPU runs beside its work only from page-locked memory, which is slow to get. So the collating thread takes a
`StagingBuffer` from a pool and the training loop gives it back: after the step on a CPU, where tensors are used in
place; with an event behind the copy on a GPU, and the thread waits for that event before it writes again.

The pool never makes anyone wait for a buffer: if none is free it makes one, so it holds about as many as are in flight.
"""

from __future__ import annotations

import math
import queue

import numpy as np
import torch
from torch import Tensor


class StagingBuffer:
    """Named flat pieces of memory that grow to the largest tensor they were asked for."""

    def __init__(self, *, pinned: bool) -> None:
        self.pinned = pinned
        self.in_use_until: torch.cuda.Event | None = None
        self._memory: dict[str, Tensor] = {}

    def empty(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor on this buffer's memory called `name`; what was there before is overwritten."""
        num_bytes = math.prod(shape) * dtype.itemsize
        memory = self._memory.get(name)
        if memory is None or memory.numel() < num_bytes:
            # a quarter more than asked for, so that slightly longer batches find room
            memory = torch.empty(max(num_bytes + num_bytes // 4, 1), dtype=torch.uint8, pin_memory=self.pinned)
            self._memory[name] = memory
        return memory[:num_bytes].view(dtype).view(shape)

    def copied(self, name: str, values: np.ndarray) -> Tensor:
        """A tensor with these numbers."""
        tensor = torch.from_numpy(values)
        return self.empty(name, tuple(values.shape), tensor.dtype).copy_(tensor)

    def full(self, name: str, shape: tuple[int, ...], value: float, dtype: torch.dtype) -> Tensor:
        """A tensor filled with `value`."""
        return self.empty(name, shape, dtype).fill_(value)


class StagingPool:
    """Buffers that are free."""

    def __init__(self, *, pinned: bool) -> None:
        self.pinned = pinned
        self._free: queue.SimpleQueue[StagingBuffer] = queue.SimpleQueue()

    def take(self) -> StagingBuffer:
        """A buffer nobody reads any more."""
        try:
            buffer = self._free.get_nowait()
        except queue.Empty:
            return StagingBuffer(pinned=self.pinned)
        if buffer.in_use_until is not None:
            buffer.in_use_until.synchronize()
            buffer.in_use_until = None
        return buffer

    def give_back(self, buffer: StagingBuffer) -> None:
        """Return a buffer; on a GPU, copies queued so far may still be reading from it."""
        if self.pinned:
            buffer.in_use_until = torch.cuda.Event()
            buffer.in_use_until.record()
        self._free.put(buffer)

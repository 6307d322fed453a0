"""Counts what would make the host wait for a device: operations whose result's size or value Python must know."""

from __future__ import annotations

import traceback
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {"aten::nonzero", "aten::_local_scalar_dense", "aten::masked_select", "aten::is_nonzero", "aten::unique"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class WaitCounter(TorchDispatchMode):
    """What ran inside the block, also on the CPU.

    Attributes:
        found: (operation, "file:line" of the nearest code outside torch) -> how often.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name
        if name in WAITING or (name in INDEXING and any(is_mask(one) for one in args[1])):
            self.found[name, nearest_line()] += 1
        return function(*args, **(kwargs or {}))


def is_mask(index: Any) -> bool:
    """Whether an index is one of booleans, whose number of rows nobody knows beforehand."""
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool


def nearest_line() -> str:
    """Where outside torch the operation was asked for."""
    frames = [one for one in traceback.extract_stack() if "/torch/" not in one.filename and one.filename != __file__]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "the backward"

"""Reading attention rows from modules that do not follow transformers' attention interface.

Such a module (BLOOM, Falcon, MPT, GPT-J; any model on the eager path) calls softmax over its scores, or SDPA, somewhere
inside its forward. While a module of a mapped layer runs, and only then, a torch function mode listens to those calls
and reads one row of the result. Nothing the module computes is changed or kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sra_data.models.attention_row import Total, last_query_row, normalised

SOFTMAX_FUNCTIONS = frozenset({torch.softmax, torch.nn.functional.softmax, Tensor.softmax})
SDPA = torch.nn.functional.scaled_dot_product_attention


class Removable(Protocol):
    """Something put on a module that can be taken off again."""

    def remove(self) -> None: ...


class _Listener(TorchFunctionMode):
    """Reads the row of `query_index` from the first softmax over positions, or SDPA call, that runs under it."""

    def __init__(
        self, module: nn.Module, query_index: Tensor, keep: Callable[[Tensor], None], total: Total | None
    ) -> None:
        super().__init__()
        self.total = total
        self.module = module
        self.query_index = query_index
        self.keep = keep

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in SOFTMAX_FUNCTIONS and result.dim() in (3, 4):
            self._read_probabilities(result)
        elif func is SDPA:
            self._read_sdpa(*args, **(kwargs or {}))
        return result

    @torch.no_grad()
    def _read_probabilities(self, probabilities: Tensor) -> None:
        """[B, H, N, S] or [B * H, N, S] -> the row."""
        index = self.query_index.to(probabilities.device)
        batch = len(index)
        per_head = probabilities.detach().reshape(batch, -1, *probabilities.shape[-2:])
        # A sink adds a column that is no position.
        num_positions = min(per_head.shape[-1], per_head.shape[-2]) if per_head.shape[-2] > 1 else per_head.shape[-1]
        row = per_head[torch.arange(batch, device=index.device), :, index]  # [B, H, S]
        self.keep(normalised(row[..., :num_positions], self.total))

    def _read_sdpa(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        self.keep(
            last_query_row(
                self.module,
                query,
                key,
                attn_mask,
                self.query_index,
                scaling=scale,
                is_causal=is_causal,
                total=self.total,
            )
        )


class _OutsideTheCompiler:
    """Keeps torch.compile out of one module's forward, where a listener would not be heard; `remove` lets it in."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        # A wrapper someone else put on the instance (accelerate does) has to come back as it was.
        self.replaced = vars(module).get("forward")
        module.forward = torch.compiler.disable(module.forward)

    def remove(self) -> None:
        if self.replaced is None:
            del self.module.forward  # the class's own forward comes back
        else:
            self.module.forward = self.replaced


def listen_to_attention(
    module: nn.Module,
    query_index: Callable[[], Tensor | None],
    keep: Callable[[Tensor], None],
    *,
    total: Total | None = None,
) -> list[Removable]:
    """Hook one attention module: while it runs and `query_index()` is not None, give its row to `keep`.

    `total` adds up over the processes that share its heads.

    Returns:
        The hooks' handles; removing them gives the module back as it was.
    """
    running: list[_Listener] = []

    @torch.compiler.disable
    def start(module: nn.Module, args: Any) -> None:
        index = query_index()
        if index is not None:
            running.append(_Listener(module, index, keep, total))
            running[-1].__enter__()

    @torch.compiler.disable
    def stop(module: nn.Module, args: Any, output: Any) -> None:
        if running:
            running.pop().__exit__(None, None, None)

    return [
        module.register_forward_pre_hook(start),
        # always_call: an exception inside the module must not leave the listener on.
        module.register_forward_hook(stop, always_call=True),
        _OutsideTheCompiler(module),
    ]

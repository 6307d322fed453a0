"""A teacher's whole output head as frozen buffers, for methods that read all of its distribution.

Buffers are not saved: a checkpoint holds what was trained. The cast to the dtype of the products is made once a run.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sra_data.errors import ConfigError
from sra_data.models.output_head import OutputHead
from sra_train.contract import TeacherKnowledge
from sra_train.methods.terms.head_loss import ChunkedHead


def chunked(head: OutputHead) -> ChunkedHead:
    """The product of a head that is already in the dtype of the product."""
    return ChunkedHead(head.weight, head.bias, scale=head.scale, softcap=head.softcap)


class TeacherHead(nn.Module):
    """The head with all its rows, in its own order of ids."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, knowledge: TeacherKnowledge, *, method: str) -> None:
        """Refuses a teacher whose head is not known (ConfigError); `method` is named there."""
        super().__init__()
        if knowledge.head is None:
            raise ConfigError(f"method={method}: the shards hold no teacher's head; run `sra-data cache-teacher`")
        head = knowledge.head.detach()
        self.scale, self.softcap = head.scale, head.softcap
        self.register_buffer("weight", head.weight, persistent=False)
        self.register_buffer("bias", head.bias, persistent=False)
        self._cast: dict[tuple[torch.device, torch.dtype], OutputHead] = {}

    def of(self, dtype: torch.dtype) -> OutputHead:
        """The head in the dtype of the product, where it lies now."""
        own = OutputHead(self.weight, self.bias, self.scale, self.softcap)
        if self.weight.dtype == dtype:
            return own
        key = self.weight.device, dtype
        if key not in self._cast:
            self._cast = {key: own.to(dtype)}
        return self._cast[key]

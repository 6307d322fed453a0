"""Where the tensors of a model are that accelerate has spread over devices (`device_map="auto"`).

A part that has no room on any accelerator is kept in memory or on disk and brought to its device for each of its
forwards; between them its weights are on the meta device, which holds no numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def weight_of(module: nn.Module) -> Tensor:
    """A module's weight with its numbers: the live parameter, or a copy of one that is kept elsewhere."""
    found: Any = module
    weight: Tensor = found.weight
    if weight.device.type == "meta" and hasattr(module, "_hf_hook"):
        from accelerate.utils import align_module_device

        with align_module_device(module):
            weight = found.weight.detach()
    return weight


def device_of_module(module: nn.Module) -> torch.device:
    """Where a module computes, which is where it takes its inputs."""
    hook: Any = getattr(module, "_hf_hook", None)
    wanted = getattr(hook, "execution_device", None)
    return next(module.parameters()).device if wanted is None else torch.device(wanted)

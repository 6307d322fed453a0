"""Where a model may run: a device that this machine has, and that holds numbers."""

from __future__ import annotations

import torch

from sra_data.errors import ConfigError


def usable_device(wanted: str | None) -> torch.device:
    """The device of a name; a GPU where there is one, else the CPU, where none is named.

    Raises:
        ConfigError: If this machine has no such device.
    """
    name = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise ValueError("it holds no numbers")
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(f"--device {name}: cannot be used ({reason}); write cpu, or leave it out") from None
    return device

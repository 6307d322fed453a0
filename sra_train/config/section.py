"""What every part of the configuration is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen part of the configuration that knows its keys; its numbers are numbers, neither NaN nor without end."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

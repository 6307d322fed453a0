"""What every part of the configuration is."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """A frozen part of the configuration that knows its keys; its numbers are numbers: not NaN, without end, or yes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def numbers_are_no_truths(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `yes` as true, which pydantic would take for a 1."""
        if isinstance(value, bool) and _is_number(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("a number is wanted, no yes or no")
        return value


def _is_number(annotation: Any) -> bool:
    """Whether a field takes numbers, and neither text nor truths."""
    kinds = {annotation, *get_args(annotation)} - {None, type(None)}
    return bool(kinds & {int, float}) and not kinds & {str, bool}

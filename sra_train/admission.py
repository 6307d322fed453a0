"""What a student must be before its first step, beside what loading it refuses: one line for each refusal."""

from __future__ import annotations

from typing import Any

from torch import nn

from sra_data.errors import ConfigError
from sra_data.models.decoder import unwrap
from sra_data.positions import most_positions
from sra_train.data.table import RowTable


def refuse_other_vocabulary(model: nn.Module, tokenizer: Any, *, name: str) -> None:
    """Refuse a student with fewer embeddings than its tokenizer has ids.

    Raises:
        ConfigError: With both numbers.
    """
    rows = unwrap(model).get_input_embeddings().weight.shape[0]
    if rows < len(tokenizer):
        raise ConfigError(
            f"student {name}: {rows} embeddings for a tokenizer of {len(tokenizer)} ids; choose"
            " the model that belongs to the tokenizer (the vocabulary is never resized)"
        )


def refuse_short_positions(model: nn.Module, table: RowTable, *, name: str, with_development: bool) -> None:
    """Refuse a student that reads fewer positions than the rows it is given have.

    Beyond them a table of positions ends in an error of its library, and rotary positions go on without a word into
    what the model has never seen.

    Args:
        model: the student.
        table: of the rows.
        name: Hub id or folder.
        with_development: whether the development split is measured.

    Raises:
        ConfigError: With how many rows are too long, and the remedy.
    """
    most = most_positions(unwrap(model).config)
    lengths = table.num_tokens[table.is_train | table.is_dev] if with_development else table.num_tokens[table.is_train]
    beyond = 0 if most is None else int((lengths > most).sum())
    if beyond:
        raise ConfigError(
            f"student {name}: reads {most} tokens, and {beyond:,} of the {len(lengths):,} rows it would read are longer"
            f" (the longest has {lengths.max()}); run `sra-data align` with --student {name} and --student-max-length"
            f" {most}, which adds a side"
        )

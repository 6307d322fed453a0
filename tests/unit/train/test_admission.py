"""What a student is refused for before its first step."""

from __future__ import annotations

import numpy as np
import pytest

from sra_data.errors import ConfigError
from sra_train.admission import refuse_short_positions
from sra_train.data.table import RowTable
from tests.model_zoo import tiny_model


def table(train: list[int], development: list[int], others: list[int]) -> RowTable:
    """Rows with so many tokens; the others are in no split that is read."""
    lengths = np.array([*train, *development, *others], np.int64)
    place = np.arange(len(lengths))
    is_train = place < len(train)
    return RowTable(
        row_groups=np.zeros_like(lengths),
        is_train=is_train,
        is_dev=~is_train & (place < len(train) + len(development)),
        num_tokens=lengths,
        num_labels=np.ones_like(lengths),
        num_spans=np.ones_like(lengths),
    )


@pytest.mark.parametrize(("family", "field"), [("gpt2", "n_positions"), ("llama", "max_position_embeddings")])
def test_a_student_with_fewer_positions_than_its_rows_is_refused_by_how_many(family: str, field: str) -> None:
    model = tiny_model(family, **{field: 16})
    rows = table([3, 17, 16, 40], [18], [99])
    with pytest.raises(ConfigError) as caught:
        refuse_short_positions(model, rows, name="s", with_development=True)
    assert str(caught.value) == (
        "student s: reads 16 tokens, and 3 of the 5 rows it would read are longer (the longest has 40);"
        " run `sra-data align` with --student s and --student-max-length 16, which adds a side"
    )
    refuse_short_positions(model, table([3, 16], [16], [99]), name="s", with_development=True)


def test_development_rows_count_only_where_they_are_measured() -> None:
    model, rows = tiny_model("llama", max_position_embeddings=16), table([16], [17], [])
    refuse_short_positions(model, rows, name="s", with_development=False)
    with pytest.raises(ConfigError, match="1 of the 2 rows"):
        refuse_short_positions(model, rows, name="s", with_development=True)


@pytest.mark.parametrize("family", ["falcon_alibi", "bloom", "mamba"])
def test_a_student_without_a_limit_reads_any_row(family: str) -> None:
    refuse_short_positions(tiny_model(family), table([100_000], [], []), name="s", with_development=True)

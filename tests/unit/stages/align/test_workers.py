"""How many processes `align` takes where nobody says: no more than have work that is longer than their start."""

from __future__ import annotations

import pytest

from sra_data.stages.align import stage


@pytest.mark.parametrize(
    ("cores", "units", "workers"),
    [(16, 1, 1), (16, 18, 1), (16, 127, 1), (16, 128, 2), (16, 10_000, 16), (2, 10_000, 2)],
)
def test_a_process_is_started_for_units_enough(monkeypatch, cores: int, units: int, workers: int) -> None:
    monkeypatch.setattr(stage, "num_cores", lambda: cores)
    assert stage.default_workers(units) == workers

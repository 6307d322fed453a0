"""Measuring: temperatures, what is kept on disk, and which point of a grid is the best."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from sra_data.errors import SourceError, TrainingError
from sra_data.models.output_head import OutputHead
from sra_train.compare.measure import TEMPERATURES, best_temperature
from sra_train.compare.plan import Point, RunKey
from sra_train.compare.records import ARRAYS, Scored, Trained, read_tested, read_trained, write_tested, write_trained
from sra_train.compare.results import Ruler, Tried
from sra_train.compare.stage import best_point
from sra_train.contract import LabelRows
from sra_train.likelihood import token_nats_at


def nats_of(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> float:
    return float(nn.functional.cross_entropy(logits / temperature, targets, reduction="sum"))


def test_the_temperature_of_a_calibrated_model_is_that_of_its_samples() -> None:
    """Targets drawn at temperature 1.3: fitting finds 1.3, though it is no point of the grid."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20_000, 12, generator=generator, dtype=torch.float64)
    targets = torch.multinomial(torch.softmax(logits / 1.3, -1), 1, generator=generator)[:, 0]
    totals = np.array([nats_of(logits, targets, temperature) for temperature in TEMPERATURES])
    assert best_temperature(TEMPERATURES, totals) == pytest.approx(1.3, rel=0.02)


def test_the_best_temperature_is_never_worse_than_the_grid() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(200, 7, generator=generator, dtype=torch.float64)
    targets = torch.randint(7, (200,), generator=generator)
    for scale in (0.3, 1.0, 1.7, 2.5):
        totals = np.array([nats_of(scale * logits, targets, one) for one in TEMPERATURES])
        found = best_temperature(TEMPERATURES, totals)
        assert TEMPERATURES[0] <= found <= TEMPERATURES[-1]
        assert nats_of(scale * logits, targets, found) <= totals.min() * (1 + 1e-4)


def test_bits_that_fall_to_an_end_or_are_broken_give_an_end_or_1() -> None:
    count = len(TEMPERATURES)
    assert best_temperature(TEMPERATURES, np.arange(count, 0.0, -1)) == TEMPERATURES[-1]
    assert best_temperature(TEMPERATURES, np.arange(float(count))) == TEMPERATURES[0]
    assert best_temperature(TEMPERATURES, np.full(count, np.nan)) == 1.0
    assert 1.0 in TEMPERATURES


def test_nats_at_several_temperatures_are_those_of_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(2)
    hidden, weight = torch.randn(2, 4, 5, generator=generator), torch.randn(9, 5, generator=generator)
    rows = LabelRows(torch.tensor([0, 2, 5]), torch.tensor([0, 0, 1]), torch.tensor([3, 8, 1]))
    found = token_nats_at((0.5, 1.0, 2.0), hidden=hidden, head=OutputHead.from_state({"weight": weight}, {}), rows=rows)
    assert found.shape == (3, 2)
    for place, temperature in enumerate((0.5, 1.0, 2.0)):
        for example in range(2):
            expected = sum(
                -float(
                    torch.log_softmax(weight.double() @ hidden.reshape(-1, 5)[int(p)].double() / temperature, 0)[int(t)]
                )
                for p, e, t in zip(rows.positions, rows.example, rows.targets, strict=True)
                if int(e) == example
            )
            assert float(found[place, example]) == pytest.approx(expected, rel=1e-5)


def test_what_is_written_is_read_and_other_data_are_not_found(tmp_path) -> None:
    assert read_trained(tmp_path) is None
    trained = Trained("done", "", "model", 3, 1.25, 1.1, 7)
    write_trained(tmp_path, trained)
    assert read_trained(tmp_path) == trained
    tested = Scored({"digest": "a"}, np.array([1.0, np.nan]), np.array([2.0, np.nan]), np.array([3, 4]), (1.5, 2.5))
    write_tested(tmp_path, tested)
    found = read_tested(tmp_path, {"digest": "a"})
    assert found is not None
    np.testing.assert_array_equal(found.bits, tested.bits)
    assert found.rouge == (1.5, 2.5)
    assert read_tested(tmp_path, {"digest": "b"}) is None
    (tmp_path / ARRAYS).write_bytes(b"torn")
    with pytest.raises(TrainingError, match=r"tested\.npz: damaged"):
        read_tested(tmp_path, {"digest": "a"})
    (tmp_path / "trained.json").write_text("{")
    with pytest.raises(TrainingError, match=r"trained\.json: damaged .*; delete it and run again"):
        read_trained(tmp_path)


def test_only_examples_that_all_models_read_count() -> None:
    def tested(*bits: float) -> Scored:
        return Scored({}, np.array(bits), np.array(bits), np.array([1, 2, 4]))

    ruler = Ruler.of([tested(1, 2, 3), tested(1, math.nan, 3)])
    assert ruler.kept.tolist() == [True, False, True]
    assert ruler.per_byte(np.array([1.0, 100.0, 4.0])) == 1.0
    with pytest.raises(SourceError, match="no example fits all models"):
        Ruler.of([tested(1, math.nan, math.nan), tested(math.nan, 2, 3)])


def test_the_best_point_has_the_fewest_bits_and_one_must_not_diverge() -> None:
    keys = [RunKey("sra", Point(rate), 42) for rate in (1e-3, 1e-2, 1e-1)]

    def tried(*values: float | None) -> list[Tried]:
        return [Tried(key.point.rate, None, value) for key, value in zip(keys, values, strict=True)]

    assert best_point("sra", keys, tried(2.0, 1.5, None)) == Point(1e-2)
    assert best_point("sra", keys, tried(1.5, 1.5, 2.0)) == Point(1e-3)
    with pytest.raises(
        TrainingError, match=r"sra: diverges at every point of the grid \(lr-0\.001, lr-0\.01, lr-0\.1\); give lower"
    ) as e:
        best_point("sra", keys, tried(None, None, None))
    assert "\n" not in str(e.value)

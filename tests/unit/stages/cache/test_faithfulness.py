"""Laws of the faithfulness measure: it sees what a good cosine hides, and refuses with the number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sra_data.errors import ShardError
from sra_data.models.output_head import OutputHead
from sra_data.stages.cache.faithfulness import (
    Distance,
    centres_of_mass,
    next_token_divergences,
    refuse_unfaithful,
)
from sra_data.stages.sampling import sample_rows


def numbers(error: float, kl: float = 0.0) -> dict[str, float]:
    return {
        "relative_error": error,
        "relative_error_non_outlier": error,
        "kl": kl,
        "next_log_prob_difference": 0.0,
    }


def found(cache: dict[str, float], shuffled: float = 1.0, control: float = 0.0) -> dict[str, Any]:
    return {"examples": 2, "cache": cache, "control": numbers(control), "shuffled": numbers(shuffled)}


def judge(measured: dict[str, Any], dtype: torch.dtype = torch.bfloat16) -> None:
    refuse_unfaithful(measured, hidden_dtype="bf16", dtype=dtype, where="shards/teacher")


def test_errors_outside_outlier_channels_are_not_hidden_by_them() -> None:
    live = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    live[:, 0] *= 1000
    coarse = live.copy()
    coarse[:, 1:] = np.round(live[:, 1:])  # as if one scale had to serve all channels
    is_normal = np.ones(16, bool)
    is_normal[0] = False
    distance = Distance({1: is_normal})
    distance.add_states(1, live, coarse, np.ones(40, np.float32), np.ones(40, np.float32))
    values = distance.values()
    assert values["relative_error"] < 2e-3
    assert values["cosine_of_centres"] > 0.999
    assert values["relative_error_non_outlier"] > 0.2


def test_a_log_probability_that_only_one_side_has_is_a_large_difference_not_nan() -> None:
    nan = float("nan")
    cut, whole = np.array([-1.0, nan], np.float32), np.array([-1.0, -2.0], np.float32)
    for live, other, expected in ((cut, cut, 0.0), (whole, whole, 0.0), (whole, cut, 50.0)):
        distance = Distance({})
        distance.add_log_probs(live, other)
        assert distance.values() == {"next_log_prob_difference": expected}


def test_divergence_equals_a_float64_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    head = OutputHead(torch.randn(30, 8, generator=generator))
    live, other = torch.randn(2, 70, 8, generator=generator)
    expected = [
        (p.exp() * (p - q)).sum()
        for p, q in zip(
            head.logits(live).double().log_softmax(-1), head.logits(other).double().log_softmax(-1), strict=True
        )
    ]
    measured = next_token_divergences(head, live.numpy(), other.numpy())
    np.testing.assert_allclose(measured, torch.stack(expected).numpy(), rtol=1e-9)
    assert (next_token_divergences(head, live.numpy(), live.numpy()) == 0).all()


def test_centres_weigh_by_mass_and_fall_back_to_the_mean() -> None:
    states = np.arange(8, dtype=np.float32).reshape(4, 2)
    np.testing.assert_allclose(centres_of_mass(states, np.array([0, 0, 0, 2], np.float32)), [[6, 7]])
    np.testing.assert_allclose(centres_of_mass(states, np.zeros(4, np.float32)), [[3, 4]])


def test_samples_have_positions_and_are_spread_over_the_corpus() -> None:
    counts = np.array([0, 3, 0, 4, 5, 0, 1, 9])
    assert sample_rows(counts, 2).tolist() == [1, 7]
    assert sample_rows(counts, 100).tolist() == [1, 3, 4, 6, 7]
    assert len(sample_rows(np.zeros(3), 4)) == 0


def test_what_the_storage_explains_passes_and_what_it_does_not_is_refused() -> None:
    judge(found(numbers(1.7e-3)))
    with pytest.raises(ShardError, match=r"shards/teacher: relative error non outlier .* is 0.02, above 0.008"):
        judge(found(numbers(0.02)))
    with pytest.raises(ShardError, match=r"kl between live teacher and cache is 0.5"):
        judge(found(numbers(1e-3, kl=0.5)))


def test_a_noisy_teacher_is_given_the_room_its_control_shows() -> None:
    judge(found(numbers(0.02), control=0.01))
    with pytest.raises(ShardError, match=r"is 0.02, above"):  # the same numbers, a quieter control
        judge(found(numbers(0.02), control=0.001))


@pytest.mark.parametrize("name", ["relative_error_non_outlier", "kl", "next_log_prob_difference"])
def test_a_large_control_is_a_refusal_and_not_an_excuse(name: str) -> None:
    measured = found(numbers(0.0))
    for dtype, limit in ((torch.float32, 1e-3), (torch.bfloat16, 0.1)):
        measured["control"][name] = limit
        judge(measured, dtype)
        measured["control"][name] = 1.01 * limit
        with pytest.raises(ShardError, match=r"between live teacher and live teacher is .*; delete the folder and cac"):
            judge(measured, dtype)


def test_a_cache_no_better_than_another_examples_is_refused() -> None:
    with pytest.raises(ShardError, match="rows are not where they should be"):
        judge(found(numbers(1e-3), shuffled=5e-3))
    with pytest.raises(ShardError, match="is nan"):
        judge(found(numbers(float("nan"))))

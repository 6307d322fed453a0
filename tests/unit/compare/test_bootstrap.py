"""Laws of the paired bootstrap: what is shared drops out, what is constant is sure, what is drawn repeats."""

from __future__ import annotations

import numpy as np
import pytest

from sra_train.compare.bootstrap import paired_difference, resampled_ratios

SEEDS, EXAMPLES = 4, 30


def world(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(bits [S, E], bytes [E]) of examples that differ much and of seeds that differ a little."""
    random = np.random.default_rng(seed)
    num_bytes = random.integers(5, 200, EXAMPLES)
    hardness = random.uniform(0.5, 4, EXAMPLES) * num_bytes
    return hardness * random.uniform(0.98, 1.02, (SEEDS, EXAMPLES)), num_bytes


def test_a_constant_shift_per_byte_gives_exactly_the_shift() -> None:
    bits, num_bytes = world()
    found = paired_difference(bits + 0.25 * num_bytes, bits, num_bytes, resamples=500)
    assert found.mean == pytest.approx(0.25, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((0.25, 0.25), abs=1e-12)
    assert found.is_sure


def test_identical_runs_differ_by_exactly_nothing() -> None:
    bits, num_bytes = world()
    found = paired_difference(bits, bits.copy(), num_bytes, resamples=500)
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert not found.is_sure


def test_pairing_narrows_the_interval() -> None:
    bits, num_bytes = world()
    other = bits * 0.99
    paired = paired_difference(bits, other, num_bytes, resamples=2000)
    of_both = [resampled_ratios(one, num_bytes.astype(float), resamples=2000) for one in (bits, other)]
    unpaired = np.subtract(of_both[0], np.random.default_rng(1).permutation(of_both[1]))
    low, high = np.quantile(unpaired, [0.025, 0.975])
    assert paired.high - paired.low < 0.2 * (high - low)


def test_swapping_the_methods_turns_the_interval_round() -> None:
    bits, num_bytes = world()
    other, _ = world(1)
    forth = paired_difference(bits, other, num_bytes, resamples=800)
    back = paired_difference(other, bits, num_bytes, resamples=800)
    assert (back.mean, back.low, back.high) == pytest.approx((-forth.mean, -forth.high, -forth.low))


def test_the_interval_repeats_and_does_not_depend_on_the_blocks(monkeypatch) -> None:
    bits, num_bytes = world()
    first = paired_difference(bits, bits[::-1] * 1.01, num_bytes, resamples=700)
    assert first == paired_difference(bits, bits[::-1] * 1.01, num_bytes, resamples=700)
    values = resampled_ratios(bits, num_bytes.astype(float), resamples=5)
    assert values.shape == (5,)
    monkeypatch.setattr("sra_train.compare.bootstrap.DRAWS_AT_ONCE", 3 * SEEDS * EXAMPLES)
    assert resampled_ratios(bits, num_bytes.astype(float), resamples=7).shape == (7,)


def test_the_spread_of_the_examples_is_that_of_theory() -> None:
    """One seed, equal bytes: the interval is that of a mean of E values."""
    random = np.random.default_rng(3)
    difference = random.standard_normal((1, 400))
    found = paired_difference(difference, np.zeros_like(difference), np.full(400, 1), resamples=4000)
    half = 1.96 * difference.std() / np.sqrt(400)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.06)


def test_seeds_that_differ_widen_it() -> None:
    bits, num_bytes = world()
    calm = bits[:1].repeat(SEEDS, 0)
    apart = calm + np.linspace(-1, 1, SEEDS)[:, None] * num_bytes
    narrow = paired_difference(calm * 1.01, calm, num_bytes, resamples=1000)
    wide = paired_difference(apart, calm, num_bytes, resamples=1000)
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def test_numbers_that_do_not_fit_are_a_programmers_error() -> None:
    bits, num_bytes = world()
    with pytest.raises(ValueError, match="do not fit"):
        paired_difference(bits, bits[:2], num_bytes)
    with pytest.raises(ValueError, match="do not fit"):
        paired_difference(bits, bits, num_bytes[:3])

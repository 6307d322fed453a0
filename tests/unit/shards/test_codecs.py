"""Codecs are exact, but for int8, whose error is bounded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sra_data.errors import ShardError
from sra_data.shards.codecs import (
    CODECS,
    HIDDEN_DTYPES,
    EncodedTensor,
    bits_for,
    codec_named,
    encode_float32,
    estimate_channel_scales,
    pack_ids,
    pack_sorted,
    packed_size,
    quantize_int8,
    scales_from_text,
    scales_to_text,
    unpack_ids,
    unpack_sorted,
)

shapes = hnp.array_shapes(max_dims=2, min_side=0)
any_float32 = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 31).flatmap(lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1)))))
def test_packed_ids_come_back(case: tuple[int, list[int]]) -> None:
    bits, ids = case
    packed = pack_ids(np.asarray(ids, np.int32), bits)
    assert len(packed) == packed_size(len(ids), bits)
    assert unpack_ids(memoryview(packed), len(ids), bits).tolist() == ids


def test_packed_ids_take_the_bits_the_vocabulary_needs() -> None:
    assert [bits_for(size) for size in (1, 2, 3, 256, 257, 65_536, 65_537, 151_936)] == [1, 1, 2, 8, 9, 16, 17, 18]
    assert packed_size(64, bits_for(151_936)) == 144


@pytest.mark.parametrize("ids", [[8], [-1]])
def test_ids_that_do_not_fit_are_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="do not fit 3 bits"):
        pack_ids(np.asarray(ids, np.int32), 3)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["<f2", "<f4"]).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(max_dims=2, min_side=0)))
)
def test_sorted_values_come_back_bit_for_bit_even_unsorted(values: np.ndarray) -> None:
    back = unpack_sorted(memoryview(pack_sorted(values)), values.shape, values.dtype)
    assert back.tobytes() == values.tobytes()
    assert back.shape == values.shape


@settings(max_examples=60, deadline=None)
@given(any_float32)
def test_bf16_equals_torch_for_every_float(values: np.ndarray) -> None:
    encoded = encode_float32(values, "bf16")
    expected = torch.from_numpy(values.copy()).to(torch.bfloat16)
    assert np.array_equal(encoded.float32(), expected.float().numpy(), equal_nan=True)
    assert torch.equal(torch.from_numpy(encoded.array).view(torch.bfloat16).isnan(), expected.isnan())


@pytest.mark.parametrize("dtype", HIDDEN_DTYPES)
@pytest.mark.parametrize("count", [0, 1, 5])
def test_hidden_states_come_back_as_they_were_encoded(dtype: str, count: int) -> None:
    values = np.random.default_rng(0).standard_normal((count, 6)).astype(np.float32)
    scales = np.linspace(0.5, 50, 6, dtype=np.float32)
    encoded = encode_float32(values, dtype, scales)
    parameters = {"channel_scales": scales_to_text(scales)}
    stored = b"".join(bytes(buffer) for buffer in CODECS[dtype].encode(encoded, parameters))
    assert len(stored) == CODECS[dtype].size((count, 6), parameters)
    back = CODECS[dtype].decode(memoryview(stored), (count, 6), parameters)
    assert isinstance(back, EncodedTensor)
    assert np.array_equal(back.float32(), encoded.float32())
    assert np.array_equal(back[:1].float32(), encoded.float32()[:1])


def outlier_states(count: int, width: int, seed: int) -> np.ndarray:
    """Normal states, six channels 50 times as large."""
    values = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    values[:, [3, 17, 40, 41, 90, 120]] *= 50
    return values


def test_int8_is_within_one_percent_outside_the_outlier_channels() -> None:
    values = outlier_states(400, 512, 1)
    scales = estimate_channel_scales(outlier_states(256, 512, 2))
    decoded = quantize_int8(values, scales).float32()
    ordinary = np.setdiff1d(np.arange(512), [3, 17, 40, 41, 90, 120])
    error = np.linalg.norm((decoded - values)[:, ordinary]) / np.linalg.norm(values[:, ordinary])
    assert error < 0.01
    # What is banned: one scale for the whole vector leaves the ordinary channels a handful of levels.
    step = np.abs(values).max(axis=1, keepdims=True) / 127
    plain = np.rint(values / step) * step
    assert np.linalg.norm((plain - values)[:, ordinary]) / np.linalg.norm(values[:, ordinary]) > 0.1


def test_int8_of_zeros_is_zeros_and_dead_channels_have_a_scale() -> None:
    scales = estimate_channel_scales(np.zeros((3, 4), np.float32))
    assert (scales > 0).all()
    assert not quantize_int8(np.zeros((2, 4), np.float32), scales).float32().any()


def test_calibration_on_nothing_or_on_nan_is_refused() -> None:
    for samples in (np.empty((0, 4), np.float32), np.full((2, 4), np.nan, np.float32)):
        with pytest.raises(ValueError, match="finite"):
            estimate_channel_scales(samples)


def test_channel_scales_as_text_are_exact() -> None:
    scales = np.random.default_rng(0).random(7, dtype=np.float32)
    assert np.array_equal(scales_from_text(scales_to_text(scales)), scales)


def test_an_unknown_codec_names_the_remedy() -> None:
    with pytest.raises(ShardError, match=r"unknown codec zip9.*update the package"):
        codec_named("zip9", where="part-00000.parquet")


def test_what_fp16_cannot_hold_is_refused_rather_than_made_infinite() -> None:
    assert encode_float32(np.array([[65_519.0, np.inf]], np.float32), "fp16").float32().tolist() == [[65_504.0, np.inf]]
    with pytest.raises(ShardError, match="hidden states up to 65520 do not fit fp16; use --hidden-dtype bf16"):
        encode_float32(np.array([[65_520.0]], np.float32), "fp16")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5), st.integers(1, 300), st.integers(0, 1000))
def test_an_int8_scale_belongs_to_its_vector_and_its_block(count: int, width: int, seed: int) -> None:
    """On disk as the format says: scales [P, ceil(D/128)] vector by vector, whatever the widths."""
    random = np.random.default_rng(seed)
    sizes = np.exp(random.uniform(-6, 6, (count, -(-width // 128)))).repeat(128, axis=1)[:, :width]  # of each block
    values = (random.standard_normal((count, width)) * sizes).astype(np.float32)
    channels = random.uniform(0.5, 2, width).astype(np.float32)
    parameters = {"channel_scales": scales_to_text(channels)}
    encoded = encode_float32(values, "int8", channels)
    data = b"".join(bytes(piece) for piece in CODECS["int8"].encode(encoded, parameters))
    stored = np.frombuffer(data, "<f4", encoded.vector_scales.size).reshape(encoded.vector_scales.shape)
    assert np.array_equal(stored, encoded.vector_scales)
    back = CODECS["int8"].decode(memoryview(data), values.shape, parameters)
    assert np.array_equal(back.vector_scales, encoded.vector_scales)
    assert np.array_equal(back.float32(), encoded.float32())
    half_a_level = 0.51 * encoded.vector_scales.repeat(128, axis=1)[:, :width] * channels
    assert (np.abs(back.float32() - values) <= half_a_level).all()

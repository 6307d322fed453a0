"""Laws of what a teacher is asked for: declared once, whole in the record, and it comes back from there."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

import pytest

from sra_data.errors import ConfigError, ModelError
from sra_data.options import recorded, restored
from sra_data.shards.codecs import HIDDEN_DTYPES
from sra_data.teacher.loading import DTYPES
from sra_data.teacher.spec import KNOWN_BY_PAGES, CaptureOptions, Dtype, HiddenDtype, TeacherSpec, check_capture


def test_the_choices_are_those_there_are() -> None:
    assert set(get_args(HiddenDtype)) == {*HIDDEN_DTYPES, "none"}
    assert get_args(Dtype) == tuple(DTYPES)


def test_the_record_of_a_capture_gives_it_back() -> None:
    capture = CaptureOptions(
        layers=("last", 2), hidden_dtype="int8", top_k=7, temperatures=(1.0, 0.5), granularity="span"
    )
    resolved = capture.resolved(4)
    assert resolved.layers == (2, 4)
    record = recorded(resolved)
    assert record["temperatures"] == [1.0, 0.5]
    assert restored(CaptureOptions, {**record, "anything": "else"}) == resolved
    assert resolved.resolved(4) == resolved
    assert CaptureOptions(top_k=0).resolved(4).temperatures == ()  # nothing is kept at any


def test_pages_know_of_their_teacher_what_decides_their_numbers() -> None:
    assert recorded(TeacherSpec(dtype="bf16", device="cuda")) == {"dtype": "bf16", "quantization": None}
    names = {one.metadata.get("name") or one.name for one in fields(TeacherSpec)}
    assert names - set(KNOWN_BY_PAGES) == {
        "revision",
        "device",
        "device_map",
        "tensor_parallel",
        "trust_remote_code",
        "allow_pickle",
    }


def test_layers_of_no_teacher_are_refused() -> None:
    with pytest.raises(ModelError, match="--layers 5: the teacher has layers 1 to 4; choose one of them or `last`"):
        CaptureOptions(layers=(5,)).resolved(4)
    with pytest.raises(ConfigError, match="--layers top: neither `last` nor a number; write, say, 1,last"):
        CaptureOptions(layers=("top",)).resolved(4)
    with pytest.raises(ConfigError, match="--layers: none given"):
        check_capture(CaptureOptions(layers=()))

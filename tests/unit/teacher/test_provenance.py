"""Laws of provenance: what units were made by is kept; unlike numbers are refused, unlike versions are said."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from sra_data.errors import ShardError
from sra_data.teacher.loading import LoadedTeacher
from sra_data.teacher.provenance import MUST_AGREE, describe, environment_of, environments_in, refuse_mixture
from tests.model_zoo import tiny_model

HERE = {
    "device": "cuda",
    "device_name": "NVIDIA H100",
    "dtype": "bfloat16",
    "attention": "sdpa",
    "torch": "2.7.0",
    "transformers": "5.0.0",
}


def teacher(**options: str) -> LoadedTeacher:
    model = tiny_model("llama", **options)
    return LoadedTeacher(model, model.config, "f", "t", None)


def test_an_environment_names_device_dtype_attention_and_versions() -> None:
    found = environment_of(teacher())
    assert {**found} | {"device": "cpu", "device_name": "cpu", "dtype": "float32", "attention": "sdpa"} == found
    assert (found["torch"], found["transformers"]) == (version("torch"), version("transformers"))
    assert environment_of(teacher(attn_implementation="eager"))["attention"] == "eager"


def test_units_without_an_environment_are_let_be() -> None:
    assert environments_in([{}, {"environment": HERE}, {"environment": dict(HERE)}]) == [HERE]
    refuse_mixture([], where="x")


@pytest.mark.parametrize("name", MUST_AGREE)
def test_units_whose_numbers_differ_are_refused_by_name(name: str) -> None:
    with pytest.raises(ShardError, match=rf"shards/t: units made with unlike {name} {HERE[name]} and other; make the"):
        refuse_mixture([HERE, HERE | {name: "other"}], where="shards/t")


def test_units_whose_versions_differ_are_let_be_and_said_aloud() -> None:
    later = HERE | {"torch": "2.8.0", "device_name": "NVIDIA H200"}
    refuse_mixture([HERE, later], where="x")
    (line,) = describe([HERE, later])
    assert line.startswith(
        "units made by 2 environments that differ in versions or device: NVIDIA H100, bfloat16, sdpa,"
    )
    assert "torch 2.7.0 transformers 5.0.0; NVIDIA H200" in line
    assert describe([HERE]) == ["made by NVIDIA H100, bfloat16, sdpa, torch 2.7.0 transformers 5.0.0"]
    assert describe([]) == []

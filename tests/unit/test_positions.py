"""How many tokens a model reads: what a text is cut to, and above what a row is refused."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from sra_data.positions import most_positions, positions_in
from tests.model_zoo import COMMON, FAMILIES

LONG = {"long_factor": [2.0] * 4, "short_factor": [1.0] * 4}


def config(family: str, **changes: Any) -> Any:
    model_type = "falcon" if family == "falcon_alibi" else family
    return AutoConfig.for_model(model_type, **{**COMMON, **FAMILIES[family], **changes})


def rope(rope_type: str, **more: Any) -> dict[str, Any]:
    return {"rope_type": rope_type, "rope_theta": 10_000.0, **more}


@pytest.mark.parametrize("family", FAMILIES)
def test_most_families_read_what_they_declare_and_others_have_no_limit(family: str) -> None:
    without = {"falcon_alibi", "bloom", "mamba"}  # biases by distance, and states in place of positions
    declared = 2048 if family.startswith("falcon") else None if family in ("bloom", "mamba") else 128
    assert positions_in(config(family)) == declared
    assert most_positions(config(family)) == (None if family in without else declared)


def test_a_window_is_no_limit_and_neither_is_a_length_that_bloom_was_trained_on() -> None:
    assert most_positions(config("mistral", sliding_window=4)) == 128
    assert (positions_in(config("bloom", seq_length=64)), most_positions(config("bloom", seq_length=64))) == (64, None)


@pytest.mark.parametrize(
    ("parameters", "most"),
    [
        (rope("default"), 128),
        (rope("linear", factor=4.0), 512),
        (rope("dynamic", factor=2.0), 256),
        (rope("yarn", factor=4.0, original_max_position_embeddings=128), 512),
        (rope("yarn", factor=4.0, original_max_position_embeddings=32), 128),  # declared as stretched
        (rope("yarn", factor=4.0, original_max_position_embeddings=16), 128),
    ],
)
def test_stretched_rotary_positions_reach_further_than_is_declared(parameters: dict[str, Any], most: int) -> None:
    stretched = config("llama", rope_parameters=parameters)
    assert (positions_in(stretched), most_positions(stretched)) == (128, most)


def test_rotary_parameters_by_layer_type_declare_what_they_reach() -> None:
    layers = {"full_attention": rope("linear", factor=8.0), "sliding_attention": rope("default")}
    assert most_positions(config("gemma3_text", rope_parameters=layers)) == 128


class Odd:
    """A configuration that nothing checked: code that comes with a model may bring one."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def get_text_config(self) -> Odd:
        return self


def test_values_that_are_no_numbers_of_tokens_say_nothing() -> None:
    for value in (None, -1, True, "many"):
        odd = Odd(max_position_embeddings=value)
        assert positions_in(odd) is most_positions(odd) is None
        assert positions_in(Odd(max_position_embeddings=value, n_ctx=7)) == 7
    assert most_positions(Odd(n_positions=128, rope_parameters=rope("linear", factor="much"))) == 128

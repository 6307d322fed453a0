"""What the options refuse, in one line that names the option, its value and the remedy."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from sra_data.errors import ConfigError
from sra_train.contract import MethodSetting, ModelShape
from sra_train.methods import METHODS, SFT, SRA, method_type
from sra_train.methods.sft import SFTOptions
from sra_train.methods.sra import LayerPair, SRAOptions
from tests.unit.methods import worlds

REFUSED = {
    "alpha=1.5: must lie in": {"alpha": 1.5},
    "alpha=nan: must lie in": {"alpha": float("nan")},
    "choose method=sft": {"cos": False, "geo": False, "kd": False},
    "salience_power=-1.0: .*0 weighs all spans alike": {"salience_power": -1.0},
    "lambda_geo=-1.0: must be": {"lambda_geo": -1.0},
    "temperature=0.0: must be a positive": {"temperature": 0.0},
    "layer_pairs is empty": {"layer_pairs": ()},
    "the weights 0.5, 0.4 sum to 0.9": {"layer_pairs": ("1:1:0.5", "2:2:0.4")},
    "1:1 is named twice": {"layer_pairs": ("1:1:0.5", "1:1:0.5")},
    "student layer 0; they count from 1": {"layer_pairs": ("0:1",)},
    "weight -1.0 must be positive": {"layer_pairs": ("1:1:-1",)},
    "'3' is no pair of layers": {"layer_pairs": ("3",)},
}


@pytest.mark.parametrize("message", REFUSED, ids=str)
def test_contradictions_are_refused(message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        SRAOptions(**REFUSED[message])
    assert "\n" not in str(caught.value)


def test_unknown_options_and_values_are_refused() -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        SRAOptions(lamda_geo=1.0)
    with pytest.raises(ValidationError, match="kd_divergence"):
        SRAOptions(kd_divergence="sideways")


def test_layer_pairs_read_their_short_form() -> None:
    options = SRAOptions(layer_pairs=("6:12:0.25", "last:last:0.75"))
    assert options.layer_pairs == (
        LayerPair(student=6, teacher=12, weight=0.25),
        LayerPair(student="last", teacher="last", weight=0.75),
    )
    assert SRAOptions(**options.model_dump()) == options


def test_a_method_is_found_by_its_name() -> None:
    assert (method_type("sra"), method_type("sft")) == (SRA, SFT)
    with pytest.raises(ConfigError, match=r"method=srb: no such method; choose one of .*sft.*sra"):
        method_type("srb")
    assert all(method.name == name for name, method in METHODS.items())


def test_needs_name_exactly_what_the_options_read() -> None:
    head = worlds.make_head(1, worlds.TEACHER_VOCABULARY, worlds.TEACHER_WIDTH)
    last = worlds.TEACHER_LAYERS

    def needs(**options):
        (found,) = worlds.make_method(SRAOptions(**options), head).needs
        return found

    default = needs()
    assert (default.hidden, default.attention, default.top_k) == ((last,), (last,), False)
    bare = needs(cos=False, geo=False, kd_position="boundary", kd_source="top_k", temperature=1.0)
    assert (bare.layers, bare.top_k, bare.temperatures) == ((), True, (1.0,))
    assert needs(pooling="mean", salience_power=0).attention == ()
    pooled = needs(kd_source="top_k", layer_pairs=("1:2",))
    assert (pooled.hidden, pooled.attention, pooled.top_k) == ((2,), (2,), True)
    assert needs(pooling="mean").attention == (last,)
    assert needs(kd=False, layer_pairs=("1:2",)).layers == (2,)
    assert needs(layer_pairs=("1:2",)).layers == (2, last)
    assert needs(layer_pairs=("1:2",), pooling="mean").attention == (2,)
    assert (default.next_log_prob, default.ids) == (False, False)


def test_only_options_that_read_the_teachers_head_ask_for_it() -> None:
    assert SRA.knowledge_needs(SRAOptions()).head
    assert not SRA.knowledge_needs(SRAOptions(kd_source="top_k")).head
    assert not SRA.knowledge_needs(SRAOptions(kd=False)).head


def test_needs_say_which_option_reads_tokens_and_which_spans() -> None:
    head = worlds.make_head(1, worlds.TEACHER_VOCABULARY, worlds.TEACHER_WIDTH)

    def rows(**options):
        (needs,) = worlds.make_method(SRAOptions(**options), head).needs
        return tuple("" if one is None else f"{one.option}; {one.instead}" for one in (needs.tokens, needs.centers))

    boundary = "kd_position=boundary; set kd_position=center_of_mass"
    assert rows() == rows(kd=False) == rows(kd=False, kd_position="boundary") == ("", "")
    assert rows(kd_position="boundary", pooling="mean") == (boundary, "")
    assert rows(pooling="last", kd=False) == ("pooling=last; set pooling=attention", "")
    assert rows(kd_source="top_k") == (
        "", "kd_source=top_k with kd_position=center_of_mass; set kd_position=boundary or kd_source=head"
    )  # fmt: skip
    assert rows(kd_source="top_k", kd_position="boundary") == (boundary, "")


def test_the_student_hands_over_what_is_pooled_and_its_last_layer() -> None:
    head = worlds.make_head(1, worlds.TEACHER_VOCABULARY, worlds.TEACHER_WIDTH)
    method = worlds.make_method(SRAOptions(kd=False, layer_pairs=("1:2",)), head)
    assert method.student_needs.layers == (1, worlds.STUDENT_LAYERS)
    assert method.student_needs.attention_layers == (1,)
    assert worlds.make_method(SRAOptions(pooling="mean"), head).student_needs.attention_layers == ()


def test_layers_a_model_does_not_have_and_a_missing_teacher_are_refused() -> None:
    head = worlds.make_head(1, worlds.TEACHER_VOCABULARY, worlds.TEACHER_WIDTH)
    with pytest.raises(ConfigError, match="teacher layer 9; the teacher has layers 1 to 4"):
        worlds.make_method(SRAOptions(layer_pairs=("1:9",)), head)
    shape = ModelShape(2, 4, 13)
    with pytest.raises(ConfigError, match="no teacher's pages; run `sra-data cache-teacher`"):
        SRA(SRAOptions(), MethodSetting(shape))
    with pytest.raises(ConfigError, match="kd_source=head: the shards hold no teacher's head"):
        worlds.make_method(SRAOptions(), None)
    assert list(SFT(SFTOptions(), MethodSetting(shape)).parameters()) == []


def test_projectors_are_orthogonal_reproducible_and_all_that_is_saved() -> None:
    import torch

    head = worlds.make_head(1, worlds.TEACHER_VOCABULARY, worlds.TEACHER_WIDTH)
    first, second = (worlds.make_method(SRAOptions(), head) for _ in range(2))
    (projector,) = first.parameters()
    assert projector.shape == (worlds.STUDENT_WIDTH, worlds.TEACHER_WIDTH)
    torch.testing.assert_close(
        projector @ projector.T, torch.eye(worlds.STUDENT_WIDTH, dtype=projector.dtype), rtol=0, atol=1e-6
    )
    assert torch.equal(projector, next(second.parameters()))
    assert list(first.state_dict()) == ["teachers.0.projectors.0"]
    assert list(worlds.make_method(SRAOptions(cos=False), head).state_dict()) == []
